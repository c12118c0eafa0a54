"""Data sets: ImageNet-style folders, and the handwritten digits of the demo.

Both give ``dict(inputs=float image (C, H, W), labels=class number)``, what
:class:`~vssm.classify.classifier.TimmClassifier` takes once batched, and name their classes in ``metainfo``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image
from timm.data import ImageDataset, create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from .._optional import require
from ..engine.config import ConfigError, check_options
from ..engine.images import DataError, open_image

__all__ = ["DataError", "Digits", "ImageFolder", "open_image"]


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """An ImageNet-style folder, ``root/split/class name/*.jpeg``, read and transformed by timm.

    Classes are numbered in the natural order of their folders' names, those of ``root/train`` where it exists, so
    that a validation folder that lacks a class keeps the numbers.

    Args:
        root: Folder with the splits. None: the environment variable ``env``, else ``default_root``.
        split: Name of the split's folder; timm's synonyms (``"val"`` for ``"validation"``) are not tried.
        transform: Arguments of ``timm.data.create_transform``: ``dict(input_size=224, is_training=True, ...)``.
        env: Environment variable that holds the root where the config does not say it.
        default_root: The root where neither says it.

    Raises:
        DataError: The folder is missing or holds no images; the message says where it was looked for, and why there.
        ConfigError: An option of ``transform`` is unknown.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "train",
        transform: Mapping[str, Any] | None = None,
        env: str = "VSSM_IMAGENET",
        default_root: str = "data/imagenet",
    ):
        base = Path(root or os.environ.get(env) or default_root).expanduser()
        folder = base / split
        if not folder.is_dir():
            if root:
                source = f"the config key dataset.root is '{root}'; the environment variable {env} was not used"
            elif os.environ.get(env):
                source = (
                    f"the environment variable {env} is '{os.environ[env]}'; the config key dataset.root is not set"
                )
            else:
                source = f"neither the config key dataset.root nor the environment variable {env} is set"
            raise DataError(f"The image folder '{folder}' does not exist ({source}).")
        train = base / "train"
        names = _class_names(train if train.is_dir() else folder)
        strangers = sorted(set(_class_names(folder)) - set(names))
        if strangers:
            raise DataError(f"'{folder}' has the class folder '{strangers[0]}', which '{train}' lacks.")
        try:
            super().__init__(str(folder), class_map={name: number for number, name in enumerate(names)})
        except RuntimeError as error:
            raise DataError(f"'{folder}' holds no images in class folders.") from error
        self.transform = self.transform_from({"transform": transform})
        self.metainfo = {"classes": tuple(names)}

    @staticmethod
    def transform_from(cfg: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return the transform of a data set's config, without looking at the data.

        Raises:
            ConfigError: An option of ``cfg["transform"]`` is unknown.
        """
        options = cfg.get("transform") or {}
        check_options(create_transform, options, "dataset.transform")
        return create_transform(**options)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        timm replaces an unreadable file by its neighbour, which would count the neighbour twice in an evaluation.

        Raises:
            DataError: The file cannot be read; the message names it.
        """
        path, label = self.reader.samples[index]
        return {"inputs": self.transform(open_image(path)), "labels": label}


def _class_names(folder: Path) -> list[str]:
    from timm.utils.misc import natural_key

    return sorted((entry.name for entry in folder.iterdir() if entry.is_dir()), key=natural_key)


def _gray_rgb(image: Image.Image) -> Image.Image:
    # A named function: data workers that are started by spawning pickle their transform.
    return image.convert("L").convert("RGB")


@DATASETS.register_module()
class Digits(Dataset):
    """Scikit-learn's 1,797 handwritten digits, 8 x 8 scans, as RGB images of the size a model wants.

    Args:
        split: ``"train"``, or ``"test"`` for the part held out.
        transform: Arguments of :meth:`make_transform`.
        held_out: Share of each class that is held out.
        seed: Fixes which scans are held out; independent of the run's seed, so that runs stay comparable.

    Raises:
        ConfigError: ``split`` is neither, or an option of ``transform`` is unknown.
    """

    def __init__(
        self,
        split: str = "train",
        transform: Mapping[str, Any] | None = None,
        held_out: float = 0.2,
        seed: int = 0,
    ):
        if split not in ("train", "test"):
            raise ConfigError(f"Digits has the splits 'train' and 'test', not '{split}'.")
        digits = require("sklearn.datasets", "train").load_digits()
        select = require("sklearn.model_selection", "train").train_test_split
        parts = select(np.arange(len(digits.target)), test_size=held_out, random_state=seed, stratify=digits.target)
        chosen = np.sort(parts[split == "test"])
        # The scans count 0 to 16 pen strokes per pixel.
        pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self.images = [Image.fromarray(image) for image in pixels]
        self.labels = [int(label) for label in digits.target[chosen]]
        self.transform = self.transform_from({"transform": transform})
        self.metainfo = {"classes": tuple(str(digit) for digit in range(10))}

    @classmethod
    def transform_from(cls, cfg: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return the transform of a data set's config, see :meth:`make_transform`.

        Raises:
            ConfigError: An option of ``cfg["transform"]`` is unknown.
        """
        options = cfg.get("transform") or {}
        check_options(cls.make_transform, options, "dataset.transform")
        return cls.make_transform(**options)

    @staticmethod
    def make_transform(
        input_size: int = 32,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
    ) -> Callable[[Image.Image], Tensor]:
        """Return the transform from a scan to a normalised image (3, ``input_size``, ``input_size``).

        Args:
            input_size: Side of the image; the scan is enlarged by Pillow's bicubic filter.
            degrees: Largest rotation to either side, drawn per image.
            translate: Largest shift, as a share of the side.
            scale: Smallest and largest zoom.
        """
        steps: list[Callable] = [
            transforms.Lambda(_gray_rgb),
            transforms.Resize((input_size, input_size), transforms.InterpolationMode.BICUBIC),
        ]
        if degrees or translate or tuple(scale) != (1.0, 1.0):
            # Scans have an empty margin: what rotates in from outside is background.
            steps.append(
                transforms.RandomAffine(
                    degrees, (translate, translate), tuple(scale), interpolation=transforms.InterpolationMode.BILINEAR
                )
            )
        return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.transform(self.images[index]), "labels": self.labels[index]}
