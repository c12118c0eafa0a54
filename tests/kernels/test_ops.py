"""The public ops on every backend that runs here but Triton, whose interpreted kernels have a file of their own."""

import itertools

import numpy as np
import pytest
import torch

from tests import parity
from tests.kernels.test_cpu import needs_library
from vssm_kernels import (
    Route,
    available_backends,
    reference,
    selective_scan,
    selective_scan_2d,
    ssd,
)

BACKENDS = [b for b in available_backends("cpu") if b != "triton"]
LENGTHS = (1, 2, 7, 49, 63, 196, 500, 1025)
CROSS = (Route(), Route(transpose=True), Route(reverse=True), Route(transpose=True, reverse=True))
ATROUS = tuple(Route(stride=(2, 2), offset=(i, j), transpose=bool(i)) for i in (0, 1) for j in (0, 1))
JOINED = (Route(), (Route(reverse=True), Route(transpose=True), Route(transpose=True, reverse=True)))
UNEVEN = (Route(), Route(stride=(2, 1), offset=(1, 0)))

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def scan_inputs(
    length=49, states=2, groups=2, channels=8, batch=2, seed=0, delta_scale=1.0, absent=(), dtype=torch.float64
):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    inputs = dict(
        u=randn(batch, channels, length),
        delta=delta_scale * randn(batch, channels, length),
        A=-4
        * torch.rand(channels, states, generator=g, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32)),
        B=randn(batch, groups, states, length),
        C=randn(batch, groups, states, length),
        D=randn(channels),
        z=randn(batch, channels, length),
        delta_bias=randn(channels),
    )
    return {k: None if k in absent else v for k, v in inputs.items()}


def exact_scan(inputs, softplus=True):
    """Output and last state by the reference in float64, differentiable."""
    x = {k: None if v is None else v.double() for k, v in inputs.items()}
    z = x.pop("z")
    y, last = reference.selective_scan_fwd(**x, delta_softplus=softplus)
    return (y if z is None else y * torch.nn.functional.silu(z)), last


def leaves(inputs):
    return {k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()}


def relative(got, want):
    return ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-6)).item()


