"""The table of positions, and all that reads it, against walks written out pixel by pixel."""

import itertools
from typing import List  # noqa: UP035

import pytest
import torch
from torch import Tensor, nn

from tests.scan_2d import ROUTES
from vssm_kernels import Route, decompositions, encode_routes, read_map, route_order, write_map
from vssm_kernels.routes import gather, route_length, route_table, scatter, sequence_lengths

SIZES = [(6, 5), (1, 7), (4, 1), (3, 3)]
PATTERNS = {
    **ROUTES,
    "mirrored": tuple(Route(mirror=m, transpose=t) for m in itertools.product((False, True), repeat=2) for t in (0, 1)),
    "strided-paths": (
        Route(path="snake", stride=(2, 1), offset=(1, 0), transpose=True),
        Route(path="spiral", stride=(1, 2), reverse=True),
        Route(path="diagonal", stride=(2, 2), offset=(0, 1), mirror=(True, False)),
    ),
}
# Of one length on a map of 6 x 6.
EQUAL = {
    "cross": ROUTES["cross"],
    "paths": ROUTES["paths"],
    "strided": ROUTES["strided"],
    "joined": ((Route(), Route(transpose=True, reverse=True)), (Route(reverse=True), Route(path="snake"))),
    "strided-paths": (Route(path="snake", stride=(2, 2)), Route(path="spiral", stride=(2, 2), offset=(1, 1))),
    "strided-joined": ((Route(stride=(2, 2)), Route(stride=(2, 2), offset=(1, 0))), Route(stride=(1, 2))),
    "empty": ROUTES["all-empty"],
}


def walk(route, height, width):
    """Row-major numbers of the pixels, by the definition of `Route`."""
    rows = list(range(route.offset[0], height, route.stride[0]))
    columns = list(range(route.offset[1], width, route.stride[1]))
    grid = [[row * width + column for column in columns] for row in rows]
    if route.mirror[0]:
        grid = grid[::-1]
    if route.mirror[1]:
        grid = [row[::-1] for row in grid]
    if route.transpose:
        grid = [list(column) for column in zip(*grid, strict=True)]
    if not grid or not grid[0]:
        return []
    down, right = len(grid), len(grid[0])
    if route.path == "raster":
        order = [(i, j) for i in range(down) for j in range(right)]
    elif route.path == "snake":
        order = [(i, right - 1 - j if i % 2 else j) for i in range(down) for j in range(right)]
    elif route.path == "diagonal":
        order = []
        for d in range(down + right - 1):
            cells = [(i, d - i) for i in range(down) if 0 <= d - i < right]
            order += cells if d % 2 else cells[::-1]
    else:
        order, place, step = [(0, 0)], (0, 0), (0, 1)
        while len(order) < down * right:
            i, j = place[0] + step[0], place[1] + step[1]
            if (i, j) in order or not (0 <= i < down and 0 <= j < right):
                step = (step[1], -step[0])  # to the right
                continue
            place = (i, j)
            order.append(place)
    order = [grid[i][j] for i, j in order]
    return order[::-1] if route.reverse else order


def joined(entry):
    return (entry,) if isinstance(entry, Route) else entry


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_table(pattern, size):
    code = encode_routes(pattern)
    table = route_table(code, *size)
    single = [route for entry in pattern for route in joined(entry)]
    orders = [walk(route, *size) for route in single]
    assert table.positions.dtype == torch.int32 and table.positions.tolist() == sum(orders, [])
    assert [table.route(i).tolist() for i in range(len(single))] == orders
    assert [b - a for a, b in itertools.pairwise(table.first_route)] == [len(joined(entry)) for entry in pattern]
    assert list(table.lengths) == sequence_lengths(code, *size)
    for route, order in zip(single, orders, strict=True):
        assert route_order(route, *size).tolist() == order and route_length(route, *size) == len(order)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_gather_and_scatter_follow_the_table(pattern, size):
    pixels = torch.arange(1, 1 + size[0] * size[1]).view(1, *size)
    for entry in pattern:
        for route in joined(entry):
            order = route_order(route, *size)
            sequence = gather(pixels, route)
            assert torch.equal(sequence[0], order + 1)
            want = torch.zeros(size[0] * size[1], dtype=torch.int64).scatter(0, order, order + 1)
            assert torch.equal(scatter(sequence, route, *size).flatten(), want)


