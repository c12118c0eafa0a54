"""The compiled 2-D scan against float64 autograd, with every instruction set that this processor has."""

from functools import partial

import pytest
import torch

from tests.kernels.test_cpu import by_threads, every_variant, needs_library
from tests.scan_2d import CROSS, NAMES_2D, ROUTES, assert_close_2d, expected_2d, gradient_2d, make_2d
from vssm_kernels import cpu, encode_routes, selective_scan_2d
from vssm_kernels.scan_2d import scan_2d_bwd, scan_2d_fwd
from vssm_kernels.tables import forget_tables


def computed_2d(inputs, routes, grad, softplus=True, merge=True, out_dtype=torch.float32):
    code = encode_routes(routes)
    y = cpu.selective_scan_2d_fwd(*inputs.values(), code, softplus, merge, out_dtype)
    return [y, *cpu.selective_scan_2d_bwd(grad, *inputs.values(), code, softplus, merge)]


def check_2d(routes, softplus=True, merge=True, tolerance=3e-6, **form):
    inputs = make_2d(routes, softplus=softplus, **form)
    grad = gradient_2d(inputs, routes, merge)
    want = expected_2d(inputs, routes, grad, softplus, merge)
    for _ in every_variant():
        assert_close_2d(computed_2d(inputs, routes, grad, softplus, merge), want, tolerance)


@needs_library
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (3, 4), (8, 4), (11, 13)])
@pytest.mark.parametrize("states", [1, 2, 16])
def test_2d_sizes(size, states):
    check_2d(CROSS, height=size[0], width=size[1], states=states)


@needs_library
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("own_input", [True, False])
@pytest.mark.parametrize("rank", [3, None])
def test_2d_routes(routes, merge, own_input, rank):
    check_2d(routes, merge=merge, own_input=own_input, rank=rank, height=7)


@needs_library
@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("absent", [(), ("C",), ("D",), ("delta_bias",), ("C", "D", "delta_bias")])
@pytest.mark.parametrize("softplus", [True, False])
def test_2d_options(states, absent, softplus):
    check_2d(CROSS, softplus, states=states, absent=absent)


# Around the vector widths, the strips, the blocks of ranks and of the positions that the ranks are expanded for.
@needs_library
@pytest.mark.parametrize("channels", [1, 3, 16, 17, 33, 112])
@pytest.mark.parametrize("rank", [1, 2, 7, 33])
def test_2d_ragged_channels_and_ranks(channels, rank):
    check_2d(ROUTES["joined"], batch=1, channels=channels, rank=rank, states=1, width=8)


@needs_library
@pytest.mark.parametrize("states", [5, 17])
def test_2d_any_number_of_states(states):
    check_2d(CROSS, states=states, batch=9, channels=40, rank=2)  # more images than a slab of the backward


@needs_library
@pytest.mark.parametrize("scale", [-16.0, -100.0, -1e4])
def test_2d_extreme_steps_and_decays(variant, scale):
    inputs = make_2d(CROSS, batch=1, height=9, width=10, rank=None, states=3)
    steps = inputs["dt"].numel()
    inputs["dt"] = torch.linspace(-20, 20, steps).view(-1, steps // 40, 40).mT.reshape(inputs["dt"].shape).contiguous()
    inputs["A"] = torch.rand_like(inputs["A"]).add(0.5) * scale
    grad = gradient_2d(inputs, CROSS)
    assert_close_2d(computed_2d(inputs, CROSS, grad), expected_2d(inputs, CROSS, grad), 4e-6)


@needs_library
@pytest.mark.parametrize("name", ["u", "dt", "A", "B", "C", "dt_weight"])
def test_2d_nan_stays_nan(variant, name):
    inputs = make_2d(CROSS, height=7, width=7)
    inputs[name].fill_(float("nan"))
    grad = gradient_2d(inputs, CROSS)
    y, grad_u, *_ = computed_2d(inputs, CROSS, grad)
    assert y.isnan().all()
    if name != "u":
        assert grad_u.isnan().all()


@needs_library
def test_2d_an_infinite_decay_forgets(variant):
    inputs = make_2d(CROSS, absent=("dt_weight",), rank=None)
    inputs["A"] = torch.full_like(inputs["A"], -torch.inf)
    grad = gradient_2d(inputs, CROSS)
    want = selective_scan_2d(**{k: None if x is None else x.double() for k, x in inputs.items()}, routes=CROSS)
    y = computed_2d(inputs, CROSS, grad)[0]
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
@pytest.mark.parametrize("rank", [3, None])
def test_2d_half_inputs(dtype, out_dtype, rank):
    inputs = make_2d(CROSS, rank=rank)
    for name in ("u", "dt", "B", "C"):
        inputs[name] = inputs[name].to(dtype)
    grad = gradient_2d(inputs, CROSS).to(out_dtype or dtype)
    got = computed_2d(inputs, CROSS, grad, out_dtype=out_dtype or dtype)
    for i, (x, (ref, scale)) in enumerate(zip(got, expected_2d(inputs, CROSS, grad), strict=True)):
        if ref is None:
            assert x is None
            continue
        assert x.dtype == ((out_dtype or dtype) if i == 0 else dtype if i in (1, 2, 4, 5) else torch.float32)
        tolerance = 3e-6 if x.dtype == torch.float32 else torch.finfo(dtype).eps
        assert (x.double() - ref).abs().max().item() <= tolerance * scale


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "form",
    [
        dict(states=1),
        dict(states=16, channels=33, rank=2),
        dict(states=3, channels=48, rank=17, height=1, width=1),
        dict(rank=None, own_input=True),
        dict(absent=("C",), states=1, width=1),
    ],
)
def test_2d_half_maps_are_read_as_they_are(variant, dtype, form):
    """The same bits as from maps cast before, values included that are subnormal in half precision."""
    inputs = make_2d(CROSS, **form)
    halves = {name: x.to(dtype) if name in ("u", "dt", "B", "C") and x is not None else x for name, x in inputs.items()}
    halves["u"].view(-1)[:2] = torch.tensor([6e-8, -3e-5])
    cast = {name: None if x is None else x.float() for name, x in halves.items()}
    grad = gradient_2d(inputs, CROSS)
    for got, want in zip(computed_2d(halves, CROSS, grad), computed_2d(cast, CROSS, grad), strict=True):
        assert got is want is None or torch.equal(got, want.to(got.dtype))


