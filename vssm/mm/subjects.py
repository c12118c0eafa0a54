"""Detectors and segmentors of runs, to be counted and to be looked into."""

import os
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..engine.config import ConfigError
from ..profiling.subjects import Subject as CountedSubject
from ..profiling.subjects import outline_of
from ..viz.subject import Subject, load_run, name_of, normalise
from .flops import dense_outputs

__all__ = ["counted_subject", "seen_subject"]

# Detectors and segmentors do not say a size; this shorter side keeps four stages readable.
_SIDE = 384


def counted_subject(cfg: Config, name: str, size: Sequence[int]) -> CountedSubject:
    """Build a detector or segmentor without weights.

    Args:
        cfg: The run's config.
        name: What the subject is called.
        size: (H, W) of the image that the papers count at.

    Raises:
        ConfigError: The model cannot be built.
    """
    init_default_scope(cfg.default_scope)
    return CountedSubject(name, outline_of(cfg), (3, *size), dense_outputs)


def seen_subject(cfg: Config, checkpoint: str | os.PathLike | None = None, device: str = "cpu") -> Subject:
    """Take the backbone of a detector or segmentor, and normalise images as its preprocessor does.

    Args:
        cfg: The run's config.
        checkpoint: Its checkpoint; None: random weights (or those that the config itself names).
        device: Where to run.

    Raises:
        ConfigError: The model cannot be built, its backbone is none of ours, or its preprocessor is not used as the
            configs here do.
        CheckpointError: The checkpoint cannot be read, or is of another model.
    """
    init_default_scope(cfg.default_scope)
    model, _ = load_run(cfg, checkpoint, device)
    backbone = getattr(model, "backbone", None)
    if not hasattr(getattr(backbone, "model", None), "model"):
        raise ConfigError(f"The config's model, {cfg.model.type}, has no VSSMBackbone whose maps could be drawn.")
    preprocessor = model.data_preprocessor
    if not getattr(preprocessor, "_enable_normalize", False) or not preprocessor._channel_conversion:
        raise ConfigError("The config's data_preprocessor must have mean, std and bgr_to_rgb=True.")
    mean, std = ((getattr(preprocessor, key) / 255).flatten().tolist() for key in ("mean", "std"))
    return Subject(name_of(cfg), backbone.model.model, normalise(mean, std), _SIDE)
