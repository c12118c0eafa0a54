"""Networks of medical runs, to be counted and to be looked into."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from ..engine.config import ConfigError, image_size, test_data
from ..profiling.subjects import Subject as CountedSubject
from ..profiling.subjects import outline_of
from ..viz.subject import Subject, load_run, name_of
from .predict import slice_transform, window_options

__all__ = ["counted_subject", "seen_subject"]


def counted_subject(cfg: Config, name: str) -> CountedSubject:
    """Build a run's network without weights, and say at which size the run works.

    Raises:
        ConfigError: The model cannot be built.
    """
    network = outline_of(cfg).model
    windows = window_options(cfg)
    size = (image_size(cfg) or (224, 224)) if windows is None else tuple(windows["patch"])
    return CountedSubject(name, network, (network.in_chans, *size))


def seen_subject(cfg: Config, checkpoint: str | os.PathLike | None = None, device: str = "cpu") -> Subject:
    """Take a run's network, and prepare images as the run does its slices or photographs.

    Args:
        cfg: The run's config.
        checkpoint: Its checkpoint; None: random weights (or those that the config itself names).
        device: Where to run.

    Raises:
        ConfigError: The model cannot be built, the config does not say how images are prepared, or the run is one on
            volumes in windows.
        CheckpointError: The checkpoint cannot be read, or is of another model.
    """
    if window_options(cfg) is not None:
        raise ConfigError("The pictures of networks are of images, but this run's network takes volumes.")
    model, classes = load_run(cfg, checkpoint, device)
    kind, dataset = test_data(cfg)
    transform = slice_transform(cfg) or kind.transform_from(dataset)
    prepare = _without_resizing(transform, model.model.in_chans)
    return Subject(name_of(cfg), model.model, prepare, transform.size[0], classes=classes)


def _without_resizing(transform: Any, in_chans: int) -> Callable[[Image.Image], Tensor]:
    """The run's own transform at an image's own size; slices count from 0 to 1, photographs to 255."""

    def prepare(image: Image.Image) -> Tensor:
        transform.size = [image.height, image.width]
        if in_chans == 3 and not hasattr(transform, "std"):
            return transform.image(np.asarray(image))
        return transform.image(np.asarray(image.convert("L"), dtype=np.float32) / 255)

    return prepare
