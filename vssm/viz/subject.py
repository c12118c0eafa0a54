"""Models by name or of a run, and images as they take them: what pictures are drawn of."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from .._errors import UserError
from .._optional import require
from .._tasks import task_of
from ..checkpoint import count_classes, load_checkpoint, read_checkpoint, unwrap_state_dict
from ..engine.config import explain_config_mistakes
from ..engine.images import open_image
from ..engine.models import build_trained
from ..models.create import create_model

__all__ = ["Subject", "View", "build_subjects", "load_run", "name_of", "normalise", "place_in", "sample_photographs"]

# Sides are multiples of this many pixels, so that cells of the coarsest maps of most models are whole.
_STEP = 32


@dataclass(frozen=True)
class View:
    """An image as a network sees it.

    Attributes:
        name: the file.
        picture: RGB, of the network's size, not normalised.
        inputs: (1, C, H, W), normalised.
        size: (height, width) of the file.
    """

    name: str
    picture: Image.Image
    inputs: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Subject:
    """A network and how images become its inputs.

    Attributes:
        name: for titles.
        network: takes (B, C, H, W): what gives the maps, such as the backbone of a larger model.
        prepare: maps an RGB image of the size wanted to (C, H, W).
        side: of the square images that it was made for, or the shorter side where any size will do.
        fixed: whether it takes squares of that side only.
        classes: names of its classes, or None.
    """

    name: str
    network: nn.Module
    prepare: Callable[[Image.Image], Tensor]
    side: int
    fixed: bool = False
    classes: Sequence[str] | None = None

    @classmethod
    def from_name(
        cls, name: str, pretrained: bool = False, checkpoint: str | os.PathLike | None = None, device: str = "cpu"
    ) -> "Subject":
        """Take a model of timm's registry, with random, published or a checkpoint's weights.

        Raises:
            ModelError: The name is unknown, or its published weights cannot be had.
            CheckpointError: The checkpoint cannot be read, or is of another model.
        """
        model = create_model(name, pretrained=pretrained)
        subset = infer_imagenet_subset(model) if checkpoint is None else None
        classes = ImageNetInfo(subset).label_descriptions() if subset else None
        if checkpoint is not None:
            _load_classifier(model, checkpoint)
        cfg = getattr(model, "pretrained_cfg", None) or {}
        prepare = normalise(cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD))
        side = cfg.get("input_size", (3, 224, 224))[-1]
        fixed = bool(cfg.get("fixed_input_size"))
        return cls(name, model.eval().to(device), prepare, side, fixed, classes)

    @classmethod
    def from_config(cls, cfg: Config, checkpoint: str | os.PathLike | None = None, device: str = "cpu") -> "Subject":
        """Take the network of a run, as its task looks into it.

        Args:
            cfg: The run's config.
            checkpoint: Its checkpoint; None: random weights (or those that the config itself names).
            device: Where to run.

        Raises:
            UserError: The config is of no task.
            ConfigError: The model cannot be built, or the config does not say how images are prepared.
            CheckpointError: The checkpoint cannot be read, or is of another model.
        """
        return task_of(cfg).look_inside(cfg, checkpoint, device)

    def view(self, path: str | os.PathLike, size: Sequence[int] | None = None) -> View:
        """Read an image.

        Args:
            path: An image file.
            size: Height and width to give it; None: its proportions with the model's own shorter side, rounded to
                multiples of 32; a square for a model that takes nothing else.

        Raises:
            DataError: The image cannot be read.
        """
        image = open_image(path)
        height, width = self._size(image) if size is None else size
        picture = image.resize((width, height), Image.Resampling.BICUBIC)
        inputs = self.prepare(picture)[None].to(next(self.network.parameters()).device)
        return View(str(path), picture, inputs, (image.height, image.width))

    def _size(self, image: Image.Image) -> tuple[int, int]:
        if self.fixed:
            return self.side, self.side
        scale = self.side / min(image.size)
        height, width = (max(round(side * scale / _STEP), 1) * _STEP for side in (image.height, image.width))
        return (self.side, width) if image.height <= image.width else (height, self.side)

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        return self.classes[label] if self.classes is not None and label < len(self.classes) else str(label)


def sample_photographs() -> list[str]:
    """The photographs in scikit-learn's wheel.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    folder = Path(require("sklearn.datasets", "train").__file__).parent / "images"
    return [str(folder / name) for name in ("flower.jpg", "china.jpg")]


