"""Pictures of scan patterns: in which order the routes visit the pixels of a map."""

import os
from collections.abc import Mapping
from pathlib import Path

from vssm_kernels import Route, route_order

from ..scans.routes import ATROUS, CROSS, DIAGONAL, MULTISCALE, RASTER, SNAKE, SPIRAL
from .plots import FAINT, INK, WRONG, _figure

__all__ = ["PATTERNS", "plot_routes"]

# The families' patterns, one row of the picture each.
PATTERNS: dict[str, tuple] = {
    "VMamba, GroupMamba: cross": CROSS,
    "EfficientVMamba: atrous": ATROUS,
    "MSVMamba: multi-scale (the last three at half resolution, joined)": MULTISCALE,
    "MHS-VM: snake, diagonal": SNAKE + DIAGONAL,
    "MHS-VM: spiral, raster": SPIRAL + RASTER,
    "Spatial-Mamba: one direction": (Route(),),
}


def _single_routes(pattern: tuple) -> list[tuple[Route, int]]:
    """The routes of a pattern with the number of the sequence that each belongs to."""
    entries = [(entry,) if isinstance(entry, Route) else entry for entry in pattern]
    return [(route, sequence) for sequence, entry in enumerate(entries) for route in entry]


def plot_routes(
    path: str | os.PathLike, patterns: Mapping[str, tuple] = PATTERNS, height: int = 6, width: int = 6
) -> Path:
    """Draw scan patterns, a row each: every route as a line over the map, from dark to light.

    A ring is around the pixel that the route begins with.

    Args:
        path: The picture to write; its suffix chooses the format.
        patterns: Tuples of routes (or of joined routes, whose colours run on) by title.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        The path.

    Raises:
        ValueError: There is no pattern, or the map has no pixel.
        MissingExtraError: Matplotlib is not installed.
    """
    if not patterns or height < 1 or width < 1:
        raise ValueError(f"plot_routes needs a pattern and a map, got {len(patterns)} patterns of {height} x {width}")
    grid = [(x, y) for y in range(height) for x in range(width)]
    rows = {title: _single_routes(pattern) for title, pattern in patterns.items()}
    columns = max(len(row) for row in rows.values())
    figure = _figure(1.6 * columns + 0.4, 1.95 * len(rows))
    from matplotlib.collections import LineCollection

    for band, (title, row) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        band.suptitle(title, x=0.01, ha="left", fontsize=9, color=INK)
        lengths = [len(route_order(route, height, width)) for route, _ in row]
        for i, axes in enumerate(band.subplots(1, columns, squeeze=False)[0]):
            axes.set_axis_off()
            if i >= len(row) or not lengths[i]:
                continue
            route, sequence = row[i]
            order = route_order(route, height, width)
            points = [(int(p) % width, int(p) // width) for p in order]
            # Joined routes share a sequence, so the colour goes on where the route before it stopped.
            before = sum(n for n, (_, other) in zip(lengths[:i], row[:i], strict=True) if other == sequence)
            total = sum(n for n, (_, other) in zip(lengths, row, strict=True) if other == sequence)
            times = [before + t for t in range(len(points))]
            axes.scatter(*zip(*grid, strict=True), s=3, c=FAINT)
            segments = [points[t : t + 2] for t in range(len(points) - 1)]
            lines = LineCollection(segments, cmap="viridis", linewidths=1.6, zorder=2)
            lines.set_array(times[:-1])
            lines.set_clim(0, total - 1)
            axes.add_collection(lines)
            axes.scatter(*zip(*points, strict=True), c=times, cmap="viridis", vmin=0, vmax=total - 1, s=9, zorder=3)
            axes.scatter(*points[0], s=42, facecolors="none", edgecolors=WRONG, linewidths=1.4, zorder=4)
            axes.set(xlim=(-0.7, width - 0.3), ylim=(height - 0.3, -0.7), aspect="equal")
    figure.savefig(path)
    return Path(path)
