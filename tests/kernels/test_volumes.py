"""Routes and scans of maps of more than two dimensions: walks written out, then what the tests of planes ask."""

import itertools
from typing import List  # noqa: UP035

import pytest
import torch
from torch import nn

from tests.kernels.test_cpu import every_variant, needs_library
from tests.scan_2d import CROSS, NAMES_2D, VOLUME_ROUTES, assert_close_2d, expected_2d, gradient_2d, make_2d
from vssm_kernels import (
    Route,
    cpu,
    decompositions,
    encode_routes,
    read_map,
    reference,
    route_order,
    selective_scan_2d,
    write_map,
)
from vssm_kernels.routes import (
    count_routes,
    count_sequences,
    decode_routes,
    gather,
    on_flat_maps,
    route_length,
    route_table,
    scatter,
    sequence_lengths,
)

MAPS = ("u", "dt", "B", "C")
THREE = {name: routes for name, routes in VOLUME_ROUTES.items() if name != "four"}
# Walks of one length on a volume of 4 x 2 x 6.
EQUAL = {name: VOLUME_ROUTES[name] for name in ("six", "strided", "snakes")} | {
    "joined": (
        (Route(axes=(0, 1, 2)), Route(axes=(2, 1, 0), stride=(2, 1, 1))),
        (Route(axes=(1, 0, 2), path="snake", stride=(1, 2, 1)), Route(axes=(1, 0, 2), reverse=True)),
    )
}


def size_of(routes, *size):
    """A size for routes over three dimensions, or with one more in front."""
    return (2, *size) if routes is VOLUME_ROUTES["four"] else size


def inputs_of(routes, *size, **form):
    *outer, height, width = size_of(routes, *size)
    return make_2d(routes, height=height, width=width, outer=outer, **form)


def walk(route, size):
    """Row-major numbers of the pixels, by the definition of `Route`, with loops over the axes."""
    rank = len(size)
    stride, offset, mirror = (
        values if len(values) == rank else values[:1] * rank for values in (route.stride, route.offset, route.mirror)
    )
    places = [list(range(offset[axis], size[axis], stride[axis])) for axis in range(rank)]
    places = [line[::-1] if turned else line for line, turned in zip(places, mirror, strict=True)]
    order, directions = [], [1] * rank

    def along(depth, place):
        if depth == rank:
            number = 0
            for axis in range(rank):
                number = number * size[axis] + place[axis]
            order.append(number)
            return
        axis = route.axes[depth]
        for at in places[axis][:: directions[depth]]:
            place[axis] = at
            along(depth + 1, place)
        if route.path == "snake":
            directions[depth] *= -1

    along(0, [0] * rank)
    return order[::-1] if route.reverse else order


def joined(entry):
    return (entry,) if isinstance(entry, Route) else entry


PATTERNS = VOLUME_ROUTES | {
    "all-orders": tuple(
        Route(axes=axes, path=path) for axes in itertools.permutations(range(3)) for path in ("raster", "snake")
    ),
    "strided-snakes": (
        Route(axes=(1, 2, 0), path="snake", stride=(1, 2, 3), offset=(1, 0, 1), mirror=(False, True, False)),
    ),
}