@needs_library
def test_2d_any_strides():
    plain = make_2d(CROSS, height=6, width=5)
    views = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in plain.items() if x.dim() > 3}
    views["u"] = plain["u"].movedim(-1, 1).contiguous().movedim(1, -1)
    views["B"] = torch.stack([plain["B"], plain["B"]], dim=-1)[..., 0]
    views["A"] = plain["A"].mT.contiguous().mT
    assert not any(x.is_contiguous() for x in views.values())
    grad = gradient_2d(plain, CROSS)
    want = computed_2d(plain, CROSS, grad)
    got = computed_2d({**plain, **views}, CROSS, grad.transpose(1, 2).contiguous().transpose(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    # One row, one column, one pixel; and values shared by strides of zero.
    for part in (slice(0, 1), slice(0, 5)), (slice(0, 6), slice(0, 1)), (slice(2, 3), slice(3, 4)):
        cut = {name: x[:, part[0], part[1]] if name in ("u", "dt", "B", "C") else x for name, x in plain.items()}
        cut["B"] = cut["B"][:, :, :, :1].expand_as(cut["B"])
        whole = {name: x.contiguous() for name, x in cut.items()}
        grad = gradient_2d(cut, CROSS)
        results = (computed_2d(x, CROSS, grad) for x in (cut, whole))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_library
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("form", [{}, dict(own_input=True), dict(rank=None), dict(merge=False)])
def test_2d_same_bits_for_every_thread_count(routes, form):
    form = dict(form)
    merge = form.pop("merge", True)
    for batch in (1, 3):
        inputs = make_2d(routes, batch=batch, channels=70, **form)
        grad = gradient_2d(inputs, routes, merge)
        # With many, the routes are split among them too.
        results = by_threads(partial(computed_2d, inputs, routes, grad, merge=merge), (1, 2, 2, 5, 16))
        for other in results[1:]:
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_library
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("merge", [True, False])
def test_2d_outputs_are_fully_written(monkeypatch, routes, merge):
    inputs = make_2d(routes, batch=1, channels=35)
    grad = gradient_2d(inputs, routes, merge)
    want = computed_2d(inputs, routes, grad, merge=merge)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    got = computed_2d(inputs, routes, grad, merge=merge)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@needs_library
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
def test_2d_is_the_composed_scan(routes):
    inputs = make_2d(routes, height=9, width=7, channels=32)
    code, grad = encode_routes(routes), gradient_2d(inputs, routes)
    want = [scan_2d_fwd(cpu.selective_scan_fwd, *inputs.values(), code, True, True, torch.float32)]
    want += scan_2d_bwd(cpu.selective_scan_bwd, grad, *inputs.values(), code, True, True)
    for name, a, b in zip(("y", *NAMES_2D), computed_2d(inputs, routes, grad), want, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


@needs_library
def test_2d_tables_made_in_inference_mode_serve_training():
    forget_tables()
    inputs = make_2d(CROSS)
    with torch.inference_mode():
        selective_scan_2d(**inputs, routes=CROSS, backend="cpp")
    u = inputs["u"].clone().requires_grad_()
    selective_scan_2d(**{**inputs, "u": u}, routes=CROSS, backend="cpp").sum().backward()
    assert u.grad.isfinite().all()


@needs_library
def test_2d_an_empty_batch():
    inputs = make_2d(CROSS, batch=0)
    y, *grads = computed_2d(inputs, CROSS, torch.zeros(0, 6, 5, 19))
    assert y.shape == (0, 6, 5, 19) and all((x == 0).all() for x in grads)


@needs_library
def test_2d_float64_is_refused():
    inputs = {k: x.double() for k, x in make_2d(CROSS).items()}
    with pytest.raises(TypeError, match="float64"):
        cpu.selective_scan_2d_fwd(*inputs.values(), encode_routes(CROSS), True, True, torch.float64)