@pytest.mark.parametrize("last", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("pattern", EQUAL.values(), ids=EQUAL)
def test_read_map_and_write_map(pattern, own, last):
    """Against the definition; by table and by slices."""
    generator = torch.Generator().manual_seed(0)
    count = len(pattern)
    x = torch.randn(2, 6, 6, *((count,) if own else ()), *last, generator=generator)
    flat = x.flatten(1, 2)
    orders = [[walk(route, 6, 6) for route in joined(entry)] for entry in pattern]
    want = torch.stack([(flat[:, :, k] if own else flat)[:, sum(orders[k], [])] for k in range(count)], 2)
    code = encode_routes(pattern)
    forms = decompositions()
    for read in (torch.ops.vssm.read_map, forms[torch.ops.vssm.read_map.default]):
        assert torch.equal(read(x, code, own), want)
    assert torch.equal(read_map(x, pattern, own), want)

    y = torch.randn(want.shape, generator=generator)
    maps = torch.zeros(2, 36, count, *last)
    merged = torch.zeros(2, 36, *last)
    for k in range(count):
        start = 0
        for order in orders[k]:
            piece = y[:, start : start + len(order), k]
            maps[:, order, k] += piece
            merged[:, order] += piece
            start += len(order)
    for write in (torch.ops.vssm.write_map, forms[torch.ops.vssm.write_map.default]):
        assert torch.equal(write(y, code, 6, 6, True), merged.unflatten(1, (6, 6)))
        assert torch.equal(write(y, code, 6, 6, False), maps.unflatten(1, (6, 6)))
    assert torch.equal(write_map(y, pattern, 6, 6), merged.unflatten(1, (6, 6)))


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("pattern", [EQUAL["cross"], EQUAL["strided-joined"]], ids=["cross", "strided-joined"])
def test_as_operators(pattern, own):
    code = encode_routes(pattern)
    x = torch.randn(2, 6, 6, *((len(pattern),) if own else ()), 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.vssm.read_map, (x, code, own))
    y = torch.ops.vssm.read_map(x, code, own).detach().requires_grad_()
    torch.library.opcheck(torch.ops.vssm.write_map, (y, code, 6, 6, not own))
    assert torch.autograd.gradcheck(lambda x: torch.ops.vssm.read_map(x, code, own), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda y: torch.ops.vssm.write_map(y, code, 6, 6, not own), y, fast_mode=True)


class ThereAndBack(nn.Module):
    """Each sequence times a number of its own, back on the map."""

    def __init__(self, pattern):
        super().__init__()
        self.code: List[int] = encode_routes(pattern)  # noqa: UP006 - TorchScript's
        self.scale = nn.Parameter(torch.arange(1.0, 1.0 + len(pattern)))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.vssm.read_map(x, self.code) * self.scale[:, None]
        return torch.ops.vssm.write_map(y, self.code, x.shape[1], x.shape[2])


@pytest.mark.parametrize("pattern", [EQUAL["cross"], EQUAL["paths"]], ids=["cross", "paths"])
def test_torchscript_fx_and_export(pattern):
    model, x = ThereAndBack(pattern), torch.randn(2, 6, 5, 3)
    want = model(x)
    assert torch.equal(torch.jit.script(model)(x), want)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), want)
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), want)
    program = program.run_decompositions(decompositions())
    assert not any("vssm" in str(node.target) for node in program.graph.nodes)
    assert torch.allclose(program.module()(x), want)
    assert torch.equal(model(x), want)  # nothing symbolic was kept


def test_export_of_any_size():
    sizes = {dim: torch.export.Dim(f"d{dim}", min=2, max=512) for dim in (1, 2)}
    model = ThereAndBack(EQUAL["cross"])
    program = torch.export.export(model, (torch.randn(2, 6, 5, 3),), dynamic_shapes={"x": sizes})
    for kept in (program, program.run_decompositions(decompositions())):
        x = torch.randn(2, 9, 8, 3)
        assert torch.allclose(kept.module()(x), model(x))


