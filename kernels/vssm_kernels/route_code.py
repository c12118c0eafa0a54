"""Routes as data: one walk over a map, and the flat code of several that an operator's schema can hold."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "FIELDS",
    "PATHS",
    "Route",
    "Routes",
    "bind_routes",
    "check_code",
    "count_routes",
    "count_sequences",
    "decode_routes",
    "encode_routes",
    "map_rank",
    "map_size",
]

# How the pixels taken are walked; their place in this tuple is their number in the code of a route.
PATHS = ("raster", "snake", "diagonal", "spiral")
# Of these, the ones that maps of more than two dimensions have.
_VOLUME_PATHS = ("raster", "snake")


class Route(NamedTuple):
    """One walk over the map: every `stride`-th pixel from `offset`, row by row, perhaps transposed, perhaps backwards.

    A route over a map of more than two dimensions says the order of its axes; the defaults of `stride`, `offset` and
    `mirror` stand for maps of any number of dimensions.

    Attributes:
        transpose: Walk column by column instead of row by row; for maps of two dimensions.
        reverse: Walk from the last pixel to the first.
        stride: Step (rows, columns) between the pixels taken; (1, 1) takes all. One number for each axis of the map.
        offset: First (row, column) taken. One number for each axis of the map.
        path: "raster" starts every row at its left end; "snake" walks every other row from the right, and in a volume
            every other plane from its end, so that each step goes to a neighbour; "diagonal" walks the anti-diagonals,
            alternately upwards and downwards; "spiral" goes clockwise from the first pixel inwards. The last two are
            for maps of two dimensions.
        mirror: Turn the map over, (top to bottom, left to right), before the walk. One flag for each axis of the map.
        axes: The axes of the map, that which runs slowest first: over a volume (D, H, W) (0, 1, 2) walks along W, row
            by row and plane by plane, and (1, 2, 0) along D. Without it the map has two dimensions.
    """

    transpose: bool = False
    reverse: bool = False
    stride: tuple[int, ...] = (1, 1)
    offset: tuple[int, ...] = (0, 0)
    path: str = "raster"
    mirror: tuple[bool, ...] = (False, False)
    axes: tuple[int, ...] = ()


# A sequence of the scan is one route, or several joined end to end without a reset of the state (MSVMamba).
Routes = Sequence[Route | Sequence[Route]]

# A tuple: TorchDynamo of PyTorch 2.6 cannot follow `Route | str | bytes`.
_NO_ROUTES = (Route, str, bytes)

# Numbers that stand for one route over a map of two dimensions.
FIELDS = 10
_LARGEST = 2**31 - 1


def encode_routes(routes: Routes) -> list[int]:
    """Write routes as the flat list of ints that an operator schema can hold.

    Over maps of two dimensions these are ten numbers for each route, the first its sequence. Over maps of another rank
    the list begins with minus the rank and room for the size of a map (see `bind_routes`); then come 3 + 4 rank numbers
    for each route: sequence, reverse, axes, strides, offsets, path, mirrors.

    Args:
        routes: One entry a sequence: a `Route`, or several that are joined.

    Returns:
        The code.

    Raises:
        TypeError: An entry is neither a `Route` nor a sequence of them, or what a route holds is of the wrong type.
        ValueError: There is no route, a stride or an offset is out of range, a path is unknown, or routes are over maps
            of different ranks.
    """
    code: list[int] = []
    ranks: list[int] = []
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
            rank = len(route.axes) or 2
            ranks.append(rank)
            if rank == 2:
                transpose = tuple(route.axes) == (1, 0) if route.axes else route.transpose
                code += [index, int(transpose), int(route.reverse), *route.stride, *route.offset]
                code += [PATHS.index(route.path), *map(int, route.mirror)]
                continue
            code += [index, int(route.reverse), *route.axes]
            code += [*_spread(route.stride, (1, 1), rank), *_spread(route.offset, (0, 0), rank)]
            code += [PATHS.index(route.path), *map(int, _spread(route.mirror, (False, False), rank))]
    if min(ranks) != max(ranks):
        raise ValueError(
            f"the routes of one pattern must be over maps of one rank, got maps of {min(ranks)} and of {max(ranks)} "
            "dimensions"
        )
    return code if ranks[0] == 2 else [-ranks[0], *[-1] * ranks[0], *code]


def _spread(values: Sequence[int], default: tuple, rank: int) -> Sequence[int]:
    """What a route says of each axis; a default, which has two entries, stands for a map of any rank."""
    return default[:1] * rank if rank > 2 and tuple(values) == default else values


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_flag(value: object) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _are_integers(value: object, count: int) -> bool:
    """Whether a value is `count` integers, which True and False are not here."""
    return type(value) in (tuple, list) and len(value) == count and all(type(number) is int for number in value)


def _check_route(route: Route) -> None:
    transpose, reverse, stride, offset, path, mirror, axes = route
    if not (_is_flag(transpose) and _is_flag(reverse)):
        name, value = ("reverse", reverse) if _is_flag(transpose) else ("transpose", transpose)
        raise TypeError(f"{name} of a route must be True or False, got {_shortened(value)}")
    rank = 2
    if axes != ():
        rank = len(axes) if type(axes) in (tuple, list) else 0
        if rank < 2 or not _are_integers(axes, rank) or sorted(axes) != list(range(rank)):
            raise ValueError(
                "axes of a route must be the numbers of the two or more axes of a map, each once, such as (0, 2, 1), "
                f"got {_shortened(axes)}"
            )
        if transpose:
            raise ValueError(f"a route has either transpose or axes, got transpose=True and axes={_shortened(axes)}")
        if rank > 2:  # only tuples: what else is given is refused below
            stride = _spread(stride, (1, 1), rank) if type(stride) is tuple else stride
            offset = _spread(offset, (0, 0), rank) if type(offset) is tuple else offset
            mirror = _spread(mirror, (False, False), rank) if type(mirror) is tuple else mirror
    what = "two integers (rows, columns)" if rank == 2 else f"{rank} integers, one for each of its axes"
    if not (type(mirror) in (tuple, list) and len(mirror) == rank and all(map(_is_flag, mirror))):
        count = "two" if rank == 2 else str(rank)
        raise TypeError(f"mirror of a route must be {count} of True and False, got {_shortened(mirror)}")
    if not (_are_integers(stride, rank) and _are_integers(offset, rank)):
        name, value = ("offset", offset) if _are_integers(stride, rank) else ("stride", stride)
        raise TypeError(f"{name} of a route must be {what}, got {_shortened(value)}")
    if min(stride) < 1 or min(offset) < 0 or max(*stride, *offset) > _LARGEST:
        raise ValueError(
            "a route needs strides of at least 1 and offsets of at least 0, both below 2^31, "
            f"got stride {_shortened(stride)} and offset {_shortened(offset)}"
        )
    paths = PATHS if rank == 2 else _VOLUME_PATHS
    if not isinstance(path, str) or path not in paths:
        of_what = "" if rank == 2 else f" over {rank} dimensions"
        raise ValueError(f"the path of a route{of_what} must be one of {', '.join(paths)}, got {_shortened(path)}")


def map_rank(code: Sequence[int]) -> int:
    """Tell how many dimensions the maps of encoded routes have."""
    return 2 if code[0] >= 0 else -code[0]


def _layout(code: Sequence[int]) -> tuple[int, int]:
    """Where the first route begins in a code, and how many numbers stand for each."""
    rank = map_rank(code)
    return (0, FIELDS) if rank == 2 else (1 + rank, 3 + 4 * rank)


def check_code(op: str, code: Sequence[int]) -> None:
    """Refuse what `encode_routes` cannot have given.

    Raises:
        ValueError: No route, or no whole number of them.
    """
    start, fields = _layout(code) if len(code) else (0, FIELDS)
    if len(code) <= start or (len(code) - start) % fields:
        raise ValueError(f"{op}: routes must be encoded by encode_routes, got {len(code)} numbers")


def count_sequences(code: Sequence[int]) -> int:
    """Count the sequences of encoded routes."""
    return code[-_layout(code)[1]] + 1


def count_routes(code: Sequence[int]) -> int:
    """Count encoded routes, joined ones one by one."""
    start, fields = _layout(code)
    return (len(code) - start) // fields


def bind_routes(code: Sequence[int], size: Sequence[int]) -> list[int]:
    """Make the code of routes over maps of one size, laid out as maps of one row with all their pixels.

    A scan of maps of two dimensions so takes maps of any: it is given the flat maps and this code, by which
    `route_table` makes the positions.

    Args:
        code: By `encode_routes`, over maps of another rank than two.
        size: Of the maps.

    Returns:
        The code.
    """
    start, _ = _layout(code)
    return [code[0], *size, *code[start:]]


def map_size(code: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Give the size of the map that encoded routes walk.

    Args:
        code: By `encode_routes`, or by `bind_routes`.
        size: Of the map; of a flat one, (1, pixels), where the code is bound.

    Returns:
        One number for each of the map's dimensions.

    Raises:
        ValueError: The routes are over maps of another rank.
    """
    rank = map_rank(code)
    if len(size) == rank:
        return tuple(size)
    if rank != 2 and len(size) == 2 and code[1] != -1:
        return tuple(code[1 : 1 + rank])
    raise ValueError(
        f"these routes are over maps of {rank} dimensions, got a map of {' x '.join(map(str, size))}"
        f"{'' if rank == 2 else '; routes over maps of two have no axes'}"
    )