def load_run(
    cfg: Config, checkpoint: str | os.PathLike | None = None, device: str = "cpu"
) -> tuple[nn.Module, Sequence[str] | None]:
    """Build a run's model in evaluation mode, without SyncBatchNorm, which one process has no use for.

    Args:
        cfg: The run's config.
        checkpoint: Its checkpoint; None: random weights (or those that the config itself names).
        device: Where to run.

    Returns:
        The model, and the names of the classes that the checkpoint holds, or None.

    Raises:
        ConfigError: The model cannot be built.
        CheckpointError: The checkpoint cannot be read, or is of another model.
    """
    if checkpoint is None:
        stored = {}
        with explain_config_mistakes():
            model = MODELS.build(cfg.model)
    else:
        model, stored = build_trained(cfg, checkpoint)
    model = revert_sync_batchnorm(model)
    classes = (stored.get("meta", {}).get("dataset_meta") or {}).get("classes")
    return model.eval().to(device), classes


def name_of(cfg: Config) -> str:
    """Return a run's name for titles: that of its config's file."""
    return Path(cfg.filename).stem if cfg.filename else str(cfg.get("model", {}).get("type"))


def normalise(mean: Sequence[float], std: Sequence[float]) -> Callable[[Image.Image], Tensor]:
    """Return the function from an RGB image to (3, H, W), from 0 to 1, less ``mean`` and divided by ``std``."""

    def prepare(image: Image.Image) -> Tensor:
        return tv.normalize(tv.to_tensor(image), list(mean), list(std))

    return prepare


def _load_classifier(model: nn.Module, path: str | os.PathLike) -> None:
    """Load an official checkpoint or one of this package into a timm model, with as many classes as it has.

    Raises:
        CheckpointError: It cannot be read, or is of another model.
    """
    weights = unwrap_state_dict(read_checkpoint(path))
    layers = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    classes = count_classes(weights, (layers,) if isinstance(layers, str) else layers)
    if classes is not None and classes != model.num_classes:
        model.reset_classifier(classes)
    load_checkpoint(model, path)


def place_in(view: View, pixel: Sequence[int] | None) -> tuple[float, float]:
    """A pixel (row, column) of the image file as shares of its sides; None: its centre.

    Raises:
        UserError: The pixel is outside of the image.
    """
    height, width = view.size
    row, column = (height // 2, width // 2) if pixel is None else pixel
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(
            f"The pixel (row {row}, column {column}) is outside of the image '{view.name}', which has {height} rows "
            f"and {width} columns."
        )
    return row / height, column / width


def build_subjects(
    models: Iterable[str],
    configs: Iterable[Config],
    checkpoints: Sequence[str],
    pretrained: bool = False,
    device: str = "cpu",
) -> list[Subject]:
    """Models by name and then those of runs, each with its checkpoint if there are any.

    Raises:
        UserError: There is no model, the number of checkpoints is another one, published weights are asked of a run,
            or a model cannot be built.
    """
    models, configs = list(models), list(configs)
    count = len(models) + len(configs)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    if not count:
        raise UserError("Name a model with --model, or a run with --config.")
    if checkpoints and len(checkpoints) != count:
        raise UserError(f"There are {count} models and {len(checkpoints)} checkpoints; give one for each, or none.")
    if pretrained and (configs or checkpoints):
        raise UserError("--pretrained loads the published weights of --model; a run's weights come from --checkpoint.")
    files: list[str | None] = [*checkpoints] if checkpoints else [None] * count
    named = [Subject.from_name(name, pretrained, file, device) for name, file in zip(models, files, strict=False)]
    runs = [Subject.from_config(cfg, file, device) for cfg, file in zip(configs, files[len(models) :], strict=True)]
    return named + runs
