"""Routes as data: one walk over a map, and the flat code of several that an operator's schema can hold."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["FIELDS", "PATHS", "Route", "Routes", "decode_routes", "encode_routes"]

# How the pixels taken are walked; their place in this tuple is their number in the code of a route.
PATHS = ("raster", "snake", "diagonal", "spiral")


class Route(NamedTuple):
    """One walk over the map: every `stride`-th pixel from `offset`, row by row, perhaps transposed, perhaps backwards.

    Attributes:
        transpose: Walk column by column instead of row by row.
        reverse: Walk from the last pixel to the first.
        stride: Step (rows, columns) between the pixels taken; (1, 1) takes all.
        offset: First (row, column) taken.
        path: "raster" starts every row at its left end; "snake" walks every other row from the right; "diagonal"
            walks the anti-diagonals, alternately upwards and downwards; "spiral" goes clockwise from the first pixel
            inwards.
        mirror: Turn the map over, (top to bottom, left to right), before the walk.
    """

    transpose: bool = False
    reverse: bool = False
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    path: str = "raster"
    mirror: tuple[bool, bool] = (False, False)


# A sequence of the scan is one route, or several joined end to end without a reset of the state (MSVMamba).
Routes = Sequence[Route | Sequence[Route]]

# A tuple: TorchDynamo of PyTorch 2.6 cannot follow `Route | str | bytes`.
_NO_ROUTES = (Route, str, bytes)

# Numbers that stand for one route.
FIELDS = 10
_LARGEST = 2**31 - 1


def encode_routes(routes: Routes) -> list[int]:
    """Write routes as the flat list of ints that an operator schema can hold: ten per route, the first its sequence.

    Args:
        routes: One entry a sequence: a `Route`, or several that are joined.

    Returns:
        `FIELDS` numbers for each route.

    Raises:
        TypeError: An entry is neither a `Route` nor a sequence of them, or what a route holds is of the wrong type.
        ValueError: There is no route, a stride or an offset is out of range, or a path is unknown.
    """
    code: list[int] = []
    if isinstance(routes, _NO_ROUTES) or not isinstance(routes, Sequence) or len(routes) == 0:
        raise ValueError(f"routes must be a non-empty sequence of Route, got {_shortened(routes)}")
    for index, entry in enumerate(routes):
        joined = (entry,) if isinstance(entry, _NO_ROUTES) or not isinstance(entry, Sequence) else entry
        if len(joined) == 0:
            raise ValueError(f"entry {index} of routes is empty: it must be a Route, or several that are joined")
        for route in joined:
            if not isinstance(route, Route):
                raise TypeError(f"routes must hold Route or sequences of Route, got {type(route).__name__}")
            _check_route(route)
            code += [index, int(route.transpose), int(route.reverse), *route.stride, *route.offset]
            code += [PATHS.index(route.path), *map(int, route.mirror)]
    return code


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_flag(value: object) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _is_pair(value: object) -> bool:
    """Whether a value is two integers, which True and False are not here."""
    return type(value) in (tuple, list) and len(value) == 2 and type(value[0]) is type(value[1]) is int


def _check_route(route: Route) -> None:
    transpose, reverse, stride, offset, path, mirror = route
    if not (_is_flag(transpose) and _is_flag(reverse)):
        name, value = ("reverse", reverse) if _is_flag(transpose) else ("transpose", transpose)
        raise TypeError(f"{name} of a route must be True or False, got {_shortened(value)}")
    if not (type(mirror) in (tuple, list) and len(mirror) == 2 and all(map(_is_flag, mirror))):
        raise TypeError(f"mirror of a route must be two of True and False, got {_shortened(mirror)}")
    if not (_is_pair(stride) and _is_pair(offset)):
        name, value = ("offset", offset) if _is_pair(stride) else ("stride", stride)
        raise TypeError(f"{name} of a route must be two integers (rows, columns), got {_shortened(value)}")
    if min(stride) < 1 or min(offset) < 0 or max(*stride, *offset) > _LARGEST:
        raise ValueError(
            "a route needs strides of at least 1 and offsets of at least 0, both below 2^31, "
            f"got stride {_shortened(stride)} and offset {_shortened(offset)}"
        )
    if not isinstance(path, str) or path not in PATHS:
        raise ValueError(f"the path of a route must be one of {', '.join(PATHS)}, got {_shortened(path)}")


def decode_routes(code: Sequence[int]) -> list[list[Route]]:
    """Read the code of `encode_routes`: one list of routes for each sequence.

    Raises:
        ValueError: It is not such a code.
    """
    sequences: list[list[Route]] = []
    for i in range(0, len(code), FIELDS):
        numbers = code[i : i + FIELDS]
        if len(numbers) < FIELDS or min(numbers) < 0 or 0 in numbers[3:5] or numbers[7] >= len(PATHS):
            raise ValueError(f"routes must be encoded by encode_routes, got {_shortened(list(numbers))} for a route")
        index, transpose, reverse, stride_h, stride_w, offset_h, offset_w, path, *mirror = numbers
        if not len(sequences) - 1 <= index <= len(sequences):
            raise ValueError(f"routes must be encoded by encode_routes, got sequence {index} after {len(sequences)}")
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
