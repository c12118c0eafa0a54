"""The compiled state-space dual against the float64 reference, with every instruction set that this processor has."""

import pytest
import torch

from tests.kernels.test_cpu import by_threads, needs_library
from vssm_kernels import cpu, reference

pytestmark = needs_library

# Batch, positions, heads, channels a head, groups, states: one of each, parts of vectors, many spans.
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 5, 6, 3, 3, 5), (2, 37, 4, 16, 2, 64), (1, 300, 4, 20, 1, 70), (2, 129, 2, 7, 1, 17)]


def make(batch, length, heads, head_dim, groups, states, with_d=True, with_bias=True, decay=1.0):
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=g)

    return dict(
        x=randn(batch, length, heads, head_dim),
        dt=randn(batch, length, heads) - 1,
        A=-decay * torch.rand(heads, generator=g) - 0.05,
        B=randn(batch, length, groups, states),
        C=randn(batch, length, groups, states),
        D=randn(heads, head_dim) if with_d else None,
        dt_bias=randn(heads) if with_bias else None,
    )


def deviations(inputs, softplus=True):
    """The largest deviation of the result and of each gradient from the reference, as a part of the largest value."""
    exact = {k: None if v is None else v.double().requires_grad_() for k, v in inputs.items()}
    y = reference.ssd_fwd(**exact, dt_softplus=softplus)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(grad.double())
    found = cpu.ssd_fwd(**inputs, dt_softplus=softplus), *cpu.ssd_bwd(grad, **inputs, dt_softplus=softplus)
    wanted = y, *(None if v is None else v.grad for v in exact.values())
    assert [x is None for x in found] == [x is None for x in wanted]
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if b is not None]
    assert all(a.shape == b.shape and a.dtype == torch.float32 for a, b in pairs)
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(variant, shape):
    assert max(deviations(make(*shape))) < 2e-5


def test_options_and_strong_decay(variant):
    assert max(deviations(make(2, 40, 4, 5, 2, 6, with_d=False, with_bias=False))) < 2e-5
    assert max(deviations(make(2, 90, 4, 5, 2, 6, decay=200.0))) < 2e-5
    plain = make(2, 40, 4, 5, 2, 6)
    plain["dt"], plain["dt_bias"] = plain["dt"].abs() / 10, plain["dt_bias"].abs() / 10
    assert max(deviations(plain, softplus=False)) < 2e-5


def test_one_skip_a_head():
    inputs = make(2, 20, 4, 5, 2, 6)
    inputs["D"] = inputs["D"][:, 0]
    assert max(deviations(inputs)) < 2e-5


def test_what_is_not_a_number_stays_where_it_belongs(variant):
    """A NaN reaches its own head, from its position on; the other heads, images and earlier positions are as before."""
    inputs = make(2, 40, 4, 5, 2, 6)
    clean = cpu.ssd_fwd(**inputs, dt_softplus=True)
    inputs["x"][1, 7, 2, 3] = torch.nan
    found = cpu.ssd_fwd(**inputs, dt_softplus=True)
    bad = torch.zeros(clean.shape, dtype=torch.bool)
    bad[1, 7:, 2, 3] = True
    assert torch.equal(found.isnan(), bad) and torch.equal(found[~bad], clean[~bad])


def test_no_result_depends_on_the_threads():
    inputs = make(3, 70, 6, 20, 3, 9) | {"dt_softplus": True}
    grad = torch.randn(inputs["x"].shape)
    results = by_threads(lambda: [cpu.ssd_fwd(**inputs), *cpu.ssd_bwd(grad, **inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_half_inputs_and_strides():
    inputs = make(2, 20, 4, 16, 2, 8)
    halves = {k: v.bfloat16() if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}
    exact = {k: v.float() for k, v in halves.items()}
    assert torch.equal(cpu.ssd_fwd(**halves), cpu.ssd_fwd(**exact).bfloat16())
    spread = {k: v.transpose(0, 1).contiguous().transpose(0, 1) if v.dim() > 2 else v for k, v in inputs.items()}
    assert torch.equal(cpu.ssd_fwd(**spread), cpu.ssd_fwd(**inputs))
