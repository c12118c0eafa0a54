"""Tables and pictures of predicted volumes."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import write_beside
from .._optional import require
from ..engine.checkpoint import write_atomically
from ..viz.palette import class_colours


def write_tables(table: Sequence[Sequence[str]], path: str | os.PathLike) -> tuple[Path, Path]:
    """Write a table as CSV and as markdown.

    Args:
        table: Rows of cells, the header first.
        path: Where to, without suffix.

    Returns:
        The two files.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|---" * len(table[0]) + "|")
    files = Path(f"{path}.csv"), Path(f"{path}.md")
    write_atomically(files[0], text.getvalue().encode())
    write_atomically(files[1], ("\n".join(lines) + "\n").encode())
    return files


def best_slices(label: np.ndarray, count: int) -> list[int]:
    """Choose slices with many labels: the fullest in each of ``count`` equal parts of the range that has labels.

    Args:
        label: Class numbers (D, H, W).
        count: How many slices.

    Returns:
        At most ``count`` slice numbers, in order.
    """
    filled = (label > 0).sum(axis=(1, 2))
    where = np.flatnonzero(filled) if filled.any() else np.arange(len(label))
    parts = np.array_split(where, min(count, len(where)))
    return [int(part[np.argmax(filled[part])]) for part in parts]


def plot_overlays(
    image: np.ndarray,
    labels: dict[str, np.ndarray],
    classes: Sequence[str],
    path: str | os.PathLike,
    title: str = "",
    rows: int = 3,
    flip: bool = True,
) -> None:
    """Draw slices of a volume, each next to a copy with one or more label volumes laid over it.

    Args:
        image: (D, H, W).
        labels: Title and class numbers (D, H, W) of each column after the first.
        classes: Names of the classes, the background first.
        path: The PNG to write.
        title: Above all.
        rows: How many slices.
        flip: Draw the first row of a slice at the bottom.
    """
    require("matplotlib", "train")
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    numbers = best_slices(next(iter(labels.values())), rows)
    columns = {"image": None, **labels}
    colours = class_colours(classes)
    width = 7.0 / len(columns)
    height = width * image.shape[1] / image.shape[2]
    figure = Figure(figsize=(7.0, height * len(numbers) + 0.7), dpi=150, layout="constrained", facecolor="white")
    grid = figure.subplots(len(numbers), len(columns), squeeze=False)
    low, high = np.percentile(image, (0.5, 99.5))
    origin = "lower" if flip else "upper"
    for place, (row, number) in enumerate(zip(grid, numbers, strict=True)):
        for axes, (name, label) in zip(row, columns.items(), strict=True):
            axes.set_axis_off()
            axes.imshow(image[number], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin=origin)
            if label is not None:
                shown = np.ma.masked_equal(label[number], 0)
                axes.imshow(
                    shown,
                    cmap=ListedColormap(colours),
                    vmin=0.5,
                    vmax=len(classes) - 0.5,
                    alpha=0.6,
                    origin=origin,
                    interpolation="nearest",
                )
            if place == 0:
                axes.set_title(name, fontsize=10)
        row[0].text(0.02, 0.02, f"slice {number}", transform=row[0].transAxes, color="white", fontsize=8)
    figure.legend(
        handles=[Patch(color=c, label=n) for c, n in zip(colours, classes[1:], strict=True)],
        loc="outside lower center",
        ncols=min(len(classes) - 1, 4),
        fontsize=9,
        frameon=False,
    )
    if title:
        figure.suptitle(title, fontsize=11)
    write_beside(path, lambda part: figure.savefig(part))


def plot_masks(image: Any, mask: np.ndarray, path: str | os.PathLike) -> None:
    """Lay a mask over a photograph: its outline and a tint.

    Args:
        image: RGB Pillow image of W x H pixels.
        mask: (H, W), 0 or not.
        path: The picture to write.
    """
    from PIL import Image
    from scipy import ndimage

    pixels = np.asarray(image, dtype=np.float32)
    mask = mask.astype(bool)
    colour = np.array([230, 159, 0], dtype=np.float32)
    pixels = np.where(mask[..., None], 0.75 * pixels + 0.25 * colour, pixels)
    edge = mask ^ ndimage.binary_erosion(mask, iterations=max(1, min(mask.shape) // 200))
    pixels[edge] = colour
    write_beside(path, lambda part: Image.fromarray(pixels.astype(np.uint8)).save(part))
