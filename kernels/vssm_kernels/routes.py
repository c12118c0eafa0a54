"""Routes: in which order a scan reads the pixels of an H x W map, or of a volume D x H x W.

A scan pattern is data: a tuple of routes (or of joined routes). `route_table` says which pixels it visits, in order, on
one size of map. Gathering, merging, pictures of the scan order, the fused kernels and the tests all read that table.

A size is one number for each dimension of the map. Where maps have other than two dimensions, the scans are given them
flat, as one row of pixels (1, P), and routes that are bound to their size, see `bind_routes`.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .route_code import (
    FIELDS,
    PATHS,
    Route,
    Routes,
    bind_routes,
    check_code,
    count_routes,
    count_sequences,
    decode_routes,
    encode_routes,
    map_rank,
    map_size,
)
from .tables import keep_tables

__all__ = [
    "FIELDS",
    "PATHS",
    "Route",
    "RouteTable",
    "Routes",
    "bind_routes",
    "check_code",
    "count_routes",
    "count_sequences",
    "decode_routes",
    "encode_routes",
    "gather",
    "map_rank",
    "map_size",
    "on_flat_maps",
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


def _axes(route: Route) -> tuple[int, ...]:
    """The axes of a route's map, that which runs slowest first."""
    return route.axes or ((1, 0) if route.transpose else (0, 1))


def _per_axis(values: tuple, route: Route) -> tuple:
    """A stride, offset or mirror with an entry for each axis; a default, of two, stands for maps of any rank."""
    rank = len(route.axes) or 2
    return values if len(values) == rank else values[:1] * rank