def check_scan(inputs, backend, softplus=True, tolerance=2e-5, grad_tolerance=5e-5, out_dtype=None, with_last=True):
    """Values and every gradient of the op against float64 autograd through the reference."""
    exact_in = leaves({k: None if v is None else v.double() for k, v in inputs.items()})
    want, want_last = exact_scan(exact_in, softplus)
    ours = leaves(inputs)
    got, last = selective_scan(
        **ours, delta_softplus=softplus, return_last_state=True, out_dtype=out_dtype, backend=backend
    )
    assert got.dtype == (out_dtype or inputs["u"].dtype) and last.dtype == torch.promote_types(
        inputs["u"].dtype, torch.float32
    )
    assert relative(got, want) < tolerance, "y"
    assert relative(last, want_last) < tolerance, "last state"
    g = torch.Generator().manual_seed(9)
    wy = torch.randn(want.shape, generator=g, dtype=torch.float64)
    wl = torch.randn(want_last.shape, generator=g, dtype=torch.float64) * float(with_last)
    ((want * wy).sum() + (want_last * wl).sum()).backward()
    loss = (got.double() * wy).sum()
    (loss + (last.double() * wl).sum() if with_last else loss).backward()
    for name in NAMES:
        if inputs[name] is not None:
            assert ours[name].grad.dtype == inputs[name].dtype, name
            assert relative(ours[name].grad, exact_in[name].grad) < grad_tolerance, f"gradient of {name}"


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def nan_memory(monkeypatch):
    """Uninitialised memory is NaN: whatever a kernel forgets to write shows."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def poison(t):
        return t.fill_(float("nan")) if t.is_floating_point() and t.device.type == "cpu" else t

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))


# The loop is the truth here, and slow: long sequences are for the others.
CASES = [c for c in itertools.product(BACKENDS, LENGTHS, (1, 2, 16), (1, 4)) if c[0] != "reference" or c[1] < 200]


@pytest.mark.parametrize(("name", "length", "states", "groups"), CASES)
def test_scan(name, length, states, groups, nan_memory):
    check_scan(scan_inputs(length, states, groups, dtype=torch.float32), name)


@pytest.mark.parametrize(
    "absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=lambda a: "no-" + "-".join(a)
)
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("with_last", [True, False])
def test_scan_options(backend, absent, softplus, with_last):
    inputs = scan_inputs(30, 2, 2, absent=absent, dtype=torch.float32)
    if not softplus:
        inputs["delta"] = inputs["delta"].abs()
    if not softplus and inputs["delta_bias"] is not None:
        inputs["delta_bias"] = inputs["delta_bias"].abs()
    check_scan(inputs, backend, softplus, with_last=with_last)


@pytest.mark.parametrize("backend64", ["torch", "reference"])
def test_scan_float64_gradients_by_differences(backend64):
    inputs = [v.requires_grad_() for v in scan_inputs(9, 3, 2, channels=4).values()]

    def f(*tensors):
        return selective_scan(*tensors, delta_softplus=True, return_last_state=True, backend=backend64)

    assert torch.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("float_out", [True, False])
def test_scan_half(backend, dtype, float_out):
    eps = torch.finfo(dtype).eps
    inputs = scan_inputs(100, 2, 2, dtype=dtype)
    out_dtype = torch.float32 if float_out else None
    check_scan(inputs, backend, tolerance=2e-5 if float_out else 2 * eps, grad_tolerance=4 * eps, out_dtype=out_dtype)


def test_half_in_float_out_does_not_overflow(backend):
    x = torch.full((1, 1, 2000), 60.0, dtype=torch.float16)
    ones = torch.ones(1, 1, 1, 2000, dtype=torch.float16)
    args = (x, x.clone(), torch.full((1, 1), -1e-6), ones, ones)
    assert selective_scan(*args, out_dtype=torch.float32, backend=backend).max() > 65504
    assert selective_scan(*args, backend=backend).isinf().any()


def test_scan_non_contiguous(backend):
    inputs = scan_inputs(40, 2, 1, dtype=torch.float32)
    strided = dict(inputs)
    for k in ("u", "delta", "z"):
        strided[k] = inputs[k].transpose(1, 2).contiguous().transpose(1, 2)
    strided["B"] = torch.stack([inputs["B"], inputs["B"]], dim=-1)[..., 0]
    strided["C"] = inputs["C"][:, :, :1].expand(-1, -1, 2, -1)
    inputs["C"] = strided["C"].contiguous()
    assert not any(strided[k].is_contiguous() for k in ("u", "delta", "z", "B", "C"))
    want = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert torch.equal(selective_scan(**strided, delta_softplus=True, backend=backend), want)
    strided = {k: v.requires_grad_() for k, v in strided.items()}
    plain = leaves(inputs)
    for x in (strided, plain):
        selective_scan(**x, delta_softplus=True, backend=backend).square().sum().backward()
    for k in inputs:  # the order of a sum may follow the strides
        assert relative(strided[k].grad, plain[k].grad) < 1e-6, k


def test_scan_strong_decay_and_large_steps(backend):
    inputs = scan_inputs(300, 2, 2, dtype=torch.float32, delta_scale=7.0)
    inputs["delta"].clamp_(-20, 20)[..., ::50] = 20
    inputs["delta"][..., 25::50] = -20
    inputs["A"] *= 10
    check_scan(inputs, backend, grad_tolerance=2e-4)


@pytest.mark.parametrize("name", [b for b in BACKENDS if b != "reference"])
def test_scan_slow_decay_over_a_long_sequence(name):
    inputs = scan_inputs(4097, 1, 1, channels=3, batch=1, dtype=torch.float32)
    inputs["A"] *= 1e-3
    check_scan(inputs, name, tolerance=1e-4, grad_tolerance=2e-4)


def test_three_dimensional_B_and_C(backend):
    inputs = scan_inputs(20, 2, 1, dtype=torch.float32)
    want = selective_scan(**inputs, delta_softplus=True, backend=backend)
    flat = dict(inputs, B=inputs["B"][:, 0], C=inputs["C"][:, 0])
    assert torch.equal(selective_scan(**flat, delta_softplus=True, backend=backend), want)


def test_gradients_are_bit_equal(backend):
    runs = []
    for _ in range(2):
        x = leaves(scan_inputs(200, 2, 2, dtype=torch.float32))
        selective_scan(**x, delta_softplus=True, backend=backend).sin().sum().backward()
        runs.append([x[k].grad for k in NAMES])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_slabs_change_nothing(monkeypatch):
    from vssm_kernels import chunked

    inputs = scan_inputs(50, 2, 2, batch=3, dtype=torch.float32)
    results = []
    for slab in (1 << 25, 500, 100):  # all at once, some items, some channels of an item
        monkeypatch.setattr(chunked, "_CPU_SLAB", slab)
        x = leaves(inputs)
        y = selective_scan(**x, delta_softplus=True, backend="torch")
        y.square().sum().backward()
        results.append([y.detach(), *(x[k].grad for k in NAMES)])
    for other in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(results[0], other, strict=True))


def test_official_numbers(backend):
    """The selective scan of parity/vmamba_modes.json: VMamba's own reference."""
    record = parity.load("vmamba_modes")["ops"]["selective_scan"]
    r = np.random.RandomState(3)
    shapes = dict(u=(2, 12, 6), delta=(2, 12, 6), A=(12, 2), B=(2, 4, 2, 6), C=(2, 4, 2, 6), D=(12,), delta_bias=(12,))
    x = {k: torch.from_numpy(r.standard_normal(s).astype(np.float32)) for k, s in shapes.items()}
    x["A"] = -x["A"].exp()
    y = selective_scan(**x, delta_softplus=True, backend=backend)
    assert torch.allclose(y.flatten(), torch.tensor(record["y"]).flatten(), rtol=1e-5, atol=1e-6)


