"""Pictures of scan patterns: in which order the routes visit the pixels of a map, or the voxels of a volume."""

import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vssm_kernels import Route, route_order
from vssm_kernels.routes import decode_routes, encode_routes

from .. import scans
from .._errors import UserError, did_you_mean
from ..models import families
from ..scans import CROSS_3D, MULTIHEAD_PATTERNS, TRI_ORIENTED
from .canvas import hide_axes, new_figure, save_figure, write_picture
from .palette import FAINT, INK, WRONG

__all__ = ["FAMILIES", "PATTERNS", "VOLUME_PATTERNS", "animate_routes", "patterns_of", "plot_routes", "scan_sequences"]

# How many frames an animation may have, and how many colours, without the one that stands for "as before".
_MOST_FRAMES, _COLOURS = 500, 96


def _rows() -> tuple[dict[str, tuple], dict[str, tuple[str, ...]]]:
    """Patterns by title, and the titles of each family by its name; families share the row of a pattern."""
    declared = [(family.name, family.title, family.scan_patterns) for family in families()]
    declared.append(("mhs-vm", "MHS-VM", MULTIHEAD_PATTERNS))  # the networks with it are no classifiers
    users: dict[tuple[str, tuple], list[tuple[str, str]]] = {}
    for name, title, patterns in declared:
        for pattern in patterns.items():
            users.setdefault(pattern, []).append((name, title))
    rows: dict[str, tuple] = {}
    names: dict[str, tuple[str, ...]] = {}
    # The widest rows first.
    for (what, routes), found in sorted(users.items(), key=lambda item: -len(_single_routes(item[0][1]))):
        row = f"{', '.join(title for _, title in found)}: {what}"
        rows[row] = routes
        for name, _ in found:
            names[name] = (*names.get(name, ()), row)
    return rows, names


def _single_routes(pattern: tuple) -> list[tuple[Route, int]]:
    """The routes of a pattern with the number of the sequence that each belongs to."""
    entries = [(entry,) if isinstance(entry, Route) else entry for entry in pattern]
    return [(route, sequence) for sequence, entry in enumerate(entries) for route in entry]


_ROWS = _rows()
# The families' patterns, one row of the picture each, and the rows of each family.
PATTERNS = _ROWS[0]
FAMILIES = _ROWS[1]
# Those of `SS3D`; a volume is drawn as planes, one behind the other.
VOLUME_PATTERNS = {"SS3D: six directions": CROSS_3D, "SS3D: three orientations (SegMamba)": TRI_ORIENTED}
# Planes of such a volume, and how far each is to the right of the one before, and above it, in voxels.
_DEPTH, _BEHIND = 3, 0.42


def scan_sequences() -> dict[str, list[list[Route]]]:
    """Every pattern of the families, then others of `vssm.scans`, by title: a list of routes for each sequence."""
    named = {name: getattr(scans, name) for name in ("RASTER", "SNAKE", "DIAGONAL", "SPIRAL", "BIDIRECTIONAL")}
    patterns = PATTERNS | {f"vssm.scans.{name}": routes for name, routes in named.items()}
    return {title: decode_routes(encode_routes(routes)) for title, routes in patterns.items()}


def plot_routes(
    path: str | os.PathLike, patterns: Mapping[str, tuple] = PATTERNS, height: int = 6, width: int = 6
) -> Path:
    """Draw scan patterns, one or two in a row: every route as a line over the map, from dark to light.

    A ring is around the pixel that the route begins with.

    Args:
        path: The picture to write; its suffix chooses the format.
        patterns: Tuples of routes (or of joined routes, whose colours run on) by title.
        height: Rows of the map. A volume has three such planes.
        width: Columns of the map.

    Returns:
        The path.

    Raises:
        ValueError: There is no pattern, or the map has no pixel.
        UserError: The suffix is no picture's, the file cannot be written, or routes are over four dimensions or more.
        MissingExtraError: Matplotlib is not installed.
    """
    figure, draw, steps = _lay_out(patterns, height, width)
    draw(steps)
    return save_figure(figure, path)