def _visited(route: Route, size: Sequence[int]) -> list[int]:
    """Pixels that a route takes along each axis of a map; symbolic for a symbolic size, which `range` would fix."""

    def count(size: int, offset: int, stride: int) -> int:
        return size if (offset, stride) == (0, 1) else max(0, -(-(size - offset) // stride))

    return [count(*along) for along in zip(size, _offset(route), _stride(route), strict=True)]


def _stride(route: Route) -> tuple[int, ...]:
    return _per_axis(route.stride, route)


def _offset(route: Route) -> tuple[int, ...]:
    return _per_axis(route.offset, route)


def route_length(route: Route, *size: int) -> int:
    """Count the pixels that a route visits on a map of a size: H, W, or as many numbers as it has dimensions."""
    if len(size) != (len(route.axes) or 2):
        map_size(encode_routes((route,)), size)  # says what is wrong
    return prod(_visited(route, size))


def sequence_lengths(code: Sequence[int], *size: int) -> list[int]:
    """Count the positions of each sequence of encoded routes on a map of a size: H, W, or more."""
    sequences, size = decode_routes(code), map_size(code, size)
    return [sum(route_length(r, *size) for r in sequence) for sequence in sequences]


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
    """Read a grid of pixels along a path: (pixels,). Only of rows and columns where it is a diagonal or a spiral."""
    if path == "snake":
        # Along each axis the walk turns round at every line, and so at every plane.
        for axis in range(1, grid.dim()):
            lines = grid.reshape(prod(grid.shape[:axis]), grid.shape[axis], prod(grid.shape[axis + 1 :]))
            back = (torch.arange(len(lines), device=grid.device) % 2 == 1)[:, None, None]
            grid = torch.where(back, lines.flip(1), lines).view(grid.shape)
        return grid.flatten()
    if path == "diagonal":
        rows, columns = grid.shape
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
def _table(code: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> RouteTable:
    pixels = torch.arange(prod(size), dtype=torch.int32, device=device).view(size)
    orders, first_route = [], [0]
    for sequence in decode_routes(code):
        for route in sequence:
            order = _along_path(_turn(_taken(pixels, route), route), route.path)
            orders.append(order.flip(0) if route.reverse else order)
        first_route.append(len(orders))
    return RouteTable(torch.cat(orders), tuple(accumulate(map(len, orders), initial=0)), tuple(first_route))


def route_table(code: Sequence[int], *size: int, device: torch.device | str = "cpu") -> RouteTable:
    """Tell which pixels encoded routes visit on a map, in which order.

    Args:
        code: What `encode_routes` or `bind_routes` gives.
        size: Of the map: rows and columns, or as many numbers as it has dimensions.
        device: Where the table is; it is made there, and kept.

    Returns:
        The table. Do not write to it.

    Raises:
        ValueError: The routes are over maps of another rank, a size is symbolic, or the map has more pixels than int32
            can number.
    """
    size = map_size(code, size)
    text = " x ".join(map(str, size))
    if not all(isinstance(length, int) for length in size):
        raise ValueError(f"only raster routes can be followed on a map of any size, got {text}")
    if prod(size) > torch.iinfo(torch.int32).max:
        raise ValueError(f"the pixels of a map of {text} cannot be numbered in 32 bits")
    return _table(tuple(code), size, torch.device(device))


def route_order(route: Route, *size: int) -> Tensor:
    """List the row-major numbers of the pixels (L,) that a route visits on a map (H, W, or more), in order, int64."""
    return route_table(encode_routes((route,)), *size).positions.long()


@keep_tables
def _steps(code: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Tensor:
    """The step of its sequence at which each route visits each pixel, (routes, P) int64; -1 where it does not."""
    table = _table(code, size, device)
    unvisited = torch.full((prod(size),), -1, device=device)
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
    along = zip(_offset(route), _stride(route), strict=True)
    taken: tuple[Any, ...] = (..., *[slice(first, None, step) for first, step in along])
    return x[taken]


def _mirror(x: Tensor, route: Route) -> Tensor:
    """Turn the dimensions of the map over as the route asks; its own inverse."""
    flags = _per_axis(route.mirror, route)
    axes = [axis - len(flags) for axis, turned in enumerate(flags) if turned]
    return x.flip(axes) if axes else x


def _permuted(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The last dimensions of x in another order."""
    first = x.dim() - len(axes)
    return x.permute(*range(first), *(first + axis for axis in axes))


def _turn(x: Tensor, route: Route) -> Tensor:
    """A map of the pixels taken as a route sees it: mirrored, then with its axes in the route's order."""
    x = _mirror(x, route)
    if route.axes:
        return _permuted(x, route.axes)
    return x.transpose(-1, -2) if route.transpose else x


def gather(x: Tensor, route: Route) -> Tensor:
    """Read a channels-first map along a route.

    Args:
        x: (..., H, W), or with as many dimensions last as the route's map has.
        route: Any; of raster paths H and W may be symbolic.

    Returns:
        (..., L).
    """
    rank = len(_axes(route))
    if route.path != "raster":
        table = route_table(encode_routes((route,)), *x.shape[-rank:], device=x.device)
        # PyTorch 2.6 differentiates index_select forwards for 64-bit indices alone.
        return x.flatten(-rank).index_select(-1, table.positions.long())
    x = _turn(_taken(x, route), route).flatten(-rank)
    return x.flip(-1) if route.reverse else x


def scatter(x: Tensor, route: Route, *size: int) -> Tensor:
    """Put a sequence back on its map; the adjoint of `gather`. Nothing is written in place, for exporters.

    Args:
        x: (..., L).
        route: Any; of raster paths the size may be symbolic.
        size: Of the map: H, W, or as many numbers as it has dimensions.

    Returns:
        (..., H, W); pixels that the route does not visit are zero.
    """
    if route.path != "raster":
        code = tuple(encode_routes((route,)))
        route_table(code, *size, device=x.device)  # its checks
        steps = _steps(code, size, x.device)[0]
        return _pick(x, -1, steps, route_length(route, *size) == prod(size)).unflatten(-1, size)
    taken, axes, lead = _visited(route, size), _axes(route), x.shape[:-1]
    if route.reverse:
        x = x.flip(-1)
    x = x.unflatten(-1, [taken[axis] for axis in axes])
    if route.axes:
        x = _permuted(x, [axes.index(axis) for axis in range(len(axes))])
    elif route.transpose:
        x = x.transpose(-1, -2)
    x = _mirror(x, route)
    stride, offset = _stride(route), _offset(route)
    if set(stride) == {1} and set(offset) == {0}:
        return x
    for axis in reversed(range(len(size))):
        # A start behind the end is an error under torch.func. Sizes that are symbolic are left as they are.
        first = min(offset[axis], size[axis]) if isinstance(size[axis], int) else offset[axis]
        taken[axis] = size[axis]
        x = torch.slice_scatter(x.new_zeros(*lead, *taken), x, axis - len(size), first, None, stride[axis])
    return x


def _pick(x: Tensor, dim: int, index: Tensor, complete: bool) -> Tensor:
    """`index_select`, with zeros for an index of -1; there is none if `complete`."""
    if complete:
        return x.index_select(dim, index)
    shape = list(x.shape)
    shape[dim] = 1
    return torch.cat((x.new_zeros(shape), x), dim).index_select(dim, index + 1)


# --------------------------------------------------------------------------------------------------------------------
# all sequences of a channels-last map at once; `read_map` and `write_map` are adjoint


def _one_length(code: Sequence[int], size: Sequence[int]) -> int:
    lengths = sequence_lengths(code, *size)
    if any(length != lengths[0] for length in lengths):
        text = " x ".join(map(str, size))
        raise ValueError(f"sequences must be of one length, got {lengths} on a map of {text}")
    return lengths[0]


@keep_tables
def _read_index(code: tuple[int, ...], size: tuple[int, ...], per_sequence: bool, device: torch.device) -> Tensor:
    """Rows of (P, [K,] ...) in the order of (L, K, ...)."""
    table = _table(code, size, device)
    count = len(table.lengths)
    index = table.positions.view(count, table.lengths[0]).mT
    if per_sequence:
        index = index.long() * count + torch.arange(count, device=device)
    return index.flatten().long()  # as in `gather`


def read_map(x: Tensor, code: Sequence[int], per_sequence: bool = False) -> Tensor:
    """Read a channels-last map along K sequences of equal length L.

    Args:
        x: (B, H, W, ...) for all sequences, or (B, H, W, K, ...) with `per_sequence`; maps of the routes' rank.
        code: Any routes, by `encode_routes`.
        per_sequence: Whether each sequence reads values of its own.

    Returns:
        (B, L, K, ...), contiguous.

    Raises:
        ValueError: The sequences differ in length on this map.
    """
    rank = map_rank(code)
    size = tuple(x.shape[1 : 1 + rank])
    shape = (_one_length(code, size), count_sequences(code))
    index = _read_index(tuple(code), size, per_sequence, x.device)
    return x.flatten(1, rank + 1 if per_sequence else rank).index_select(1, index).unflatten(1, shape)


@keep_tables
def _write_index(code: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows of (L, K, ...) in the order of (P, routes, ...); -1 where a route does not visit a pixel."""
    sequences = decode_routes(code)
    own = [k for k, sequence in enumerate(sequences) for _ in sequence]
    steps = _steps(code, size, device).unbind()
    rows = [torch.where(step < 0, step, step * len(sequences) + k) for step, k in zip(steps, own, strict=True)]
    return torch.stack(rows, 1).flatten()


def write_map(y: Tensor, code: Sequence[int], *size: int, merge: bool = True) -> Tensor:
    """Put K sequences of equal length L back on their channels-last map, summed where they meet.

    Args:
        y: (B, L, K, ...).
        code: Any routes, by `encode_routes`.
        size: Of the map: H, W, or as many numbers as it has dimensions.
        merge: Sum the sequences; else only the routes joined in each.

    Returns:
        (B, H, W, ...), or (B, H, W, K, ...) without `merge`; pixels that no route visits are zero.

    Raises:
        ValueError: The sequences differ in length on this map, or y does not fit them.
    """
    sequences, routes = decode_routes(code), count_routes(code)
    length = _one_length(code, size)
    if y.dim() < 3 or tuple(y.shape[1:3]) != (length, len(sequences)):
        raise ValueError(f"expected {length} positions of {len(sequences)} sequences, got shape {tuple(y.shape)}")
    complete = all(route_length(r, *size) == prod(size) for s in sequences for r in s)
    index = _write_index(tuple(code), size, y.device)
    parts = _pick(y.flatten(1, 2), 1, index, complete).unflatten(1, (*size, routes))
    if not merge and routes == len(sequences):
        return parts
    dim = 1 + len(size)
    parts = parts.unbind(dim)  # added one by one, in order
    if merge:
        return sum(parts[1:], parts[0])
    ends = list(accumulate(map(len, sequences), initial=0))
    return torch.stack([sum(parts[a + 1 : b], parts[a]) for a, b in pairwise(ends)], dim)


def read_map_by_slices(x: Tensor, code: Sequence[int], per_sequence: bool = False) -> Tensor:
    """Do the same as `read_map` without a table where routes are raster: for exporters and symbolic sizes."""
    rank = map_rank(code)
    x = x.movedim(tuple(range(1, 1 + rank)), tuple(range(-rank, 0)))
    parts = []
    for k, sequence in enumerate(decode_routes(code)):
        routes = [gather(x[:, k] if per_sequence else x, route) for route in sequence]
        parts.append(routes[0] if len(routes) == 1 else torch.cat(routes, dim=-1))
    return torch.stack(parts, dim=1).movedim(-1, 1)


def write_map_by_slices(y: Tensor, code: Sequence[int], *size: int, merge: bool = True) -> Tensor:
    """Do the same as `write_map` without a table where routes are raster: for exporters and symbolic sizes."""
    maps = []
    for k, sequence in enumerate(decode_routes(code)):
        pieces = y[:, :, k].movedim(1, -1).split([route_length(route, *size) for route in sequence], dim=-1)
        maps.append([scatter(piece, route, *size) for piece, route in zip(pieces, sequence, strict=True)])
    if merge:
        merged = [part for parts in maps for part in parts]
        y = sum(merged[1:], merged[0])
    else:
        y = torch.stack([sum(parts[1:], parts[0]) for parts in maps], 1)
    return y.movedim(tuple(range(-len(size), 0)), tuple(range(1, 1 + len(size))))


# --------------------------------------------------------------------------------------------------------------------
# maps of other than two dimensions for scans of two


def on_flat_maps(scan: Callable[..., Any], maps: Sequence[str]) -> Callable[..., Any]:
    """Let a scan of maps of two dimensions take maps of any number of dimensions.

    The scan gets each map as one row of pixels, which copies nothing where its dimensions lie one stride apart, and
    routes bound to the maps' size. What it gives as (B, 1, P, ...) becomes (B, D, H, W, ...).

    Args:
        scan: Takes tensors and `code`, all by keyword, and gives a tensor, or a tuple of tensors or None.
        maps: The names of those arguments that are maps.

    Returns:
        The scan. Maps of two dimensions are handed on as they are.
    """

    def any_rank(*, code: Sequence[int], **inputs: Any) -> Any:
        rank = map_rank(code)
        if rank == 2:
            return scan(code=code, **inputs)
        size = inputs[maps[0]].shape[1 : 1 + rank]
        flat = {name: inputs[name] if inputs[name] is None else inputs[name].flatten(1, rank)[:, None] for name in maps}
        results = scan(code=bind_routes(code, size), **inputs | flat)

        def unflat(x: Tensor | None) -> Tensor | None:
            return x.squeeze(1).unflatten(1, size) if x is not None and x.dim() > 3 else x  # not a parameter's

        return unflat(results) if isinstance(results, Tensor) else tuple(map(unflat, results))

    return any_rank
