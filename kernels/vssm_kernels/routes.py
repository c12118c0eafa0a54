"""Routes: in which order a scan reads the pixels of an H x W map.

A scan pattern is data: a tuple of routes (or of joined routes). `route_table` says which pixels it visits, in order, on
one size of map. Gathering, merging, pictures of the scan order, the fused kernels and the tests all read that table.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .route_code import FIELDS, PATHS, Route, Routes, decode_routes, encode_routes

__all__ = [
    "FIELDS",
    "PATHS",
    "Route",
    "RouteTable",
    "Routes",
    "decode_routes",
    "encode_routes",
    "forget_tables",
    "gather",
    "keep_tables",
    "read_map",
    "read_map_by_slices",
    "route_length",
    "route_order",
    "route_table",
    "scatter",
    "sequence_lengths",
    "write_map",
    "write_map_by_slices",
]

# --------------------------------------------------------------------------------------------------------------------
# sizes


def _visited(route: Route, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that a route takes of an H x W map; symbolic for a symbolic size, which `range` would fix."""

    def count(size: int, offset: int, stride: int) -> int:
        return size if (offset, stride) == (0, 1) else max(0, -(-(size - offset) // stride))

    sizes = zip((height, width), route.offset, route.stride, strict=True)
    rows, columns = (count(*size) for size in sizes)
    return rows, columns


def route_length(route: Route, height: int, width: int) -> int:
    """Count the pixels that a route visits on an H x W map."""
    rows, columns = _visited(route, height, width)
    return rows * columns


def sequence_lengths(code: Sequence[int], height: int, width: int) -> list[int]:
    """Count the positions of each sequence of encoded routes on an H x W map."""
    return [sum(route_length(r, height, width) for r in sequence) for sequence in decode_routes(code)]


# --------------------------------------------------------------------------------------------------------------------
# what is kept

# All tables together, on all devices. A map of 333 x 200, the first of a large detector, takes about 3 MB.
_MOST_BYTES = 128 << 20

_kept: OrderedDict[tuple, tuple[Any, int]] = OrderedDict()
_kept_bytes = 0
_lock = threading.Lock()

Tables = TypeVar("Tables")


def _bytes(tables: Any) -> int:
    parts = (tables,) if isinstance(tables, Tensor) else tables
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))


def keep_tables(make: Callable[..., Tables]) -> Callable[..., Tables]:
    """Keep what a function made, for the next call with the same arguments.

    All functions so decorated share one store. It is bounded by bytes, not by entries, because detectors see hundreds
    of sizes of maps; what was not used for longest goes first.

    Args:
        make: A function of hashable arguments, the last a device, that returns tensors there: one, or a named tuple.

    Returns:
        The function. It makes the tensors anew where tensors are symbolic (in an exporter, say).
    """

    @wraps(make)
    def kept(*arguments) -> Tables:
        global _kept_bytes
        if type(torch.empty(0, device=arguments[-1])) is not Tensor:
            return make(*arguments)
        key = (make, *arguments)
        try:
            tables = _kept[key][0]
            _kept.move_to_end(key)
            return tables
        except KeyError:  # not there, or just dropped by another thread
            pass
        # What is kept must serve training too, and outlive a transform of torch.func that is under way.
        with torch.inference_mode(False), torch._C._DisableFuncTorch():
            made = make(*arguments)
        with _lock:
            if key not in _kept:
                _kept[key] = (made, _bytes(made))
                _kept_bytes += _kept[key][1]
            while _kept_bytes > _MOST_BYTES and len(_kept) > 1:
                _kept_bytes -= _kept.popitem(last=False)[1][1]
        return made

    return kept


def forget_tables() -> None:
    """Drop all tables that are kept."""
    global _kept_bytes
    with _lock:
        _kept.clear()
        _kept_bytes = 0


# --------------------------------------------------------------------------------------------------------------------
# the table of positions