@pytest.mark.parametrize("size", [(3, 4, 5), (1, 7, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_table_gather_and_scatter(pattern, size):
    size = size_of(pattern, *size)
    code = encode_routes(pattern)
    single = [route for entry in pattern for route in joined(entry)]
    orders = [walk(route, size) for route in single]
    assert route_table(code, *size).positions.tolist() == sum(orders, [])
    assert list(route_table(code, *size).lengths) == sequence_lengths(code, *size)
    assert (count_sequences(code), count_routes(code)) == (len(pattern), len(single))
    assert encode_routes([tuple(routes) for routes in decode_routes(code)]) == code
    pixels = torch.arange(1, 1 + torch.Size(size).numel()).view(1, *size)
    for route, order in zip(single, orders, strict=True):
        assert route_order(route, *size).tolist() == order and route_length(route, *size) == len(order)
        sequence = gather(pixels, route)
        assert sequence[0].tolist() == [number + 1 for number in order]
        back = scatter(sequence, route, *size)
        assert torch.equal(back, torch.where(torch.isin(pixels, sequence), pixels, 0))


def test_a_snake_goes_from_neighbour_to_neighbour():
    for axes in itertools.permutations(range(4)):
        order = route_order(Route(axes=axes, path="snake"), 3, 2, 4, 3)
        places = torch.stack(torch.unravel_index(order, (3, 2, 4, 3)))
        assert (places.diff().abs().sum(0) == 1).all()


def test_two_axes_are_the_usual_codes():
    assert encode_routes((Route(axes=(0, 1)), Route(axes=(1, 0), reverse=True))) == encode_routes(
        (Route(), Route(transpose=True, reverse=True))
    )


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("pattern", EQUAL.values(), ids=EQUAL)
def test_read_map_and_write_map(pattern, own):
    size, count = (4, 2, 6), len(pattern)
    orders = [sum((walk(route, size) for route in joined(entry)), []) for entry in pattern]
    x = torch.randn(2, *size, *((count,) if own else ()), 3)
    flat = x.flatten(1, 3)
    want = torch.stack([(flat[:, :, k] if own else flat)[:, orders[k]] for k in range(count)], 2)
    code, forms = encode_routes(pattern), decompositions()
    for read in (torch.ops.vssm.read_map, forms[torch.ops.vssm.read_map.default]):
        assert torch.equal(read(x, code, own), want)
    assert torch.equal(read_map(x, pattern, own), want)
    y = torch.randn(want.shape, dtype=torch.float64)
    maps = torch.zeros(2, 48, count, 3, dtype=torch.float64)
    for k in range(count):
        maps[:, :, k].index_add_(1, torch.tensor(orders[k]), y[:, :, k])
    for write in (torch.ops.vssm.write_map, forms[torch.ops.vssm.write_map.default]):
        assert torch.allclose(write(y, code, 2, 6, False, [4]), maps.unflatten(1, size))
        assert torch.allclose(write(y, code, 2, 6, True, [4]), maps.sum(2).unflatten(1, size))
    assert write_map(y, pattern, 2, 6, outer=(4,)).shape == (2, *size, 3)
    x = x.double().requires_grad_()
    torch.library.opcheck(torch.ops.vssm.read_map, (x, code, own))
    torch.library.opcheck(torch.ops.vssm.write_map, (y.requires_grad_(), code, 2, 6, own, [4]))
    assert torch.autograd.gradcheck(lambda x: torch.ops.vssm.read_map(x, code, own), x, fast_mode=True)


@pytest.mark.parametrize("name", VOLUME_ROUTES)
def test_the_reference_is_the_scan_along_each_walk(name):
    """Sequence by sequence, by the reference of one dimension."""
    routes = VOLUME_ROUTES[name]
    inputs = {key: x.double() for key, x in inputs_of(routes, 2, 3, 4, channels=3).items()}
    y = selective_scan_2d(**inputs, routes=routes, backend="reference")
    u, dt, B, C = (inputs[key].flatten(1, -2 if key == "u" else -3) for key in MAPS)
    want = torch.zeros_like(u)
    for k, entry in enumerate(routes):
        order = sum((walk(route, y.shape[1:-1]) for route in joined(entry)), [])
        if not order:
            continue
        along, _ = reference.selective_scan_fwd(
            u[:, order].mT,
            (dt[:, order, k] @ inputs["dt_weight"][k].T).mT,
            inputs["A"][k],
            B[:, order, k].mT[:, None],
            C[:, order, k].mT[:, None],
            inputs["D"][k],
            inputs["delta_bias"][k],
            True,
        )
        want.index_add_(1, torch.tensor(order), along.mT)
    torch.testing.assert_close(y.flatten(1, -2), want)


def computed(inputs, routes, grad, softplus=True, merge=True, out_dtype=torch.float32, module=cpu):
    code = encode_routes(routes)
    how = dict(code=code, delta_softplus=softplus, merge=merge)
    y = on_flat_maps(module.selective_scan_2d_fwd, MAPS)(**inputs, out_dtype=out_dtype, **how)
    return [y, *on_flat_maps(module.selective_scan_2d_bwd, (*MAPS, "grad"))(grad=grad, **inputs, **how)]


@needs_library
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("own_input", [True, False])
@pytest.mark.parametrize("name", VOLUME_ROUTES)
def test_compiled(name, merge, own_input):
    routes = VOLUME_ROUTES[name]
    inputs = inputs_of(routes, 3, 2, 5, own_input=own_input, rank=3 if merge else None)
    grad = gradient_2d(inputs, routes, merge)
    want = expected_2d(inputs, routes, grad, merge=merge)
    for _ in every_variant():
        assert_close_2d(computed(inputs, routes, grad, merge=merge), want)


@needs_library
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 7), (5, 1, 1), (3, 7, 4)])
@pytest.mark.parametrize("states", [1, 16])
def test_compiled_sizes(size, states):
    routes = VOLUME_ROUTES["six"]
    inputs = inputs_of(routes, *size, states=states, channels=33, absent=() if states == 1 else ("D", "delta_bias"))
    grad = gradient_2d(inputs, routes)
    assert_close_2d(computed(inputs, routes, grad), expected_2d(inputs, routes, grad))


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_half_inputs(dtype):
    routes = VOLUME_ROUTES["six"]
    inputs = {name: x.to(dtype) if name in MAPS else x for name, x in inputs_of(routes, 2, 3, 4).items()}
    grad = gradient_2d(inputs, routes)
    for x, (ref, scale) in zip(computed(inputs, routes, grad), expected_2d(inputs, routes, grad), strict=True):
        tolerance = 3e-6 if x.dtype == torch.float32 else torch.finfo(dtype).eps
        assert (x.double() - ref).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("name", ["six", "joined", "some-empty"])
