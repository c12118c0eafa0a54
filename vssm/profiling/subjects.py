"""What a count can be asked of: models by timm's names, and whatever a run's config describes."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from .._errors import UserError
from ..published import Published, published
from .cost import Cost
from .flops import Forward, count
from .models import names_of

__all__ = ["Subject", "count_subject", "find_subjects"]

# What the papers count detectors and segmentors at: H, W.
_DENSE_SIZES = {"mmdet": (800, 1280), "mmseg": (512, 2048)}


@dataclass(frozen=True)
class Subject:
    """A network without weights, and how to run it.

    Attributes:
        name: The model's name, or the path of the config.
        model: The network; its tensors may be on the device "meta".
        input_size: (C, H, W) of the image it is usually counted at.
        forward: What to run in place of the model's own forward, see `vssm.profiling.count`.
        published: What the authors published for it at that size, None where nothing is known.
    """

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    forward: Forward | None = None
    published: Published | None = None


# Builds a subject for images of (H, W), or for its usual ones.
Build = Callable[[tuple[int, int] | None], Subject]


def find_subjects(words: Sequence[str]) -> dict[str, Build]:
    """What each word stands for, checked but not built yet.

    Args:
        words: Names or wildcards of timm's registry, and paths of configs (they end in .py).

    Returns:
        By name or path, a function of (H, W), or None for the usual size, that builds the subject. Models that are made
        for one size of image are made for that one.

    Raises:
        UserError: A name is unknown, or a wildcard matches nothing.
    """
    found: dict[str, Build] = {}
    for word in words:
        if word.endswith(".py") or os.sep in word:
            found[word] = lambda size, path=word: _from_config(path)
        else:
            for name in names_of([word]):
                found[name] = lambda size, name=name: _from_name(name, size)
    return found


def _outline(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without storage, unless something in it wants values."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        return build()


def _from_name(name: str, size: tuple[int, int] | None) -> Subject:
    try:
        model = _outline(lambda: timm.create_model(name))
        cfg = model.pretrained_cfg
        if size is not None and cfg.get("fixed_input_size"):
            model = _outline(lambda: timm.create_model(name, img_size=size))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"Model '{name}' cannot be built: {str(error).splitlines()[0]}.") from error
    return Subject(name, model, tuple(cfg["input_size"]), published=published(name))


def _without_weights(value: Any) -> Any:
    """A config of a model without what makes it load a file."""
    if isinstance(value, Mapping):
        return {k: _without_weights(v) for k, v in value.items() if k not in ("pretrained", "init_cfg")}
    return [_without_weights(v) for v in value] if isinstance(value, list | tuple) else value


def _side(cfg: Mapping[str, Any]) -> int | Sequence[int] | None:
    """The size of image that a run of a classifier or a medical network works at."""
    for part in ("val", "test", "train"):
        transform = ((cfg.get(f"{part}_dataloader") or {}).get("dataset") or {}).get("transform") or {}
        for options, key in ((transform, "input_size"), (transform, "size"), (cfg.get(f"{part}_cfg") or {}, "size")):
            if options.get(key):
                return options[key]
    return None


def _from_config(path: str) -> Subject:
    from ..engine.config import ConfigError, explain_config_mistakes, load_config

    cfg = load_config(path)
    if "type" not in (cfg.get("model") or {}):
        raise ConfigError(f"Config '{path}' describes no model.")
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, init_default_scope

    scope = cfg.get("default_scope") or "mmengine"
    init_default_scope(scope)
    options = ConfigDict(_without_weights(cfg.model))
    with explain_config_mistakes():
        model = _outline(lambda: MODELS.build(options))
    if scope in _DENSE_SIZES:
        from ..mm.flops import dense_outputs

        return Subject(path, model, (3, *_DENSE_SIZES[scope]), dense_outputs)
    kind, network = cfg.model.type, getattr(model, "model", None)
    if kind not in ("TimmClassifier", "UNetSegmentor"):
        raise ConfigError(
            f"Config '{path}' describes a {kind}; only classifiers, detectors and segmentors are counted."
        )
    channels, *size = getattr(network, "pretrained_cfg", {}).get("input_size") or (3, 224, 224)
    channels = getattr(network, "in_chans", cfg.model.get("model", {}).get("in_chans", channels))
    side = _side(cfg) or size
    size = (side, side) if isinstance(side, int) else tuple(side)[-2:]
    return Subject(path, network, (channels, *size), published=published(options.get("model", {}).get("name", ".")))


def count_subject(
    build: Build, size: tuple[int, int] | None = None, kind: str = "paper", backward: bool = False
) -> tuple[Subject, Cost]:
    """Build a subject and count it.

    Args:
        build: One of `find_subjects`.
        size: (H, W) of the image; None for the usual size.
        kind, backward: See `vssm.profiling.count`.

    Raises:
        UserError: It cannot be built, or does not take such an image.
    """
    subject = build(size)
    input_size = subject.input_size if size is None else (subject.input_size[0], *size)
    try:
        return subject, count(subject.model, input_size, kind, backward, forward=subject.forward)
    except (AssertionError, RuntimeError, ValueError) as error:
        image = " x ".join(map(str, input_size))
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"'{subject.name}' cannot be counted with an image of {image}: {reason[0].rstrip('.')}."
        ) from error
