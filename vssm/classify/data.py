"""Data sets: ImageNet-style folders, and the handwritten digits of the demo.

Both give ``dict(inputs=float image (C, H, W), labels=class number)``, what
:class:`~vssm.classify.classifier.TimmClassifier` takes once batched, and name their classes in ``metainfo``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image
from timm.data import ImageDataset, create_transform
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from .._inputs import is_litter, picture_suffixes, sort_files, warn_of_unused, warn_once
from .._optional import require
from ..engine.config import ConfigError, check_options
from ..engine.images import DataError, open_image

__all__ = ["DataError", "Digits", "ImageFolder", "open_image"]


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """An ImageNet-style folder, ``root/split/class name/*.jpeg``, transformed by timm.

    Classes are numbered in the natural order of their folders' names, those of ``root/train`` where it exists, so
    that a validation folder that lacks a class keeps the numbers. Images in folders inside of a class's folder are the
    class's. Suffixes are those that prediction knows, in either case. What begins with a dot is no data. The log says
    once what is not used.

    Args:
        root: Folder with the splits. None: the environment variable ``env``, else ``default_root``.
        split: Name of the split's folder; timm's synonyms (``"val"`` for ``"validation"``) are not tried.
        transform: Arguments of ``timm.data.create_transform``: ``dict(input_size=224, is_training=True, ...)``.
        env: Environment variable that holds the root where the config does not say it.
        default_root: The root where neither says it.

    Raises:
        DataError: The folder is missing, and the message says where it was looked for, and why there; or a class's
            folder holds no images, or images in the folder of one class lie in a folder named like another.
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
        super().__init__(str(folder), reader=_ClassFolders(folder, names, train))
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


class _ClassFolders(Reader):
    """The images of a split with their class numbers, as timm's data sets take them."""

    def __init__(self, folder: Path, names: Sequence[str], train: Path):
        super().__init__()
        self.root = str(folder)
        self.class_to_idx = {name: number for number, name in enumerate(names)}
        here = _class_names(folder)
        strangers = sorted(set(here) - set(names))
        if strangers:
            raise DataError(f"'{folder}' has the class folder '{strangers[0]}', which '{train}' lacks.")
        self.samples: list[tuple[str, int]] = []
        empty: list[str] = []
        left = [entry.name for entry in sorted(folder.iterdir()) if entry.name not in self.class_to_idx]
        deeper: list[str] = []
        for name in here:
            place = str(folder / name)
            images, others = sort_files(place, picture_suffixes(), deep=True)
            if not images:
                suffixes = sorted({os.path.splitext(other)[1] or other for other in others})
                empty.append(f"'{place}'" + (f" (only {', '.join(suffixes[:3])})" if others else ""))
            left += others
            deeper += [path for path in images if os.path.dirname(path) != place]
            self.samples += [(path, self.class_to_idx[name]) for path in images]
        if empty:
            more = f", and so do {len(empty) - 3} others" if len(empty) > 3 else ""
            raise DataError(f"A class folder holds no images: {', '.join(empty[:3])}{more}.")
        if not self.samples:
            raise DataError(f"'{folder}' holds no images in class folders.")
        self._check_deeper(deeper, names)
        warn_of_unused(folder, len(self.samples), left)
        absent = [name for name in names if name not in here]
        if absent:
            examples = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            warn_once(f"'{folder}' has no folder of {len(absent)} of the {len(names)} classes ({examples}).")
        self.samples.sort(key=lambda sample: natural_key(sample[0]))

    def _check_deeper(self, deeper: Sequence[str], names: Sequence[str]) -> None:
        for path in deeper:
            own, *inner = os.path.relpath(path, self.root).split(os.sep)[:-1]
            other = next((name for name in inner if name != own and name in self.class_to_idx), None)
            if other is not None:
                raise DataError(
                    f"'{path}' lies in the folder of the class '{own}' and in one named like the class '{other}'; "
                    "move it to the folder of its class."
                )
        if deeper and len(names) == 1 and len(deeper) == len(self.samples):
            raise DataError(
                f"'{self.root}' has '{names[0]}' as its only class folder, and all images lie in folders inside of it; "
                "the folders of the classes belong right below the split's."
            )
        if deeper:
            warn_once(
                f"'{self.root}': {len(deeper)} images lie in folders inside of their class's folder and count to that "
                f"class ('{deeper[0]}')."
            )

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, label = self.samples[index]
        return open(path, "rb"), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path if absolute else os.path.relpath(path, self.root)


def _class_names(folder: Path) -> list[str]:
    names = (entry.name for entry in folder.iterdir() if entry.is_dir() and not is_litter(entry.name))
    return sorted(names, key=lambda name: (natural_key(name), name))


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