def test_triton(triton_device, name):
    scan = pytest.importorskip("vssm_kernels.triton.selective_scan_2d")
    routes = VOLUME_ROUTES[name]
    inputs = inputs_of(routes, 2, 1, 3, batch=1, channels=5, states=1)
    grad = gradient_2d(inputs, routes)
    want = expected_2d(inputs, routes, grad)
    values = {key: x.to(triton_device) for key, x in inputs.items()}
    got = computed(values, routes, grad.to(triton_device), module=scan)
    assert_close_2d([x.cpu() for x in got], want)


def test_triton_knows_which_walks_share_no_pixel():
    tables = pytest.importorskip("vssm_kernels.triton.map_tables")

    def sets(routes):
        return tables.sets_of_disjoint(
            [route for sequence in decode_routes(encode_routes(routes)) for route in sequence]
        )

    assert sets(VOLUME_ROUTES["strided"]) == [0, 0, 0, 0]
    assert sets(VOLUME_ROUTES["six"]) == list(range(6))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", THREE)
def test_one_plane_of_a_volume_is_the_plane(name, backend):
    """Bit for bit where the walks are those of planes."""

    def flat(route):
        per_axis = (x if len(x) == 3 else x[:1] * 3 for x in (route.stride, route.offset, route.mirror))
        stride, offset, mirror = (tuple(x[1:]) for x in per_axis)
        if route.offset[0]:
            stride = (10**6, 1)  # a plane that is not there
            offset = (10**6, 0)
        return Route(route.axes.index(2) < route.axes.index(1), route.reverse, stride, offset, route.path, mirror)

    routes = THREE[name]
    planes = tuple(flat(e) if isinstance(e, Route) else tuple(map(flat, e)) for e in routes)
    leaves = {key: x.requires_grad_() for key, x in make_2d(planes).items()}
    y = selective_scan_2d(**leaves, routes=planes, backend=backend)
    volume = {key: x[:, None] if key in MAPS else x for key, x in leaves.items()}
    z = selective_scan_2d(**volume, routes=routes, backend=backend)
    assert torch.equal(z[:, 0], y)
    grad = torch.randn(y.shape)
    want, got = (torch.autograd.grad(x, list(leaves.values()), g) for x, g in ((y, grad), (z, grad[:, None])))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("own_input", [False, True], ids=["shared", "own"])
def test_any_strides_and_autograd(own_input):
    routes = VOLUME_ROUTES["six"]
    plain = inputs_of(routes, 2, 3, 4, channels=5, own_input=own_input)
    leaves = {name: x.clone().requires_grad_() for name, x in plain.items()}
    selective_scan_2d(**leaves, routes=routes).square().sum().backward()
    views = {name: x.movedim(-1, 1).contiguous().movedim(1, -1) for name, x in plain.items() if name in MAPS}
    again = {**{name: x.clone() for name, x in plain.items()}, **views}
    again = {name: x.requires_grad_() for name, x in again.items()}
    selective_scan_2d(**again, routes=routes).square().sum().backward()
    for name in NAMES_2D:
        torch.testing.assert_close(again[name].grad, leaves[name].grad, rtol=1e-4, atol=1e-5)


def test_as_an_operator_and_its_other_derivatives():
    routes = VOLUME_ROUTES["joined"]
    inputs = {name: x.double().requires_grad_() for name, x in inputs_of(routes, 2, 2, 3, channels=2, batch=1).items()}
    code = encode_routes(routes)
    args = (*inputs.values(), code, True, True, None, "auto")
    torch.library.opcheck(torch.ops.vssm.selective_scan_2d, args)
    want = torch.ops.vssm.selective_scan_2d(*args)
    form = decompositions()[torch.ops.vssm.selective_scan_2d.default]
    torch.testing.assert_close(form(*args), want)
    u = inputs["u"]
    loss = lambda u: torch.ops.vssm.selective_scan_2d(u, *args[1:]).square().sum()  # noqa: E731
    _, tangent = torch.func.jvp(loss, (u,), (torch.ones_like(u),))
    assert torch.allclose(tangent, torch.autograd.grad(loss(u), u)[0].sum())
    each = torch.vmap(lambda u: torch.ops.vssm.selective_scan_2d(u, *args[1:]), randomness="error")(u[None])
    torch.testing.assert_close(each[0], want)