class RouteTable(NamedTuple):
    """The pixels that encoded routes visit on one size of map.

    Attributes:
        positions: Row-major numbers of the pixels in the order visited, route after route, (P,) int32.
        starts: Where each route begins in `positions`, and the end of the last.
        first_route: The first route of each sequence, and the number of routes. A sequence is its routes joined.
    """

    positions: Tensor
    starts: tuple[int, ...]
    first_route: tuple[int, ...]

    def route(self, number: int) -> Tensor:
        """Take the positions of one route."""
        return self.positions[self.starts[number] : self.starts[number + 1]]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of positions of each sequence."""
        ends = [self.starts[route] for route in self.first_route]
        return tuple(end - start for start, end in pairwise(ends))


def _along_path(grid: Tensor, path: str) -> Tensor:
    """Read a grid (rows, columns) along a path: (rows * columns,)."""
    rows, columns = grid.shape
    if path == "snake":
        back = (torch.arange(rows, device=grid.device) % 2 == 1)[:, None]
        return torch.where(back, grid.flip(1), grid).flatten()
    if path == "diagonal":
        row = torch.arange(rows, device=grid.device)[:, None]
        diagonal = row + torch.arange(columns, device=grid.device)
        place = torch.where(diagonal % 2 == 1, row, rows - 1 - row)
        return grid.flatten()[(diagonal * rows + place).flatten().argsort()]
    if path == "spiral":
        rings = []
        while grid.numel():
            rings.append(grid[0])
            grid = grid[1:].rot90()
        return torch.cat(rings) if rings else grid.flatten()
    return grid.flatten()


@keep_tables
def _table(code: tuple[int, ...], height: int, width: int, device: torch.device) -> RouteTable:
    pixels = torch.arange(height * width, dtype=torch.int32, device=device).view(height, width)
    orders, first_route = [], [0]
    for sequence in decode_routes(code):
        for route in sequence:
            order = _along_path(_turn(_taken(pixels, route), route), route.path)
            orders.append(order.flip(0) if route.reverse else order)
        first_route.append(len(orders))
    return RouteTable(torch.cat(orders), tuple(accumulate(map(len, orders), initial=0)), tuple(first_route))


def route_table(code: Sequence[int], height: int, width: int, device: torch.device | str = "cpu") -> RouteTable:
    """Tell which pixels encoded routes visit on an H x W map, in which order.

    Args:
        code: What `encode_routes` gives.
        height: Rows of the map.
        width: Columns of the map.
        device: Where the table is; it is made there, and kept.

    Returns:
        The table. Do not write to it.

    Raises:
        ValueError: A size is symbolic, or the map has more pixels than int32 can number.
    """
    if not (isinstance(height, int) and isinstance(width, int)):
        raise ValueError(f"only raster routes can be followed on a map of any size, got {height} x {width}")
    if height * width > torch.iinfo(torch.int32).max:
        raise ValueError(f"the pixels of a map of {height} x {width} cannot be numbered in 32 bits")
    return _table(tuple(code), height, width, torch.device(device))


def route_order(route: Route, height: int, width: int) -> Tensor:
    """List the row-major numbers of the pixels (L,) that a route visits on an H x W map, in order, int64."""
    return route_table(encode_routes((route,)), height, width).positions.long()


@keep_tables
def _steps(code: tuple[int, ...], height: int, width: int, device: torch.device) -> Tensor:
    """The step of its sequence at which each route visits each pixel, (routes, H*W) int64; -1 where it does not."""
    table = _table(code, height, width, device)
    unvisited = torch.full((height * width,), -1, device=device)
    steps = []
    for first, last in pairwise(table.first_route):
        for number in range(first, last):
            order = table.route(number).long()
            start = table.starts[number] - table.starts[first]
            steps.append(unvisited.scatter(0, order, torch.arange(start, start + len(order), device=device)))
    return torch.stack(steps)  # nothing is written in place, for exporters


# --------------------------------------------------------------------------------------------------------------------
# one route: raster paths by slices, so that sizes of maps may be symbolic; other paths by the table


def _taken(x: Tensor, route: Route) -> Tensor:
    """The pixels of (..., H, W) that a route takes, as a map."""
    return x[..., route.offset[0] :: route.stride[0], route.offset[1] :: route.stride[1]]


def _mirror(x: Tensor, route: Route) -> Tensor:
    """Turn the last two dimensions over as the route asks; its own inverse."""
    axes = [axis for axis, turned in zip((-2, -1), route.mirror, strict=True) if turned]
    return x.flip(axes) if axes else x


def _turn(x: Tensor, route: Route) -> Tensor:
    """A map of the pixels taken as a route sees it: mirrored, then transposed."""
    x = _mirror(x, route)
    return x.transpose(-1, -2) if route.transpose else x


def gather(x: Tensor, route: Route) -> Tensor:
    """Read a channels-first map along a route.

    Args:
        x: (..., H, W).
        route: Any; of raster paths H and W may be symbolic.

    Returns:
        (..., L).
    """
    if route.path != "raster":
        height, width = x.shape[-2:]
        table = route_table(encode_routes((route,)), height, width, x.device)
        # PyTorch 2.6 differentiates index_select forwards for 64-bit indices alone.
        return x.flatten(-2).index_select(-1, table.positions.long())
    x = _turn(_taken(x, route), route).flatten(-2)
    return x.flip(-1) if route.reverse else x


def scatter(x: Tensor, route: Route, height: int, width: int) -> Tensor:
    """Put a sequence back on its map; the adjoint of `gather`. Nothing is written in place, for exporters.

    Args:
        x: (..., L).
        route: Any; of raster paths H and W may be symbolic.
        height: H.
        width: W.

    Returns:
        (..., H, W); pixels that the route does not visit are zero.
    """
    if route.path != "raster":
        code = tuple(encode_routes((route,)))
        route_table(code, height, width, x.device)  # its checks
        steps = _steps(code, height, width, x.device)[0]
        return _pick(x, -1, steps, route_length(route, height, width) == height * width).unflatten(-1, (height, width))
    rows, columns = _visited(route, height, width)
    if route.reverse:
        x = x.flip(-1)
    x = x.unflatten(-1, (columns, rows) if route.transpose else (rows, columns))
    if route.transpose:
        x = x.transpose(-1, -2)
    x = _mirror(x, route)
    if route.stride == (1, 1) and route.offset == (0, 0):
        return x
    # A start behind the end is an error under torch.func. Sizes that are symbolic are left as they are.
    down, right = (
        min(first, size) if isinstance(size, int) else first
        for first, size in zip(route.offset, (height, width), strict=True)
    )
    zeros = x.new_zeros(*x.shape[:-2], rows, width)
    x = torch.slice_scatter(zeros, x, -1, right, None, route.stride[1])
    zeros = x.new_zeros(*x.shape[:-2], height, width)
    return torch.slice_scatter(zeros, x, -2, down, None, route.stride[0])


def _pick(x: Tensor, dim: int, index: Tensor, complete: bool) -> Tensor:
    """`index_select`, with zeros for an index of -1; there is none if `complete`."""
    if complete:
        return x.index_select(dim, index)
    shape = list(x.shape)
    shape[dim] = 1
    return torch.cat((x.new_zeros(shape), x), dim).index_select(dim, index + 1)


# --------------------------------------------------------------------------------------------------------------------
# all sequences of a channels-last map at once; `read_map` and `write_map` are adjoint


def _one_length(code: Sequence[int], height: int, width: int) -> int:
    lengths = sequence_lengths(code, height, width)
    if any(length != lengths[0] for length in lengths):
        raise ValueError(f"sequences must be of one length, got {lengths} on a map of {height} x {width}")
    return lengths[0]


@keep_tables
def _read_index(code: tuple[int, ...], height: int, width: int, per_sequence: bool, device: torch.device) -> Tensor:
    """Rows of (H*W, [K,] ...) in the order of (L, K, ...)."""
    table = _table(code, height, width, device)
    count = len(table.lengths)
    index = table.positions.view(count, table.lengths[0]).mT
    if per_sequence:
        index = index.long() * count + torch.arange(count, device=device)
    return index.flatten().long()  # as in `gather`


def read_map(x: Tensor, code: Sequence[int], per_sequence: bool = False) -> Tensor:
    """Read a channels-last map along K sequences of equal length L.

    Args:
        x: (B, H, W, ...) for all sequences, or (B, H, W, K, ...) with `per_sequence`.
        code: Any routes, by `encode_routes`.
        per_sequence: Whether each sequence reads values of its own.

    Returns:
        (B, L, K, ...), contiguous.

    Raises:
        ValueError: The sequences differ in length on this map.
    """
    height, width = x.shape[1:3]
    shape = (_one_length(code, height, width), code[-FIELDS] + 1)
    index = _read_index(tuple(code), height, width, per_sequence, x.device)
    return x.flatten(1, 3 if per_sequence else 2).index_select(1, index).unflatten(1, shape)


@keep_tables
def _write_index(code: tuple[int, ...], height: int, width: int, device: torch.device) -> Tensor:
    """Rows of (L, K, ...) in the order of (H*W, routes, ...); -1 where a route does not visit a pixel."""
    sequences = decode_routes(code)
    own = [k for k, sequence in enumerate(sequences) for _ in sequence]
    steps = _steps(code, height, width, device).unbind()
    rows = [torch.where(step < 0, step, step * len(sequences) + k) for step, k in zip(steps, own, strict=True)]
    return torch.stack(rows, 1).flatten()


def write_map(y: Tensor, code: Sequence[int], height: int, width: int, merge: bool = True) -> Tensor:
    """Put K sequences of equal length L back on their channels-last map, summed where they meet.

    Args:
        y: (B, L, K, ...).
        code: Any routes, by `encode_routes`.
        height: H.
        width: W.
        merge: Sum the sequences; else only the routes joined in each.

    Returns:
        (B, H, W, ...), or (B, H, W, K, ...) without `merge`; pixels that no route visits are zero.

    Raises:
        ValueError: The sequences differ in length on this map, or y does not fit them.
    """
    sequences, routes = decode_routes(code), len(code) // FIELDS
    length = _one_length(code, height, width)
    if y.dim() < 3 or tuple(y.shape[1:3]) != (length, len(sequences)):
        raise ValueError(f"expected {length} positions of {len(sequences)} sequences, got shape {tuple(y.shape)}")
    complete = all(route_length(r, height, width) == height * width for s in sequences for r in s)
    index = _write_index(tuple(code), height, width, y.device)
    parts = _pick(y.flatten(1, 2), 1, index, complete).unflatten(1, (height, width, routes))
    if not merge and routes == len(sequences):
        return parts
    parts = parts.unbind(3)  # added one by one, in order
    if merge:
        return sum(parts[1:], parts[0])
    ends = list(accumulate(map(len, sequences), initial=0))
    return torch.stack([sum(parts[a + 1 : b], parts[a]) for a, b in pairwise(ends)], 3)


def read_map_by_slices(x: Tensor, code: Sequence[int], per_sequence: bool = False) -> Tensor:
    """Do the same as `read_map` without a table where routes are raster: for exporters and symbolic sizes."""
    x = x.movedim((1, 2), (-2, -1))
    parts = []
    for k, sequence in enumerate(decode_routes(code)):
        routes = [gather(x[:, k] if per_sequence else x, route) for route in sequence]
        parts.append(routes[0] if len(routes) == 1 else torch.cat(routes, dim=-1))
    return torch.stack(parts, dim=1).movedim(-1, 1)


def write_map_by_slices(y: Tensor, code: Sequence[int], height: int, width: int, merge: bool = True) -> Tensor:
    """Do the same as `write_map` without a table where routes are raster: for exporters and symbolic sizes."""
    maps = []
    for k, sequence in enumerate(decode_routes(code)):
        pieces = y[:, :, k].movedim(1, -1).split([route_length(route, height, width) for route in sequence], dim=-1)
        maps.append([scatter(piece, route, height, width) for piece, route in zip(pieces, sequence, strict=True)])
    if merge:
        merged = [part for parts in maps for part in parts]
        return sum(merged[1:], merged[0]).movedim((-2, -1), (1, 2))
    return torch.stack([sum(parts[1:], parts[0]) for parts in maps], 1).movedim((-2, -1), (1, 2))
