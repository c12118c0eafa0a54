"""The configs that travel with the package, by their short names: the files' names without ``.py``."""

import fnmatch
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from ._errors import UserError, did_you_mean

__all__ = ["ConfigError", "config_folder", "config_names", "find_config", "match_configs"]


class ConfigError(UserError):
    """A config, or an option given over it, cannot be used."""


def config_folder() -> Path:
    """Return the folder of the package's configs.

    A wheel has them in the package. A clone has them beside it, where an editable installation reads them too.

    Raises:
        ConfigError: They are in neither place.
    """
    here = Path(__file__).parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / "classification" / "_base_").is_dir():
            return folder
    raise ConfigError(f"The package in '{here}' was installed without its configs; install it anew, or give a path.")


@functools.cache
def _paths(folder: Path) -> dict[str, Path]:
    paths = (path for path in folder.glob("*/*.py") if path.parent.name != "_base_")
    return {path.stem: path for path in sorted(paths, key=lambda path: (path.parent.name, path.name))}


def config_names() -> dict[str, Path]:
    """Return the files of the package's configs by short name, in the order of tasks and names."""
    return _paths(config_folder())


def match_configs(patterns: Sequence[str]) -> list[str]:
    """Return the short names that match any of the patterns; these are shell wildcards such as "mask-rcnn*"."""
    return [name for name in config_names() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def find_config(word: str) -> str:
    """Return the path that stands for a config, given by its path or by its short name.

    Args:
        word: A path, which has a folder in it or ends in ``.py``; otherwise a name.

    Returns:
        The path as it was given, or that of the package's config. A path need not exist.

    Raises:
        ConfigError: No config has this name; the message gives near ones.
    """
    if word.endswith(".py") or os.path.basename(word) != word or os.path.isfile(word):
        return word
    known = config_names()
    if word in known:
        return str(known[word])
    longer = match_configs([f"*{word}*"]) if word else []
    if len(longer) > 1:
        named = ", ".join(longer[:3]) + (" and more" if len(longer) > 3 else "")
        raise ConfigError(f"Config '{word}' does not exist: {len(longer)} names have it as a part, {named}.")
    near = f" (did you mean '{longer[0]}'?)" if longer else did_you_mean(word, known)
    raise ConfigError(f"Config '{word}' does not exist{near}; `vssm list configs` prints the names, and a path works.")