class Scan(nn.Module):
    """The op on a volume; all its other inputs are made of it."""

    def __init__(self):
        super().__init__()
        self.code: List[int] = encode_routes(VOLUME_ROUTES["six"][1:3])  # noqa: UP006 - TorchScript's

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        dt = u.unsqueeze(-2).expand(u.shape[0], u.shape[1], u.shape[2], u.shape[3], 2, u.shape[4])
        A = -torch.ones(2, u.shape[4], 1)
        return torch.ops.vssm.selective_scan_2d(u, dt, A, dt[..., :1], dt[..., 1:2], routes=self.code)


def test_torchscript_fx_and_export():
    model, u = Scan(), torch.randn(1, 2, 3, 4, 3)
    want = model(u)
    assert torch.equal(torch.jit.script(model)(u), want)
    assert torch.equal(torch.fx.symbolic_trace(model)(u), want)
    sizes = {dim: torch.export.Dim(f"d{dim}", min=2, max=64) for dim in (1, 2, 3)}
    program = torch.export.export(model, (torch.randn(1, 5, 6, 7, 3),), dynamic_shapes={"u": sizes})
    program = program.run_decompositions(decompositions())
    assert not any("vssm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(u), want)


@pytest.mark.parametrize(
    ("routes", "sentence"),
    [
        ((Route(axes=(0, 2)),), "axes of a route must be the numbers of the two or more axes of a map, each once"),
        ((Route(axes=(0, 1, 1)),), "each once, such as (0, 2, 1), got (0, 1, 1)"),
        ((Route(axes=(0,)),), "got (0,)"),
        ((Route(axes="012"),), "got '012'"),
        ((Route(axes=(0, 1, 2), transpose=True),), "either transpose or axes"),
        ((Route(axes=(0, 1, 2), path="spiral"),), "over 3 dimensions must be one of raster, snake, got 'spiral'"),
        (
            (Route(axes=(0, 1, 2), stride=(2, 2)),),
            "stride of a route must be 3 integers, one for each",
        ),
        ((Route(axes=(0, 1, 2), offset=(0, 0, 0, 0)),), "offset of a route must be 3 integers"),
        ((Route(axes=(0, 1, 2), mirror=(True, False)),), "mirror of a route must be 3 of True and False"),
        ((Route(), Route(axes=(0, 1, 2))), "one rank, got maps of 2 and of 3 dimensions"),
    ],
)
def test_wrong_routes_are_one_sentence(routes, sentence):
    with pytest.raises((TypeError, ValueError)) as caught:
        encode_routes(routes)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_routes_for_another_rank_are_one_sentence():
    plane, volume = make_2d(CROSS, channels=3), inputs_of(VOLUME_ROUTES["six"], 2, 3, 5, channels=3)
    with pytest.raises(ValueError, match="routes over maps of 3 dimensions take u with 5 dimensions, or 6 where"):
        selective_scan_2d(**plane, routes=VOLUME_ROUTES["six"])
    with pytest.raises(ValueError, match="routes over maps of 2 dimensions take u with 4 dimensions"):
        selective_scan_2d(**{**volume, "u": volume["u"][..., None]}, routes=CROSS)
    with pytest.raises(ValueError, match=r"must have shape \(any, any, any, any\) or \(any, any, any, 4, any\)"):
        selective_scan_2d(**volume, routes=CROSS)
    with pytest.raises(ValueError, match="over maps of 3 dimensions, got a map of 6 x 5"):
        route_order(Route(axes=(0, 1, 2)), 6, 5)
    with pytest.raises(ValueError, match="over maps of 2 dimensions, got a map of 6 x 5 x 4"):
        route_length(Route(), 6, 5, 4)
    with pytest.raises(ValueError, match="over maps of 2 dimensions, got a map of 4 x 6 x 5"):
        write_map(torch.zeros(1, 30, 4), CROSS, 6, 5, outer=(4,))
    with pytest.raises(ValueError, match="encode_routes"):
        torch.ops.vssm.read_map(torch.zeros(1, 2, 3, 4), [-3, -1, -1, -1])
