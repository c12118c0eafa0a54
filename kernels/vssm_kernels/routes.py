"""Routes: in which order a scan reads the pixels of an H x W map.

A scan pattern is data: a tuple of routes (or of joined routes). Gathering, merging, pictures of the scan order, the
fused kernels and the tests all read the same tuple.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Route", "Routes", "decode_routes", "encode_routes", "gather", "route_order", "scatter"]


class Route(NamedTuple):
    """One walk over the map: every `stride`-th pixel from `offset`, row by row, perhaps transposed, perhaps backwards.

    Attributes:
        transpose: walk column by column instead of row by row.
        reverse: walk from the last pixel to the first.
        stride: step (rows, columns) between the pixels taken; (1, 1) takes all.
        offset: first (row, column) taken.
    """

    transpose: bool = False
    reverse: bool = False
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)


# A sequence of the scan is one route, or several joined end to end without a reset of the state (MSVMamba).
Routes = Sequence[Route | Sequence[Route]]

_FIELDS = 7


def encode_routes(routes: Routes) -> list[int]:
    """Routes as the flat list of ints that an operator schema can hold: seven per route, the first its sequence.

    Raises:
        TypeError: an entry is neither a `Route` nor a sequence of them.
        ValueError: there is no route, or a stride or an offset is out of range.
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
            code += [index, int(route.transpose), int(route.reverse), *route.stride, *route.offset]
    return code


def decode_routes(code: Sequence[int]) -> list[list[Route]]:
    """The inverse of `encode_routes`: one list of routes for each sequence."""
    sequences: list[list[Route]] = []
    for i in range(0, len(code), _FIELDS):
        index, transpose, reverse, stride_h, stride_w, offset_h, offset_w = code[i : i + _FIELDS]
        if index == len(sequences):
            sequences.append([])
        sequences[index].append(Route(bool(transpose), bool(reverse), (stride_h, stride_w), (offset_h, offset_w)))
    return sequences


def gather(x: Tensor, route: Route) -> Tensor:
    """Read a channels-first map along a route: (..., H, W) to (..., L)."""
    x = x[..., route.offset[0] :: route.stride[0], route.offset[1] :: route.stride[1]]
    if route.transpose:
        x = x.transpose(-1, -2)
    x = x.flatten(-2)
    return x.flip(-1) if route.reverse else x


def scatter(x: Tensor, route: Route, height: int, width: int) -> Tensor:
    """Put a sequence back on its map, (..., L) to (..., H, W); pixels that the route does not visit are zero."""
    rows = len(range(route.offset[0], height, route.stride[0]))
    columns = len(range(route.offset[1], width, route.stride[1]))
    if route.reverse:
        x = x.flip(-1)
    if route.transpose:
        x = x.unflatten(-1, (columns, rows)).transpose(-1, -2)
    else:
        x = x.unflatten(-1, (rows, columns))
    if (rows, columns) == (height, width):
        return x
    out = x.new_zeros(*x.shape[:-2], height, width)
    out[..., route.offset[0] :: route.stride[0], route.offset[1] :: route.stride[1]] = x
    return out


def route_length(route: Route, height: int, width: int) -> int:
    """Number of pixels that a route visits on an H x W map."""
    return len(range(route.offset[0], height, route.stride[0])) * len(range(route.offset[1], width, route.stride[1]))


def route_order(route: Route, height: int, width: int) -> Tensor:
    """Flat row-major pixel indices (L,) in the order visited, int64."""
    return gather(torch.arange(height * width).view(height, width), route)
