"""Models by timm's names and whatever a run's config describes, to be counted."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from .._configs import find_config, match_configs
from .._errors import UserError
from .._tasks import task_of
from ..published import Published, published
from .cost import Cost
from .flops import Forward, count
from .models import names_of

__all__ = ["Subject", "count_subject", "find_subjects", "outline_of"]


@dataclass(frozen=True)
class Subject:
    """A network without weights, and how to run it.

    Attributes:
        name: The model's name, or the path of the config.
        model: The network; its tensors may be on the device "meta".
        input_size: (C, H, W) of the image it is usually counted at, or (C, D, H, W) of the volume.
        forward: What to run in place of the model's own forward, see `vssm.profiling.count`.
        published: What the authors published for it at that size, None where nothing is known.
    """

    name: str
    model: nn.Module
    input_size: tuple[int, ...]
    forward: Forward | None = None
    published: Published | None = None


# Builds a subject for images of (H, W), or for its usual ones.
Build = Callable[[tuple[int, int] | None], Subject]


def find_subjects(words: Sequence[str]) -> dict[str, Build]:
    """Find the models and configs that words stand for, checked but not built yet.

    Args:
        words: Names of timm's registry, names of the package's configs, wildcards of either, and paths of configs. A
            wildcard that models match stands for these alone.

    Returns:
        By name or path, a function of (H, W), or None for the usual size, that builds the subject. Models that are made
        for one size of image are made for that one.

    Raises:
        UserError: A name is unknown, or a wildcard matches nothing.
    """
    found: dict[str, Build] = {}
    for word in words:
        if word.endswith(".py") or os.sep in word:
            configs = [word]
        else:
            configs = [] if timm.list_models(word) else match_configs([word])
            if not configs and "-" in word:  # a config's name has one, a model's has none
                find_config(word)
        for config in configs:
            found[config] = lambda size, config=config: _from_config(config)
        for name in [] if configs else names_of([word]):
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


def outline_of(cfg: Mapping[str, Any]) -> nn.Module:
    """Build a config's model without weights; its tensors may be on the device "meta".

    Args:
        cfg: A run's config.

    Raises:
        ConfigError: The config names something that does not exist.
    """
    from mmengine.registry import MODELS

    from ..engine.config import explain_config_mistakes
    from ..engine.models import without_pretrained

    options = without_pretrained(cfg["model"])
    with explain_config_mistakes():
        return _outline(lambda: MODELS.build(options))


def _from_config(path: str) -> Subject:
    from ..engine.config import ConfigError, load_config

    cfg = load_config(path)
    if "type" not in (cfg.get("model") or {}):
        raise ConfigError(f"Config '{path}' describes no model.")
    return task_of(cfg).count(cfg, path)


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