# ---- selective_scan_2d


def scan_2d_inputs(
    routes, height=5, width=4, dim=3, states=2, rank=2, own_input=False, full_rank=False, dtype=torch.float64
):
    g = torch.Generator().manual_seed(1)
    k = len(routes)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return dict(
        u=randn(2, height, width, k, dim) if own_input else randn(2, height, width, dim),
        dt=randn(2, height, width, k, dim if full_rank else rank),
        A=-torch.rand(k, dim, states, generator=g, dtype=torch.float64).to(dtype),
        B=randn(2, height, width, k, states),
        C=randn(2, height, width, k, states),
        D=randn(k, dim),
        delta_bias=randn(k, dim),
        dt_weight=None if full_rank else randn(k, dim, rank),
    )


def naive_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, merge=True):
    """Pixel by pixel, from the definition: lists of coordinates, no gathers."""
    batch, height, width, dim = *u.shape[:3], u.shape[-1]
    maps = []
    for k, entry in enumerate(routes):
        steps = []
        joined = (entry,) if isinstance(entry, Route) else entry
        for i, r in enumerate(joined):
            rows, columns = range(r.offset[0], height, r.stride[0]), range(r.offset[1], width, r.stride[1])
            walk = [(h, w) for w in columns for h in rows] if r.transpose else [(h, w) for h in rows for w in columns]
            steps += [(i, h, w) for h, w in (reversed(walk) if r.reverse else walk)]
        outs = [[[u.new_zeros(batch, dim)] * width for _ in range(height)] for _ in joined]
        state = u.new_zeros(batch, dim, A.shape[-1])
        for i, h, w in steps:
            x = u[:, h, w, k] if u.dim() == 5 else u[:, h, w]
            step = dt[:, h, w, k] if dt_weight is None else dt[:, h, w, k] @ dt_weight[k].T
            step = torch.nn.functional.softplus(step + delta_bias[k])
            state = torch.exp(step[..., None] * A[k]) * state + (step * x)[..., None] * B[:, h, w, k][:, None]
            outs[i][h][w] = (state * C[:, h, w, k][:, None]).sum(-1) + D[k] * x
        maps += [torch.stack([torch.stack(row, 1) for row in o], 1) for o in outs]
    return sum(maps) if merge else torch.stack(maps, dim=3)


