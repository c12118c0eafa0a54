"""Routes: in which order a scan reads the pixels of an H x W map.

A scan pattern is data: a tuple of routes (or of joined routes). Gathering, merging, pictures of the scan order, the
fused kernels and the tests all read the same tuple.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FIELDS", "PATHS", "Route", "Routes", "decode_routes", "encode_routes", "gather", "route_order", "scatter"]

# How the pixels taken are walked; their place in this tuple is their number in the code of a route.
PATHS = ("raster", "snake", "diagonal", "spiral")


class Route(NamedTuple):
    """One walk over the map: every `stride`-th pixel from `offset`, row by row, perhaps transposed, perhaps backwards.

    Attributes:
        transpose: walk column by column instead of row by row.
        reverse: walk from the last pixel to the first.
        stride: step (rows, columns) between the pixels taken; (1, 1) takes all.
        offset: first (row, column) taken.
        path: "raster" starts every row at its left end; "snake" walks every other row from the right; "diagonal"
            walks the anti-diagonals, alternately upwards and downwards; "spiral" goes clockwise from the first pixel
            inwards.
        mirror: turn the map over, (top to bottom, left to right), before the walk.
    """

    transpose: bool = False
    reverse: bool = False
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    path: str = "raster"
    mirror: tuple[bool, bool] = (False, False)


# A sequence of the scan is one route, or several joined end to end without a reset of the state (MSVMamba).
Routes = Sequence[Route | Sequence[Route]]

# Numbers that stand for one route.
FIELDS = 10


def encode_routes(routes: Routes) -> list[int]:
    """Routes as the flat list of ints that an operator schema can hold: ten per route, the first its sequence.

    Raises:
        TypeError: an entry is neither a `Route` nor a sequence of them.
        ValueError: there is no route, a stride or an offset is out of range, or a path is unknown.
    """
    code: list[int] = []
    if isinstance(routes, Route) or not isinstance(routes, Sequence) or len(routes) == 0:
        raise ValueError(f"routes must be a non-empty sequence of Route, got {routes!r}")
    for index, entry in enumerate(routes):
        joined = (entry,) if isinstance(entry, Route) or not isinstance(entry, Sequence) else entry
        for route in joined:
            if not isinstance(route, Route):
                raise TypeError(f"routes must hold Route or sequences of Route, got {type(route).__name__}")
            if min(route.stride) < 1 or min(route.offset) < 0:
                raise ValueError(f"a route needs strides of at least 1 and offsets of at least 0, got {route}")
            if route.path not in PATHS:
                raise ValueError(f"the path of a route must be one of {', '.join(PATHS)}, got {route.path!r}")
            code += [index, int(route.transpose), int(route.reverse), *route.stride, *route.offset]
            code += [PATHS.index(route.path), *map(int, route.mirror)]
    return code


def decode_routes(code: Sequence[int]) -> list[list[Route]]:
    """The inverse of `encode_routes`: one list of routes for each sequence."""
    sequences: list[list[Route]] = []
    for i in range(0, len(code), FIELDS):
        index, transpose, reverse, stride_h, stride_w, offset_h, offset_w, path, *mirror = code[i : i + FIELDS]
        if index == len(sequences):
            sequences.append([])
        route = Route(
            transpose=bool(transpose),
            reverse=bool(reverse),
            stride=(stride_h, stride_w),
            offset=(offset_h, offset_w),
            path=PATHS[path],
            mirror=(bool(mirror[0]), bool(mirror[1])),
        )
        sequences[index].append(route)
    return sequences


def _mirror(x: Tensor, route: Route) -> Tensor:
    """Turn the last two dimensions over as the route asks; its own inverse."""
    axes = [axis for axis, turned in zip((-2, -1), route.mirror, strict=True) if turned]
    return x.flip(axes) if axes else x


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve training too
def _walk(path: str, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row-major indices (L,) of a path over a height x width grid in the order visited, and the inverse permutation."""
    order = torch.arange(height * width).view(height, width)
    if path == "snake":
        order = order.clone()
        order[1::2] = order[1::2].flip(1)
        order = order.flatten()
    elif path == "diagonal":
        row, column = torch.arange(height)[:, None], torch.arange(width)[None]
        diagonal = row + column
        place = torch.where(diagonal % 2 == 1, row, height - 1 - row)
        order = (diagonal * height + place).flatten().argsort()
    else:
        rings, rest = [], order
        while rest.numel():
            rings.append(rest[0])
            rest = rest[1:].rot90()
        order = torch.cat(rings) if rings else order.flatten()
    order = order.to(device)
    return order, order.argsort()


def gather(x: Tensor, route: Route) -> Tensor:
    """Read a channels-first map along a route: (..., H, W) to (..., L)."""
    x = x[..., route.offset[0] :: route.stride[0], route.offset[1] :: route.stride[1]]
    x = _mirror(x, route)
    if route.transpose:
        x = x.transpose(-1, -2)
    height, width = x.shape[-2:]
    x = x.flatten(-2)
    if route.path != "raster":
        x = x.index_select(-1, _walk(route.path, height, width, x.device)[0])
    return x.flip(-1) if route.reverse else x


def scatter(x: Tensor, route: Route, height: int, width: int) -> Tensor:
    """Put a sequence back on its map, (..., L) to (..., H, W); pixels that the route does not visit are zero."""
    rows, columns = _visited(route, height, width)
    grid = (columns, rows) if route.transpose else (rows, columns)
    if route.reverse:
        x = x.flip(-1)
    if route.path != "raster":
        x = x.index_select(-1, _walk(route.path, *grid, x.device)[1])
    x = x.unflatten(-1, grid)
    if route.transpose:
        x = x.transpose(-1, -2)
    x = _mirror(x, route)
    if route.stride == (1, 1) and route.offset == (0, 0):
        return x
    # Not written in place: an exporter takes this too.
    zeros = x.new_zeros(*x.shape[:-2], rows, width)
    x = torch.slice_scatter(zeros, x, -1, route.offset[1], None, route.stride[1])
    zeros = x.new_zeros(*x.shape[:-2], height, width)
    return torch.slice_scatter(zeros, x, -2, route.offset[0], None, route.stride[0])


def _visited(route: Route, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that a route takes of an H x W map; symbolic for a symbolic size, which `range` would fix."""

    def count(size: int, offset: int, stride: int) -> int:
        return size if (offset, stride) == (0, 1) else max(0, -(-(size - offset) // stride))

    sizes = zip((height, width), route.offset, route.stride, strict=True)
    rows, columns = (count(*size) for size in sizes)
    return rows, columns


def route_length(route: Route, height: int, width: int) -> int:
    """Number of pixels that a route visits on an H x W map."""
    rows, columns = _visited(route, height, width)
    return rows * columns


def route_order(route: Route, height: int, width: int) -> Tensor:
    """Flat row-major pixel indices (L,) in the order visited, int64."""
    return gather(torch.arange(height * width).view(height, width), route)