def test_sequences_of_different_lengths_and_wrong_shapes():
    code = encode_routes((Route(), Route(stride=(2, 2))))
    with pytest.raises(ValueError, match=r"one length, got \[30, 9\]"):
        torch.ops.vssm.read_map(torch.zeros(1, 6, 5, 2), code)
    with pytest.raises(ValueError, match="one length"):
        torch.ops.vssm.write_map(torch.zeros(1, 30, 2), code, 6, 5)
    code = encode_routes(EQUAL["cross"])
    with pytest.raises(ValueError, match="30 positions of 4 sequences"):
        torch.ops.vssm.write_map(torch.zeros(1, 30, 3), code, 6, 5)
    with pytest.raises(ValueError, match="4 sequences"):
        torch.ops.vssm.read_map(torch.zeros(1, 6, 5, 3), code, True)
    with pytest.raises(ValueError, match="encode_routes"):
        torch.ops.vssm.read_map(torch.zeros(1, 6, 5, 3), [1, 2])


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        (None, ValueError, "routes must be a non-empty sequence of Route, got None"),
        ((), ValueError, "non-empty sequence of Route, got ()"),
        ("raster", ValueError, "non-empty sequence of Route, got 'raster'"),
        (Route(), ValueError, "non-empty sequence of Route, got Route("),
        (("raster",), TypeError, "must hold Route or sequences of Route, got str"),
        ((None,), TypeError, "must hold Route or sequences of Route, got NoneType"),
        (((Route(), 3),), TypeError, "must hold Route or sequences of Route, got int"),
        (((False, False, (1, 1)),), TypeError, "must hold Route or sequences of Route, got bool"),
        ((Route(), ()), ValueError, "entry 1 of routes is empty"),
        ((Route(transpose=2),), TypeError, "transpose of a route must be True or False, got 2"),
        ((Route(reverse="no"),), TypeError, "reverse of a route must be True or False, got 'no'"),
        ((Route(mirror=True),), TypeError, "mirror of a route must be two of True and False, got True"),
        ((Route(mirror=(True,)),), TypeError, "mirror of a route must be two of True and False, got (True,)"),
        ((Route(mirror=(0, 0.5)),), TypeError, "mirror of a route must be two of True and False, got (0, 0.5)"),
        ((Route(stride=2),), TypeError, "stride of a route must be two integers (rows, columns), got 2"),
        ((Route(stride=(2, 2, 2)),), TypeError, "two integers (rows, columns), got (2, 2, 2)"),
        ((Route(stride=(True, 1)),), TypeError, "two integers (rows, columns), got (True, 1)"),
        ((Route(stride=(1.5, 1)),), TypeError, "two integers (rows, columns), got (1.5, 1)"),
        ((Route(stride=None),), TypeError, "two integers (rows, columns), got None"),
        ((Route(offset=(0.0, 0)),), TypeError, "offset of a route must be two integers (rows, columns), got (0.0, 0)"),
        ((Route(offset="ab"),), TypeError, "offset of a route must be two integers (rows, columns), got 'ab'"),
        ((Route(stride=(0, 1)),), ValueError, "strides of at least 1"),
        ((Route(offset=(0, -1)),), ValueError, "offsets of at least 0"),
        ((Route(stride=(1, 2**70)),), ValueError, "below 2^31"),
        ((Route(path="zigzag"),), ValueError, "one of raster, snake, diagonal, spiral, got 'zigzag'"),
        ((Route(path=0),), ValueError, "one of raster, snake, diagonal, spiral, got 0"),
        ((Route(path=["raster"] * 1000),), ValueError, "..."),
    ],
)
def test_malformed_routes_are_one_short_sentence(given, error, sentence):
    with pytest.raises(error) as caught:
        encode_routes(given)
    assert sentence in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "code",
    [
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 0],  # a stride of zero
        [0, 0, 0, 1, 1, -1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 4, 0, 0],  # no such path
        [1, 0, 0, 1, 1, 0, 0, 0, 0, 0],  # a second sequence without a first
        [0, 0, 0, 1, 1, 0, 0, 0, 0],
    ],
)
def test_malformed_codes(code):
    with pytest.raises(ValueError, match="routes must be encoded by encode_routes"):
        sequence_lengths(code, 4, 4)
    ones = torch.ones(1, 4, 4, 1, 1)
    for op, x in ((torch.ops.vssm.read_map, ones), (torch.ops.vssm.write_map, ones.flatten(1, 2))):
        with pytest.raises(ValueError, match="routes must be encoded by encode_routes"):
            op(x, code, *((4, 4) if op is torch.ops.vssm.write_map else ()))
    with pytest.raises(ValueError, match=r"encode_routes|A must have shape \(2"):
        torch.ops.vssm.selective_scan_2d(ones[..., 0], ones, -torch.ones(1, 1, 1), ones, routes=code)