@pytest.mark.parametrize("routes", [CROSS, ATROUS, JOINED, UNEVEN], ids=["cross", "atrous", "joined", "uneven"])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("form", [{}, dict(own_input=True), dict(full_rank=True)], ids=lambda f: "-".join(f) or "plain")
def test_scan_2d(backend, routes, merge, form, nan_memory):
    inputs = scan_2d_inputs(routes, **form)
    exact = leaves(inputs)
    want = naive_scan_2d(**exact, routes=routes, merge=merge)
    ours = leaves({k: None if v is None else v.float() for k, v in inputs.items()})
    got = selective_scan_2d(**ours, routes=routes, merge=merge, backend=backend)
    assert got.shape == want.shape and relative(got, want) < 1e-5
    w = torch.randn(want.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (want * w).sum().backward()
    (got.double() * w).sum().backward()
    for k, v in inputs.items():
        if v is not None:
            assert relative(ours[k].grad, exact[k].grad) < 5e-5, k


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_2d_expands_half_steps_in_float32(backend, dtype):
    """The weights keep their digits, and so do the gradients of the weights and of other parameters."""
    streaming = ("u", "dt", "B", "C")
    inputs = {k: v.to(dtype if k in streaming else torch.float32) for k, v in scan_2d_inputs(CROSS, rank=6).items()}
    ours, exact = leaves(inputs), leaves({k: v.double() for k, v in inputs.items()})
    got = selective_scan_2d(**ours, routes=CROSS, out_dtype=torch.float32, backend=backend)
    want = naive_scan_2d(**exact, routes=CROSS)
    assert relative(got, want) < 1e-6
    got.square().sum().backward()
    want.square().sum().backward()
    for k in inputs:
        assert relative(ours[k].grad, exact[k].grad) < (torch.finfo(dtype).eps if k in streaming else 2e-6), k


def test_half_steps_may_grow_beyond_half(backend):
    one = torch.ones(1, 2, 2, 1, 1, dtype=torch.float16)
    inputs = dict(u=one[..., 0], dt=300 * one.expand(1, 2, 2, 1, 2), A=-torch.ones(1, 1, 1), B=one, C=one)
    weight = torch.full((1, 1, 2), 200.0)
    y = selective_scan_2d(**inputs, dt_weight=weight, routes=(Route(),), out_dtype=torch.float32, backend=backend)
    assert torch.equal(y, torch.full((1, 2, 2, 1), 120000.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (2, 3)])
def test_scan_2d_tiny_maps(backend, size):
    for routes in (CROSS, ATROUS):
        inputs = scan_2d_inputs(routes, *size)
        got = selective_scan_2d(**{k: v.float() for k, v in inputs.items()}, routes=routes, backend=backend)
        assert relative(got, naive_scan_2d(**inputs, routes=routes)) < 1e-5


def test_scan_2d_without_C_yields_the_state(backend):
    inputs = {k: v.float() for k, v in scan_2d_inputs((Route(),), states=1).items()}
    ones = dict(inputs, C=torch.ones_like(inputs["C"]))
    inputs["C"] = None
    got, want = (selective_scan_2d(**x, routes=(Route(),), backend=backend) for x in (inputs, ones))
    assert torch.equal(got, want)


@pytest.mark.parametrize("pattern", ["cross2d", "unidi", "bidi"])
def test_scan_orders_of_the_official_code(pattern):
    from vssm.scans.routes import BIDIRECTIONAL, UNIDIRECTIONAL, route_order
    from vssm_kernels import read_map, write_map

    routes = dict(cross2d=CROSS, unidi=UNIDIRECTIONAL, bidi=BIDIRECTIONAL)[pattern]
    order = parity.load("vmamba_modes")["ops"][f"scan_order_{pattern}"]["order"]
    assert [route_order(r, 2, 3).tolist() for r in routes] == order
    pixels = torch.arange(6).view(1, 2, 3)
    for r, want in zip(routes, order, strict=True):
        sequence = read_map(pixels, (r,))
        assert sequence[:, :, 0].tolist() == [want]
        assert torch.equal(write_map(sequence, (r,), 2, 3), pixels)


@pytest.mark.parametrize("pattern", ["cross2d", "unidi", "bidi"])
def test_merges_of_the_official_code(pattern):
    """A scan that forgets at once (D = 1, B = 0) returns each route's own input: what is left is the merge."""
    from vssm.scans.routes import BIDIRECTIONAL, UNIDIRECTIONAL
    from vssm_kernels.routes import scatter

    routes = dict(cross2d=CROSS, unidi=UNIDIRECTIONAL, bidi=BIDIRECTIONAL)[pattern]
    record = parity.load("vmamba_modes")["ops"][f"cross_merge_{pattern}"]
    x = torch.tensor(record["x"]).view(1, 4, 2, 6)
    merged = sum(scatter(x[:, k], r, 2, 3) for k, r in enumerate(routes))
    assert torch.allclose(merged.flatten(), torch.tensor(record["y"]).flatten(), rtol=1e-6)


# ---- ssd


def ssd_inputs(length=100, heads=4, head_dim=3, groups=2, states=5, dtype=torch.float64, decay=1.0):
    g = torch.Generator().manual_seed(2)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return dict(
        x=randn(2, length, heads, head_dim),
        dt=randn(2, length, heads),
        A=-decay * torch.rand(heads, generator=g, dtype=torch.float64).to(dtype),
        B=randn(2, length, groups, states),
        C=randn(2, length, groups, states),
        D=randn(heads, head_dim),
        dt_bias=randn(heads),
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("decay", [1.0, 50.0])
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs_library)])
def test_ssd(length, chunk_size, decay, backend):
    inputs = ssd_inputs(length, decay=decay)
    exact = leaves(inputs)
    want = reference.ssd_fwd(**exact, dt_softplus=True)
    ours = leaves({k: v.float() for k, v in inputs.items()})
    got = ssd(**ours, dt_softplus=True, chunk_size=chunk_size, backend=backend)
    assert relative(got, want) < 1e-5
    w = torch.randn(want.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (want * w).sum().backward()
    (got.double() * w).sum().backward()
    for k in inputs:
        assert relative(ours[k].grad, exact[k].grad) < 1e-4, k


@pytest.mark.parametrize("absent", ["D", "dt_bias"])
def test_ssd_options(absent):
    inputs = ssd_inputs(20)
    inputs[absent] = None
    assert torch.allclose(ssd(**inputs, dt_softplus=True), reference.ssd_fwd(**inputs, dt_softplus=True))
    inputs = ssd_inputs(20)
    inputs["D"] = inputs["D"][:, 0]
    x = leaves(inputs)
    assert torch.autograd.gradcheck(
        lambda *a: ssd(*a, dt_softplus=True, chunk_size=8), list(x.values()), fast_mode=True
    )
    assert torch.allclose(ssd(**inputs, backend="reference"), ssd(**inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs_library)])
def test_ssd_half(dtype, backend):
    inputs = {k: v.to(dtype) for k, v in ssd_inputs(50).items()}
    got = ssd(**inputs, dt_softplus=True, backend=backend)
    want = reference.ssd_fwd(**{k: v.double() for k, v in inputs.items()}, dt_softplus=True)
    assert got.dtype == dtype and relative(got, want) < 2 * torch.finfo(dtype).eps


def test_ssd_official_numbers():
    record = parity.load("vmamba_modes")["ops"]["ssd"]
    shapes = dict(x=(1, 8, 8, 3), dt=(1, 8, 8), A=(8,), B=(1, 8, 4, 5), C=(1, 8, 4, 5), D=(8, 3), dt_bias=(8,))
    inputs = {}
    for name, shape in shapes.items():
        key = {"A": "logA", "dt_bias": "bias"}.get(name, name)
        inputs[name] = torch.tensor(record[key] if key in record else record[name]).view(shape)
    if "logA" in record:
        inputs["A"] = -inputs["A"].exp()
    y = ssd(**inputs, dt_softplus=True)
    assert torch.allclose(y.flatten(), torch.tensor(record["y"]).flatten(), rtol=1e-5, atol=1e-5)
