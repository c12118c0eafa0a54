"""The blank figure that every picture begins with, and the way in which it is written.

Matplotlib's object interface is used throughout: no window system, no global state.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._errors import UserError
from .._files import write_beside
from .._optional import require
from .palette import FAINT, INK

__all__ = [
    "hide_axes",
    "new_figure",
    "plain_axes",
    "save_figure",
    "size_of",
    "write_picture",
]


def new_figure(width: float, height: float) -> Any:
    """Make an empty white figure.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        matplotlib's figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def plain_axes(axes: Any) -> None:
    """Give axes soft grey lines: two spines, and a grid for the heights."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def hide_axes(grid: Any) -> None:
    """Take frames and ticks from every panel of a grid."""
    for axes in grid.flat:
        axes.set_axis_off()


def size_of(picture: Any) -> tuple[int, int]:
    """Return (height, width) of a Pillow image or an array (H, W, ...)."""
    return (picture.height, picture.width) if hasattr(picture, "height") else tuple(picture.shape[:2])


def save_figure(figure: Any, path: str | os.PathLike) -> Path:
    """Write a figure; the suffix chooses the format. See `write_picture`.

    Raises:
        UserError: The suffix is no format of a picture, or the file cannot be written.
    """
    formats = figure.canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in formats:
        raise UserError(f"'{path}' has no suffix of a picture; there are {', '.join(sorted(formats))}.")
    return write_picture(path, figure.savefig)


def write_picture(path: str | os.PathLike, write: Callable[[Path], Any]) -> Path:
    """Let a function write a picture, whole or not at all; its folder is made.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        write_beside(path, write)
    except OSError as error:
        raise UserError(f"The picture '{path}' cannot be written: {error.strerror or error}.") from error
    return Path(path)
