"""Classifiers of runs, to be counted and to be looked into."""

import os

import torch
from mmengine.config import Config
from PIL import Image

from ..engine.config import ConfigError, image_size, test_data
from ..profiling.subjects import Subject as CountedSubject
from ..profiling.subjects import outline_of
from ..published import published
from ..viz.subject import Subject, load_run, name_of, normalise

__all__ = ["counted_subject", "seen_subject"]


def counted_subject(cfg: Config, name: str) -> CountedSubject:
    """Build a run's timm model without weights, and say at which size the run works.

    Raises:
        ConfigError: The model cannot be built.
    """
    network = outline_of(cfg).model
    channels, *size = network.pretrained_cfg.get("input_size") or (3, 224, 224)
    channels = cfg.model.model.get("in_chans", channels)
    size = image_size(cfg) or size
    return CountedSubject(name, network, (channels, *size), published=published(cfg.model.model.name))


def seen_subject(cfg: Config, checkpoint: str | os.PathLike | None = None, device: str = "cpu") -> Subject:
    """Take a run's timm model, and normalise images as the run's test data does.

    Args:
        cfg: The run's config.
        checkpoint: Its checkpoint; None: random weights (or those that the config itself names).
        device: Where to run.

    Raises:
        ConfigError: The model cannot be built, or the config does not say how images are prepared.
        CheckpointError: The checkpoint cannot be read, or is of another model.
    """
    model, classes = load_run(cfg, checkpoint, device)
    kind, dataset = test_data(cfg)
    transform = kind.transform_from(dataset)
    side = transform(Image.new("RGB", (64, 64))).shape[-1]
    for step in transform.transforms:
        if hasattr(step, "mean") and hasattr(step, "std"):
            mean, std = (torch.as_tensor(value).float().expand(3).tolist() for value in (step.mean, step.std))
            return Subject(name_of(cfg), model.model, normalise(mean, std), side, classes=classes)
    raise ConfigError("The config's transform does not normalise images.")
