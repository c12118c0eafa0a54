"""Necks and heads that take the widths of their inputs from the backbone."""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS as DET_MODELS
from mmengine.registry import MODELS, Registry
from mmseg.registry import MODELS as SEG_MODELS

from .backbone import VSSMBackbone

__all__ = ["fill_widths"]

_BACKBONES = (VSSMBackbone, "VSSMBackbone", "mmengine.VSSMBackbone")
_HEADS = ("decode_head", "auxiliary_head")


def fill_widths(model: Any, registry: Registry = MODELS) -> Any:
    """Give a detector's neck, or a segmentor's heads, the widths of its backbone's maps.

    Only an `in_channels` that is left out or None is filled; one that is there stays, right or wrong.

    Args:
        model: The config of a model whose `backbone` is a `VSSMBackbone`; anything else comes back as it is.
        registry: Where the neck's type is looked up.

    Returns:
        A config with all widths. The one that was given is not changed.
    """
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict) or backbone.get("type") not in _BACKBONES:
        return model
    if not any(part.get("in_channels") is None for part in _readers(model, registry)):
        return model
    widths = _widths(backbone)
    filled = copy.deepcopy(model)
    for part in _readers(filled, registry):
        if part.get("in_channels") is None:
            # A neck reads all maps; a head says which, by default the last.
            index = _index(part, registry) if not filled.get("neck") else range(len(widths))
            part["in_channels"] = widths[index] if isinstance(index, int) else [widths[i] for i in index]
    return filled


def _kind(part: dict, registry: Registry) -> Any:
    """The class of a part; None where it has no type, or one that is not known."""
    kind = part.get("type")
    return registry.get(kind) if isinstance(kind, str) else kind


def _index(head: dict, registry: Registry) -> int | Sequence[int]:
    """Which maps a head reads: as its config says, or its class, or mmseg, which takes the last."""
    kind = _kind(head, registry)
    own = inspect.signature(kind).parameters.get("in_index") if kind else None
    return head.get("in_index", own.default if own else -1)


def _readers(model: dict, registry: Registry) -> list[dict]:
    """The parts that read the backbone's maps: the first neck, or the heads of a segmentor without one."""
    neck = model.get("neck")
    if neck:
        first = neck[0] if isinstance(neck, list | tuple) else neck
        kind = _kind(first, registry)
        takes = "in_channels" in first or (kind and "in_channels" in inspect.signature(kind).parameters)
        return [first] if takes else []
    heads = [model.get(name) or [] for name in _HEADS]
    return [head for group in heads for head in (group if isinstance(group, list | tuple) else [group])]


def _widths(backbone: dict) -> list[int]:
    """The widths of a backbone's maps, from one that is built without weights."""
    options = {k: v for k, v in backbone.items() if k not in ("type", "pretrained", "init_cfg", "frozen_stages")}
    try:
        with torch.device("meta"):
            return VSSMBackbone(**options).channels
    except (NotImplementedError, RuntimeError):  # something in the model wants values
        return VSSMBackbone(**options).channels


def _filling(build: Callable) -> Callable:
    @functools.wraps(build)
    def build_filled(cfg: Any, *args: Any, registry: Registry, **kwargs: Any) -> Any:
        return build(fill_widths(cfg, registry), *args, registry=registry, **kwargs)

    return build_filled


# Whoever builds a model from a config, a Runner of mmengine's or `init_detector` of mmdet's, asks one of these.
for _registry in (MODELS, DET_MODELS, SEG_MODELS):
    _registry.build_func = _filling(_registry.build_func)
