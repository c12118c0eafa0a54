"""Build the models of runs whose weights come from a checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from ..checkpoint import MissingCheckpointError
from .checkpoint import load_weights, read_checkpoint
from .config import explain_config_mistakes

__all__ = ["build_trained", "require_checkpoint", "without_pretrained"]

# A teacher's weights are no part of its pupil's checkpoint.
_KEPT = ("teacher",)


def without_pretrained(model: Mapping[str, Any]) -> ConfigDict:
    """Return a model's config without what would fetch weights that a checkpoint is about to replace.

    Args:
        model: The config. Every ``pretrained`` in it goes, and every ``init_cfg`` of type "Pretrained"; what is under
            ``teacher`` stays.
    """
    return ConfigDict(_without(model))


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: item if key in _KEPT else _without(item)
            for key, item in value.items()
            if key != "pretrained" and not (key == "init_cfg" and _fetches(item))
        }
    return type(value)(_without(item) for item in value) if type(value) in (list, tuple) else value


def _fetches(init: Any) -> bool:
    if isinstance(init, list | tuple):
        return any(_fetches(one) for one in init)
    return isinstance(init, Mapping) and init.get("type") == "Pretrained"


def require_checkpoint(path: str | os.PathLike) -> None:
    """Say that a checkpoint is not there, before anything is built for it.

    Raises:
        MissingCheckpointError: There is nothing under the name.
    """
    if not os.path.lexists(path):
        raise MissingCheckpointError(f"Checkpoint '{Path(path)}' does not exist.")


def build_trained(cfg: Mapping[str, Any], checkpoint: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """Build a run's model with the weights of its checkpoint; nothing else is fetched.

    Args:
        cfg: The run's config.
        checkpoint: See :func:`~vssm.engine.checkpoint.read_checkpoint`.

    Returns:
        The model, and the checkpoint.

    Raises:
        ConfigError: The model cannot be built.
        CheckpointError: The checkpoint cannot be read, or does not fit the model.
    """
    stored = read_checkpoint(checkpoint)
    with explain_config_mistakes():
        model = MODELS.build(without_pretrained(cfg["model"]))
    load_weights(checkpoint, model, stored)
    return model, stored
