"""What a shell completes: names of models and configs, found without PyTorch."""

import argparse
from collections.abc import Callable, Iterable

__all__ = ["completes", "config_names", "model_names", "names"]


def completes(action: argparse.Action, names: Callable[..., Iterable[str]]) -> None:
    """Let argcomplete offer names for an argument.

    Args:
        action: What ``add_argument`` returned.
        names: One of the functions below; argcomplete keeps those that begin as the word does, and where none does
            the shell completes files.
    """
    action.completer = names


def model_names(**_) -> list[str]:
    """Return the models that something was published for; asking timm's registry would take seconds."""
    from ..published import COLLECTIONS, expand

    return sorted({name for found in COLLECTIONS.values() for group in found.variants for name in expand(group)})


def config_names(**_) -> list[str]:
    """Return the short names of the package's configs."""
    from .. import _configs

    return list(_configs.config_names())


def names(**_) -> list[str]:
    """Return both."""
    return [*model_names(), *config_names()]