def decode_routes(code: Sequence[int]) -> list[list[Route]]:
    """Read the code of `encode_routes`: one list of routes for each sequence.

    Raises:
        ValueError: It is not such a code.
    """
    sequences: list[list[Route]] = []
    rank = map_rank(code) if len(code) else 2
    start, fields = _layout(code) if len(code) else (0, FIELDS)
    for i in range(start, len(code), fields):
        numbers = code[i : i + fields]
        route = None
        if len(numbers) == fields and min(numbers) >= 0:
            route = _plane_route(numbers) if rank == 2 else _volume_route(numbers, rank)
        if route is None:
            raise ValueError(f"routes must be encoded by encode_routes, got {_shortened(list(numbers))} for a route")
        index = numbers[0]
        if not len(sequences) - 1 <= index <= len(sequences):
            raise ValueError(f"routes must be encoded by encode_routes, got sequence {index} after {len(sequences)}")
        if index == len(sequences):
            sequences.append([])
        sequences[index].append(route)
    return sequences


def _plane_route(numbers: Sequence[int]) -> Route | None:
    """The route over a map of two dimensions that ten numbers stand for; None where they stand for none."""
    _, transpose, reverse, stride_h, stride_w, offset_h, offset_w, path, *mirror = numbers
    if 0 in (stride_h, stride_w) or path >= len(PATHS):
        return None
    return Route(
        transpose=bool(transpose),
        reverse=bool(reverse),
        stride=(stride_h, stride_w),
        offset=(offset_h, offset_w),
        path=PATHS[path],
        mirror=(bool(mirror[0]), bool(mirror[1])),
    )


def _volume_route(numbers: Sequence[int], rank: int) -> Route | None:
    """As `_plane_route`, for maps of another rank: what the route had by default is spelt out for each axis."""
    axes, stride, offset = (tuple(numbers[first : first + rank]) for first in (2, 2 + rank, 2 + 2 * rank))
    path, mirror = numbers[2 + 3 * rank], tuple(map(bool, numbers[3 + 3 * rank :]))
    if sorted(axes) != list(range(rank)) or 0 in stride or path >= len(_VOLUME_PATHS):
        return None
    return Route(reverse=bool(numbers[1]), stride=stride, offset=offset, path=PATHS[path], mirror=mirror, axes=axes)
