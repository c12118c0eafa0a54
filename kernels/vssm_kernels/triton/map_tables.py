"""The routes of a map as the kernels read them: the table of positions in whole tiles, and what shares a map."""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ..routes import Route, RouteTable, decode_routes, route_table
from ..tables import is_capturing, keep_tables

__all__ = ["Walk", "sets_of_disjoint", "walk_tables"]


class Walk(NamedTuple):
    """The sequences on one size of map.

    Routes with the same map visit no pixel twice, nor do those with the same column, which belong to one sequence.

    Attributes:
        order: The pixels in the order visited, route after route, each filled up with -1 to whole tiles.
        table: (routes, 5): where the route starts in `order`, length, first tile in its sequence, map, column.
        first_route: The first route of each sequence, and the number of routes, (K + 1,).
        routes: The same on the host: the first route of each sequence and the one after its last.
        tiles: Tiles of the longest sequence.
        maps: Number of maps.
        columns: Number of columns.
        maps_covered: Whether all maps visit every pixel.
        columns_covered: Whether all columns do.
        routes_covered: Whether all routes do.
        pairs: The sequences and their twins, which visit the same pixels in opposite order, (2, K / 2); None where not
            every sequence has one.
    """

    order: Tensor
    table: Tensor
    first_route: Tensor
    routes: list[tuple[int, int]]
    tiles: int
    maps: int
    columns: int
    maps_covered: bool
    columns_covered: bool
    routes_covered: bool
    pairs: Tensor | None


def _are_disjoint(a: Route, b: Route) -> bool:
    """Whether two routes share no pixel of any map."""
    along = zip(a.offset, b.offset, a.stride, b.stride, strict=True)
    return any((first - other) % gcd(*strides) for first, other, *strides in along)


def sets_of_disjoint(routes: list[Route]) -> list[int]:
    """Give the number of the set that each route is in; no two routes of a set share a pixel."""
    numbers: list[int] = []
    for i, route in enumerate(routes):
        taken = {numbers[j] for j in range(i) if not _are_disjoint(route, routes[j])}
        numbers.append(next(number for number in range(i + 1) if number not in taken))
    return numbers


def _pairs(orders: list[list[Tensor]]) -> list[tuple[int, int]]:
    """Sequences of one route that visit the same pixels in opposite order, if every one has such a twin; else none."""
    pairs, left = [], list(range(len(orders)))
    while left:
        k = left.pop(0)
        twins = [i for i in left if len(orders[k]) == len(orders[i]) == 1 and orders[k][0].equal(orders[i][0].flip(0))]
        if not twins:
            return []
        left.remove(twins[0])
        pairs.append((k, twins[0]))
    return pairs


def _filled(visited: RouteTable, run: int, back_to_front: Sequence[int]) -> Tensor:
    """The positions of all routes, each filled up with -1 to whole tiles; those of some sequences at their start.

    At the end is one tile more, of which kernels that look ahead read.
    """
    parts = []
    for k, ends in enumerate(pairwise(visited.first_route)):
        for order in map(visited.route, range(*ends)):
            filling = order.new_full((-len(order) % run,), -1)
            parts += [filling, order] if k in back_to_front else [order, filling]
    return torch.cat([*parts, visited.positions.new_full((run,), -1)])


def _table(numbers: list, device: torch.device, captured: bool) -> Tensor:
    """Numbers as a tensor, int32. No copy from the host is captured, so there each number is a constant of a fill."""
    if not captured:
        return torch.tensor(numbers, dtype=torch.int32).to(device)
    if isinstance(numbers[0], list | tuple):
        return torch.stack([_table(row, device, captured) for row in numbers])
    return torch.stack([torch.full((), number, dtype=torch.int32, device=device) for number in numbers])


@keep_tables
def walk_tables(code: tuple[int, ...], height: int, width: int, run: int, paired: bool, device: torch.device) -> Walk:
    """Make the tables of encoded routes for one size of map.

    Args:
        code: By `encode_routes`.
        height: Rows of the map.
        width: Columns of the map.
        run: Positions a tile.
        paired: Whether a pair's results, if there are pairs, go to one map.
        device: Where the tables are.

    Returns:
        The tables. Do not write to them.
    """
    sequences = decode_routes(code)
    visited = route_table(code, height, width)
    visits = [[visited.route(i) for i in range(*ends)] for ends in pairwise(visited.first_route)]
    pairs = _pairs(visits)
    twins = [twin for _, twin in pairs]
    maps = sets_of_disjoint([route for sequence in sequences for route in sequence])
    if paired and pairs:
        for pair, number in zip(pairs, sets_of_disjoint([sequences[k][0] for k, _ in pairs]), strict=True):
            for k in pair:
                maps[k] = number
    one_each = all(max(sets_of_disjoint(sequence)) == 0 for sequence in sequences)
    table: list[list[int]] = []
    first_route, tiles = [0], [0] * len(sequences)
    places = 0
    for k in range(len(sequences)):
        for length in map(len, visits[k]):
            number, needed = len(table), -(-length // run)
            table.append([places, length, tiles[k], maps[number], k if one_each else number])
            places += needed * run
            tiles[k] += needed
        first_route.append(len(table))

    def covered(field: int, without: Sequence[int] = ()) -> bool:
        visited = [0] * (1 + max(row[field] for row in table))
        for number, row in enumerate(table):
            visited[row[field]] += 0 if number in without else row[1]
        return min(visited) == height * width

    captured = is_capturing(device)
    on_device = route_table(code, height, width, device=device) if captured else visited
    return Walk(
        _filled(on_device, run, twins).to(device),  # the tiles of twins are the same
        _table(table, device, captured),
        _table(first_route, device, captured),
        list(zip(first_route[:-1], first_route[1:], strict=True)),
        max(tiles),
        max(maps) + 1,
        len(sequences) if one_each else len(table),
        covered(3, twins if paired else ()),
        covered(4),
        all(row[1] == height * width for row in table),
        _table(list(zip(*pairs, strict=True)), device, captured) if pairs else None,
    )
