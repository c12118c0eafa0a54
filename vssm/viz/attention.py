"""The "attention" of scans: how much a pixel of a feature map takes from every other one, drawn over the image.

VMamba (arXiv 2401.10166) reads a scan as attention: the weights of one position on all others, averaged
over channels, are a row of a map of L x L. Mixers say themselves how they are linear; see `vssm.scans.linear`.

Letters: h x w map of a scan's input, H x W map of its result, L = H W.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UserError, did_you_mean
from .._progress import Progress, quietly
from ..models import TokenEmbedding
from ..scans import LinearScan, is_scan, scan_weights
from .canvas import hide_axes, new_figure, save_figure, size_of
from .features import feature_maps, require_all_tokens
from .palette import INK, WRONG
from .tokens import PatchScans

__all__ = [
    "Attention",
    "attention_maps",
    "attention_rollout",
    "choose_scans",
    "freeze_scans",
    "look_from",
    "plot_attention",
    "record_scans",
]

# Positions whose gradients are taken at once for a roll-out, and the largest map that has one.
_CHUNK, _ROLLOUT_LIMIT = 32, 6400


@dataclass(frozen=True)
class Attention:
    """How much one pixel of a mixer's map takes from each of them.

    Attributes:
        mixer: The module's name.
        pixel: (row, column) on the map.
        merged: All routes together, (H, W).
        routes: Each route's own map (h, w) by its name; of a branch of half resolution, a map of that size.
        rollout: The roll-out over the blocks up to this one, (H, W), or None.
    """

    mixer: str
    pixel: tuple[int, int]
    merged: Tensor
    routes: dict[str, Tensor] = field(default_factory=dict)
    rollout: Tensor | None = None


def freeze_scans(mixer: nn.Module, x: Tensor) -> list[LinearScan]:
    """Ask a mixer for its scans, as they are for one map.

    Args:
        mixer: In evaluation mode.
        x: Its input (1, H, W, C).

    Returns:
        One scan; two for the multi-scale mixer, the second on a map of half the size.

    Raises:
        TypeError: The module does not say how it is linear.
    """
    if not is_scan(mixer):
        raise TypeError(f"{type(mixer).__name__} is no scan of vssm.scans, nor has it a method linear_scans")
    return mixer.linear_scans(x)


def record_scans(network: nn.Module, image: Tensor) -> dict[str, tuple[nn.Module | PatchScans, Tensor]]:
    """Run a network over one image and keep what its scans were given.

    Args:
        network: Any network with mixers that have the method `linear_scans`.
        image: (1, C, H, W), as the network takes it.

    Returns:
        The mixers with their inputs (1, H', W', C'), by name, in the order in which they ran. In a net with a class
        token they are `PatchScans`, with the patches.

    Raises:
        UserError: The network has no scan, or prunes tokens.
    """
    require_all_tokens(network)
    names = {module: name for name, module in network.named_modules() if is_scan(module)}
    if not names:
        raise UserError(f"{type(network).__name__} has no scan of vssm.scans, so there is no attention of one to draw.")
    recorded: dict[str, tuple[nn.Module, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        recorded[names[module]] = (module, inputs[0].detach())

    hooks = [module.register_forward_pre_hook(keep) for module in names]
    try:
        with torch.no_grad():
            maps = feature_maps(network, image)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = getattr(network, "tokens", None)
    if not isinstance(tokens, TokenEmbedding) or tokens.cls_token is None:
        return recorded
    size = (maps[0].shape[2], maps[0].shape[3])
    seen = {name: PatchScans(mixer, x, tokens, size) for name, (mixer, x) in recorded.items()}
    return {name: (scans, scans.patches(scans.x)) for name, scans in seen.items()}


def attention_maps(mixer: nn.Module, x: Tensor, pixel: tuple[int, int], name: str = "") -> Attention:
    """Compute the attention of one pixel of one mixer, for each route and merged.

    A route's map is the mean over its channels of the weights W_ts; the merged one is their sum over all routes and
    channels, divided by the width of the merged map: routes over the same channels add up, groups and heads are
    averaged. Weights on a map of half the size are spread evenly over the pixels that a cell stands for.

    Args:
        mixer: A mixer that has the method `linear_scans`.
        x: Its input (1, H, W, C).
        pixel: (row, column) on the H x W map.
        name: For the result.

    Raises:
        UserError: The pixel is outside of the map.
    """
    height, width = x.shape[1:3]
    row, column = pixel
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(f"The pixel (row {row}, column {column}) is outside of the map of {height} x {width} pixels.")
    position = torch.tensor([row * width + column], device=x.device)
    routes: dict[str, Tensor] = {}
    merged = torch.zeros(height, width, dtype=x.dtype, device=x.device)
    for scan in freeze_scans(mixer, x):
        weights = [scan_weights(scan, position, route)[0] for route in range(len(scan.routes))]
        for title, one in zip(scan.routes, weights, strict=True):
            # Heads walk the same route in different channels.
            routes[_free(title, routes)] = one.mean(-1)
        merged += _spread(sum(weights).sum(-1)[None] / scan.channels, height, width)[0]
    return Attention(name, (row, column), merged, routes)


def attention_rollout(
    blocks: Sequence[tuple[nn.Module, Tensor]], pixel: tuple[int, int], progress: Progress = quietly
) -> Tensor:
    """Follow the attention of a pixel through several blocks (roll-out; Abnar and Zuidema, arXiv 2005.00928).

    Each block is half its merged attention and half identity, for the residual path. A row of attention may hold both
    signs: its absolute values are taken, divided by their sum.

    Args:
        blocks: Mixers and their inputs (1, H, W, C) on maps of one size, the first block first.
        pixel: (row, column), of the last block's map.
        progress: Wraps the loop over the blocks, with a title.

    Returns:
        (H, W), not negative, with the sum 1.

    Raises:
        UserError: The map has more positions than whose maps are computed in acceptable time.
    """
    height, width = blocks[-1][1].shape[1:3]
    length = height * width
    if length > _ROLLOUT_LIMIT:
        raise UserError(
            f"A roll-out needs the attention of all {length} positions of the {height} x {width} map; it is offered up "
            f"to {_ROLLOUT_LIMIT}: choose a later stage or a smaller image."
        )
    flow = torch.zeros(length, dtype=torch.float64)
    flow[pixel[0] * width + pixel[1]] = 1
    for mixer, x in progress(list(reversed(blocks)), "roll-out"):
        attention = _merged_matrix(freeze_scans(mixer, x), height, width).abs().double().cpu()
        attention /= attention.sum(1, keepdim=True).clamp_min(1e-300)
        flow = 0.5 * (flow + flow @ attention)
    return (flow / flow.sum()).view(height, width).float()


def _merged_matrix(scans: Sequence[LinearScan], height: int, width: int) -> Tensor:
    """Compute the merged attention of all positions on all positions, (L, L)."""
    positions = torch.arange(height * width, device=scans[0].source.device)
    parts = [
        sum(_spread(scan_weights(scan, chunk).sum(-1) / scan.channels, height, width) for scan in scans)
        for chunk in positions.split(_CHUNK)
    ]
    return torch.cat(parts).flatten(1)


def _spread(weights: Tensor, height: int, width: int) -> Tensor:
    """Spread maps (Q, h, w) to (Q, H, W), the sum kept: each pixel gets an even part of the cell that it lies in."""
    for dim, size in ((1, height), (2, width)):
        cells = torch.arange(size, device=weights.device) * weights.shape[dim] // size
        shares = 1 / torch.bincount(cells, minlength=weights.shape[dim]).to(weights)
        shape = [1, -1, 1] if dim == 1 else [1, 1, -1]
        weights = (weights * shares.view(shape)).index_select(dim, cells)
    return weights


def _free(title: str, taken: Mapping[str, Any]) -> str:
    """Number the title if it is taken already."""
    number = 2
    free = title
    while free in taken:
        free, number = f"{title} ({number})", number + 1
    return free


def choose_scans(recorded: Mapping[str, Any], wanted: Sequence[str] | None) -> list[str]:
    """Choose the mixers to draw.

    Args:
        recorded: What `record_scans` gave.
        wanted: Names, or beginnings of names up to a dot: the last mixer of each is taken; None: the last of every
            top-level stage.

    Returns:
        Their names.

    Raises:
        UserError: A name fits no mixer.
    """
    if wanted is None:
        stages: dict[tuple, str] = {}
        for name, (_, x) in recorded.items():
            # "stages.2.blocks.1.mixer" belongs to "stages.2", "blocks.1.mixer" to the one stage of a plain net; the
            # size keeps stages of other networks apart.
            stages[(f".{name}".rsplit(".blocks.", 1)[0], tuple(x.shape[1:3]))] = name
        return list(stages.values())
    chosen = []
    for name in wanted:
        fitting = [other for other in recorded if other == name or other.startswith(f"{name}.")]
        if not fitting:
            near = did_you_mean(name, recorded)
            raise UserError(f"There is no scan '{name}'{near}; there are {', '.join(recorded)}.")
        chosen.append(fitting[-1])
    return list(dict.fromkeys(chosen))


def look_from(
    recorded: Mapping[str, tuple[nn.Module, Tensor]],
    name: str,
    place: tuple[float, float],
    rollout: bool = False,
    progress: Progress = quietly,
) -> Attention:
    """Compute the attention of the pixel of a recorded mixer's map that lies at a place of the image.

    Args:
        recorded: What `record_scans` gave.
        name: Of the mixer.
        place: (down, across), each from 0 to below 1, as shares of the image's sides.
        rollout: Roll out over the mixers before this one whose maps have its size and which ran next to each other.
        progress: Wraps the roll-out's loop over the mixers, with a title.
    """
    mixer, x = recorded[name]
    height, width = x.shape[1:3]
    pixel = (int(place[0] * height), int(place[1] * width))
    found = attention_maps(mixer, x, pixel, name)
    if not rollout:
        return found
    names = list(recorded)
    last = names.index(name)
    first = last
    while first > 0 and recorded[names[first - 1]][1].shape[1:3] == x.shape[1:3]:
        first -= 1
    flow = attention_rollout([recorded[other] for other in names[first : last + 1]], pixel, progress)
    return Attention(found.mixer, found.pixel, found.merged, found.routes, flow)


def plot_attention(picture: Any, attentions: Sequence[Attention], path: str | os.PathLike, columns: int = 8) -> Path:
    """Draw the attention of a pixel in several mixers: the image, all routes together, and each route.

    Every map is drawn as the absolute value of the weights over the largest of them, to the power 0.5, so that weak
    weights are seen too. In a roll-out the pixel itself, which keeps most, is left out of that largest. A box marks the
    pixel.

    Args:
        picture: The image, a Pillow image or (H, W, 3).
        attentions: Of which mixers.
        path: The picture to write; its suffix chooses the format.
        columns: Panels in a row.

    Returns:
        The path.

    Raises:
        ValueError: There is nothing to draw.
    """
    if not attentions:
        raise ValueError("plot_attention needs at least one attention map")
    rows: list[list[tuple[str, Tensor | None]]] = []
    for attention in attentions:
        panels: list[tuple[str, Tensor | None]] = [("image", None), ("all routes", attention.merged)]
        if attention.rollout is not None:
            panels.append(("roll-out", attention.rollout))
        if len(attention.routes) > 1:
            panels += attention.routes.items()
        rows.append(panels)
    columns = min(columns, max(len(panels) for panels in rows))
    heights = [-(-len(panels) // columns) for panels in rows]
    height, width = size_of(picture)
    side = max(7.0 / columns, 1.0)  # as wide as the documentation's column
    figure = new_figure(side * columns, sum(side * height / width * lines + 0.4 * lines + 0.25 for lines in heights))
    bands = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for band, lines, panels, attention in zip(bands, heights, rows, attentions, strict=True):
        shape = " x ".join(map(str, attention.merged.shape))
        band.suptitle(f"{attention.mixer}, {shape} positions", x=0.01, ha="left", fontsize=8.5, color=INK)
        grid = band.subplots(lines, columns, squeeze=False)
        hide_axes(grid)
        for axes, (title, heat) in zip(grid.flat, panels, strict=False):
            axes.set_title(textwrap.fill(title, int(14 * side)), fontsize=8, color=INK, pad=3)
            axes.imshow(picture, extent=(0, width, height, 0))
            if heat is not None:
                shown = heat.detach().float().cpu().abs()
                others = shown.clone()
                if heat is attention.rollout:
                    others[attention.pixel] = 0
                shown = (shown / others.max().clamp_min(1e-30)).clamp_max(1).sqrt()
                axes.imshow(shown, cmap="magma", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest")
            _mark(axes, attention, height, width)
    return save_figure(figure, path)


def _mark(axes: Any, attention: Attention, height: int, width: int) -> None:
    from matplotlib.patches import Rectangle

    h, w = height / attention.merged.shape[0], width / attention.merged.shape[1]
    row, column = attention.pixel
    for colour, line in (("white", 2.8), (WRONG, 1.4)):
        axes.add_patch(Rectangle((column * w, row * h), w, h, fill=False, edgecolor=colour, linewidth=line))
