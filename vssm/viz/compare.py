"""Answers next to the truth: image, truth and prediction side by side, under one legend."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .canvas import hide_axes, new_figure, save_figure, size_of
from .palette import ANSWER, INK, RIGHT, TRUTH, class_colours

__all__ = ["FoundObject", "plot_label_maps", "plot_objects"]

_OVERLAP = 0.5  # of an answer's box with a true one, so that the answer is about that object


@dataclass(frozen=True)
class FoundObject:
    """An object in an image, true or found.

    Attributes:
        box: Left, top, width and height in pixels, as COCO's.
        name: Of its class.
    """

    box: tuple[float, float, float, float]
    name: str


def plot_label_maps(
    rows: Sequence[tuple[Any, np.ndarray, np.ndarray]], classes: Sequence[str], path: str | os.PathLike
) -> Path:
    """Draw images, a row each: the image, the true classes of its pixels, and those that a model found.

    Args:
        rows: An image (a Pillow image or an array (H, W, 3)), and class numbers (H, W), true and found. Pixels whose
            number stands for no class, such as 255, are not coloured.
        classes: Names of the classes, the background first, which is not coloured.
        path: The picture to write; its suffix chooses the format.

    Returns:
        The path.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = class_colours(classes)
    figure, grid = _panels([image for image, _, _ in rows])
    for line, (image, *labels) in zip(grid, rows, strict=True):
        for axes, label in zip(line, (None, *labels), strict=True):
            axes.imshow(image, extent=_extent(image))
            if label is not None:
                shown = np.ma.masked_outside(label, 1, len(classes) - 1)
                limits = dict(vmin=0.5, vmax=len(classes) - 0.5, interpolation="nearest", alpha=0.8)
                axes.imshow(shown, cmap=ListedColormap(colours), extent=_extent(image), **limits)
    seen = {int(number) for _, *labels in rows for label in labels for number in np.unique(label)}
    seen &= set(range(1, len(classes)))
    handles = [Patch(color=colours[number - 1], label=classes[number]) for number in sorted(seen)]
    figure.legend(handles=handles, loc="outside lower center", ncols=10, fontsize=8, frameon=False)
    return save_figure(figure, path)


def plot_objects(
    rows: Sequence[tuple[Any, Sequence[FoundObject], Sequence[FoundObject]]], path: str | os.PathLike
) -> Path:
    """Draw images, a row each: the image, its true objects, and those that a detector found.

    An answer is right if the true box that it overlaps most, by half or more, has its class and has no answer yet; a
    wrong one says what is there. A true object without an answer is outlined by dashes.

    Args:
        rows: An image, its true objects, and the objects found, the surest first.
        path: The picture to write; its suffix chooses the format.

    Returns:
        The path.
    """
    from matplotlib.lines import Line2D

    figure, grid = _panels([image for image, _, _ in rows])
    for line, (image, truth, found) in zip(grid, rows, strict=True):
        for axes in line:
            axes.imshow(image, extent=_extent(image))
        for thing in truth:
            _outline(line[1], thing.box, TRUTH, thing.name)
        answered: set[int] = set()
        for answer in found:
            overlaps = [overlap(answer.box, thing.box) for thing in truth]
            best = int(np.argmax(overlaps)) if overlaps else -1
            there = truth[best].name if best >= 0 and overlaps[best] >= _OVERLAP else None
            if there == answer.name and best not in answered:
                answered.add(best)
                _outline(line[2], answer.box, RIGHT, answer.name)
            else:
                is_there = "nothing" if there is None else "again" if best in answered else there
                _outline(line[2], answer.box, ANSWER, f"{answer.name}, is {is_there}")
        for number, thing in enumerate(truth):
            if number not in answered:
                _outline(line[2], thing.box, TRUTH, "", dashes=True)
    styles = {"truth": (TRUTH, "-"), "right": (RIGHT, "-"), "wrong": (ANSWER, "-"), "not found": (TRUTH, "--")}
    handles = [Line2D([], [], color=colour, linestyle=dash, label=name) for name, (colour, dash) in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return save_figure(figure, path)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    sides = [
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1)
    ]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def _panels(images: Sequence[Any]) -> tuple[Any, Any]:
    """A figure with three panels for each image, titled; as wide as the documentation's column."""
    shapes = [size_of(image) for image in images]
    heights = [7 / 3 * height / width for height, width in shapes]
    figure = new_figure(7.0, sum(heights) + 0.6)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.subplots(len(images), 3, squeeze=False, height_ratios=heights)
    hide_axes(grid)
    for axes, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(title, fontsize=9, color=INK, pad=4)
    return figure, grid


def _extent(image: Any) -> tuple[float, float, float, float]:
    height, width = size_of(image)
    return 0, width, height, 0


def _outline(axes: Any, box: Sequence[float], colour: str, text: str, dashes: bool = False) -> None:
    from matplotlib.patches import Rectangle

    left, top, width, height = box
    line = dict(edgecolor=colour, linewidth=1.6, linestyle="--" if dashes else "-")
    axes.add_patch(Rectangle((left, top), width, height, fill=False, **line))
    if text:
        behind = dict(facecolor=colour, edgecolor="none", pad=1.0)
        # Above the box, or inside where the image ends above it.
        side = "top" if top < 0.07 * max(axes.get_ylim()) else "bottom"
        axes.text(left, max(top, 0), text, fontsize=8, color="white", va=side, bbox=behind, clip_on=True)
