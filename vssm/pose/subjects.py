"""Pose estimators of runs, to be counted and to be looked into."""

import os

from mmengine.config import Config
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..profiling.subjects import Subject as CountedSubject
from ..profiling.subjects import outline_of
from ..viz.subject import Subject, load_run, name_of, normalise

__all__ = ["counted_subject", "seen_subject"]


def counted_subject(cfg: Config, name: str) -> CountedSubject:
    """Build a pose estimator without weights, to be counted at the size of its crops.

    Raises:
        ConfigError: The model cannot be built.
    """
    network = outline_of(cfg)
    return CountedSubject(name, network, (3, *network.codec.size))


def seen_subject(cfg: Config, checkpoint: str | os.PathLike | None = None, device: str = "cpu") -> Subject:
    """Take a run's timm model, and normalise images as the crops are.

    Args:
        cfg: The run's config.
        checkpoint: Its checkpoint; None: random weights (or those that the config itself names).
        device: Where to run.

    Raises:
        ConfigError: The model cannot be built.
        CheckpointError: The checkpoint cannot be read, or is of another model.
    """
    model, _ = load_run(cfg, checkpoint, device)
    normalised = normalise(list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
    return Subject(name_of(cfg), model.backbone.model, normalised, max(model.codec.size))