def animate_routes(
    path: str | os.PathLike,
    patterns: Mapping[str, tuple] = PATTERNS,
    height: int = 6,
    width: int = 6,
    dpi: int = 100,
    seconds_per_pixel: float = 0.12,
) -> Path:
    """Draw scan patterns as `plot_routes` does, pixel by pixel, as an animated GIF that repeats.

    All sequences walk at once, a pixel a frame; joined routes one after the other.

    Args:
        path: The GIF to write.
        patterns: See `plot_routes`.
        height: Rows of the map.
        width: Columns of the map.
        dpi: Pixels of the picture to an inch; all patterns together are 7 inches wide.
        seconds_per_pixel: How long a frame is shown.

    Returns:
        The path.

    Raises:
        ValueError: There is no pattern, or the map has no pixel.
        UserError: The path has another suffix, the map is too large, or the file cannot be written.
        MissingExtraError: Matplotlib is not installed.
    """
    if Path(path).suffix.lower() != ".gif":
        raise UserError(f"An animation is written as .gif, not as '{path}'.")
    figure, draw, steps = _lay_out(patterns, height, width)
    if steps > _MOST_FRAMES:
        raise UserError(f"An animation of {steps} frames is too long, {_MOST_FRAMES} are allowed: take a smaller map.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # what stands does not move while the walks go on
    frames = []
    for step in range(1, steps + 1):
        draw(step)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    # One palette for all frames; where a frame is as the one before, it is transparent, which costs next to nothing.
    palette = frames[-1].quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pixels = [np.asarray(frame) for frame in frames]
    for number in range(1, steps):
        changes = np.where(pixels[number] == pixels[number - 1], _COLOURS, pixels[number]).astype(np.uint8)
        frames[number] = Image.fromarray(changes, "P")
        frames[number].putpalette(palette.getpalette())
    times = [round(1000 * seconds_per_pixel)] * (steps - 1) + [1500]

    def write(part: Path) -> None:
        options = dict(save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=False)
        frames[0].save(part, transparency=_COLOURS, disposal=1, **options)

    return write_picture(path, write)


def _lay_out(patterns: Mapping[str, tuple], height: int, width: int) -> tuple[Any, Callable[[int], None], int]:
    """The figure without any walk, what draws the walks up to a number of steps, and the largest such number."""
    if not patterns or height < 1 or width < 1:
        raise ValueError(f"plot_routes needs a pattern and a map, got {len(patterns)} patterns of {height} x {width}")
    rows = {title: _single_routes(pattern) for title, pattern in patterns.items()}
    depth = _DEPTH if any(route.axes for row in rows.values() for route, _ in row) else 1
    behind = _BEHIND * (depth - 1)
    # Two patterns side by side where there are several of at most four routes, as wide as the documentation's column.
    columns = max(len(row) for row in rows.values())
    beside = 2 if len(rows) > 1 and columns <= 4 else 1
    bands = -(-len(rows) // beside)
    side = 7.0 / (beside * columns) if beside > 1 else min(7.0 / columns, 1.6)
    titles = {title: textwrap.fill(title, 50 if beside > 1 else 80) for title in rows}
    lines = 1 + max(title.count("\n") for title in titles.values())
    band_height = side * min((height + behind) / (width + behind), 3) + 0.15 + 0.15 * lines
    figure = new_figure(max(side * columns * beside, 3.5), band_height * bands)
    walks: list[_Walk] = []
    places = figure.subfigures(bands, beside, squeeze=False).flat
    for band, (title, row) in zip(places, rows.items(), strict=False):
        band.suptitle(titles[title], x=0.02, ha="left", fontsize=8, color=INK)
        orders = [_places(route, height, width) for route, _ in row]
        panels = band.subplots(1, columns, squeeze=False)
        hide_axes(panels)
        for i, axes in enumerate(panels[0]):
            if i >= len(row) or not orders[i]:
                continue
            # Joined routes share a sequence, so the colour goes on where the route before it stopped.
            sequence = row[i][1]
            joined = [len(points) for points, (_, other) in zip(orders, row, strict=True) if other == sequence]
            earlier = sum(1 for _, other in row[:i] if other == sequence)
            before = sum(joined[:earlier])
            grid = _places(Route(axes=(0, 1, 2)) if row[i][0].axes else Route(), height, width)
            axes.scatter(*zip(*grid, strict=True), s=3, c=FAINT)
            axes.set(xlim=(-0.7, width + behind - 0.3), ylim=(height - 0.3, -0.7 - behind), aspect="equal")
            walks.append(_Walk(axes, orders[i], before, sum(joined)))

    def draw(step: int) -> None:
        for walk in walks:
            walk.draw(step)

    return figure, draw, max((walk.before + len(walk.points) for walk in walks), default=1)


def _places(route: Route, height: int, width: int) -> list[tuple[float, float]]:
    """Where the pixels that a route visits are drawn, in order: (to the right, down)."""
    if len(route.axes) > 3:
        raise UserError(f"Routes over {len(route.axes)} dimensions cannot be drawn, those over two or three can.")
    size = (_DEPTH, height, width) if len(route.axes) == 3 else (height, width)
    places = []
    for pixel in route_order(route, *size).tolist():
        plane, place = divmod(pixel, height * width)
        places.append((place % width + _BEHIND * plane, place // width - _BEHIND * plane))
    return places


class _Walk:
    """One route on its panel: a line from dark to light, a ring around its first pixel."""

    def __init__(self, axes: Any, points: list[tuple[float, float]], before: int, total: int):
        from matplotlib.collections import LineCollection

        self.points, self.before = points, before
        self.lines = LineCollection([], cmap="viridis", linewidths=1.6, zorder=2)
        self.lines.set_clim(0, total - 1)
        axes.add_collection(self.lines)
        self.dots = axes.scatter([], [], c=[], cmap="viridis", vmin=0, vmax=total - 1, s=9, zorder=3)
        self.ring = axes.scatter([], [], s=42, facecolors="none", edgecolors=WRONG, linewidths=1.4, zorder=4)

    def draw(self, step: int) -> None:
        """Show the walk after as many steps of its sequence."""
        points = self.points[: max(step - self.before, 0)]
        times = [self.before + t for t in range(len(points))]
        self.lines.set_segments([points[t : t + 2] for t in range(len(points) - 1)])
        self.lines.set_array(times[:-1])
        self.dots.set_offsets(points or [(math.nan, math.nan)])
        self.dots.set_array(times or [0])
        self.ring.set_offsets(points[:1] or [(math.nan, math.nan)])


def patterns_of(names: Sequence[str]) -> dict[str, tuple]:
    """Scan patterns by the names of families or of models.

    Args:
        names: Keys of ``FAMILIES``, "volumes" for those of `SS3D`, or names of timm's registry.

    Returns:
        Patterns by title. A model has one for each different pattern of its mixers.

    Raises:
        UserError: A name is neither, or a model's mixers have no routes.
    """
    import timm

    patterns: dict[str, tuple] = {}
    for name in names:
        if name == "volumes":
            patterns |= VOLUME_PATTERNS
            continue
        if name in FAMILIES:
            patterns |= {title: PATTERNS[title] for title in FAMILIES[name]}
            continue
        if not timm.is_model(name):
            near = did_you_mean(name, [*FAMILIES, *timm.list_models()])
            raise UserError(
                f"'{name}' is no family ({', '.join(FAMILIES)}), not volumes, and no model that timm knows{near}."
            )
        model = timm.create_model(name)
        found = {}
        for module in model.modules():
            if hasattr(module, "route_code"):
                sequences = tuple(tuple(routes) for routes in decode_routes(module.route_code))
                found[f"{name}: {type(module).__name__}"] = sequences
        if not found:
            raise UserError(f"'{name}' scans along no routes: every position of it sees all others at once, or none.")
        patterns |= found
    return patterns
