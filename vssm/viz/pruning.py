"""Which patches of an image a plain net keeps where it prunes tokens."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .canvas import hide_axes, new_figure, save_figure, size_of
from .palette import INK

__all__ = ["plot_pruning"]


def plot_pruning(
    picture: Any, kept: Sequence[Tensor], sites: Sequence[int], path: str | os.PathLike, columns: int = 4
) -> Path:
    """Draw an image, and it once more for each site, with the patches that are pruned by then faded out.

    Args:
        picture: The image, a Pillow image or (H, W, 3).
        kept: Which patches are left behind each site, (h, w), bool; see `PlainBackbone.kept_patches`.
        sites: Indices of their blocks.
        path: The picture to write; its suffix chooses the format.
        columns: Panels in a row, at most.

    Returns:
        The path.
    """
    count = 1 + len(kept)
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = size_of(picture)
    side = 7.0 / columns  # as wide as the documentation's column
    figure = new_figure(7.0, rows * (side * height / width + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False)
    hide_axes(panels)
    extent = (0, width, height, 0)
    for number, axes in enumerate(list(panels.flat)[:count]):
        axes.imshow(picture, extent=extent)
        title = "image"
        if number:
            left = kept[number - 1].cpu()
            faded = F.interpolate((~left).float()[None, None], size=(height, width))[0, 0].numpy()
            axes.imshow(faded * 0 + 1, cmap="gray", vmin=0, vmax=1, alpha=0.88 * faded, extent=extent)
            title = f"behind block {sites[number - 1]}\n{int(left.sum())} of {left.numel()} patches"
        axes.set_title(title, fontsize=8, color=INK, pad=3)
    return save_figure(figure, path)
