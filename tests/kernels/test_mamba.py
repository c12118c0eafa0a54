"""`mamba_inner` against a token after token in float64, on every backend, and as an operator of PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.test_cpu import by_threads, needs_library
from vssm_kernels import available_backends, cpu, decompositions, mamba_inner

OP = torch.ops.vssm.mamba_inner
BACKENDS = [b for b in available_backends("cpu") if b != "triton"]


def make(directions=2, channels=5, length=7, states=3, rank=2, taps=4, batch=2, bias=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return dict(
        xz=randn(batch, length, 2 * channels),
        conv_weight=randn(directions * channels, 1, taps),
        conv_bias=randn(directions * channels) if bias else None,
        x_proj=randn(directions, rank + 2 * states, channels) / channels**0.5,
        dt_weight=randn(directions, channels, rank),
        dt_bias=randn(directions, channels),
        A=-randn(directions, channels, states).exp(),
        D=randn(directions, channels),
    )


def step_by_step(xz, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D):
    """Mamba's recurrence as its paper writes it, on a sequence that is turned round for the second direction."""
    directions, channels, states = A.shape
    taps, rank = conv_weight.shape[-1], dt_weight.shape[2]
    x, z = xz.chunk(2, dim=-1)
    total = torch.zeros_like(x)
    for k in range(directions):
        own = slice(k * channels, (k + 1) * channels)
        tokens = x.flip(1) if k else x
        h, seen, results = torch.zeros(*x[:, 0].shape, states, dtype=x.dtype), [torch.zeros_like(x[:, 0])] * taps, []
        for t in range(x.shape[1]):
            seen = [*seen[1:], tokens[:, t]]
            u = sum(w * past for w, past in zip(conv_weight[own, 0].unbind(1), seen, strict=True))
            u = F.silu(u if conv_bias is None else u + conv_bias[own])
            dt, B, C = (u @ x_proj[k].T).split([rank, states, states], dim=-1)
            step = F.softplus(dt @ dt_weight[k].T + dt_bias[k])
            h = torch.exp(step[..., None] * A[k]) * h + (step * u)[..., None] * B[:, None]
            results.append((h * C[:, None]).sum(-1) + D[k] * u)
        y = torch.stack(results, dim=1)
        total = total + (y.flip(1) if k else y)
    return total * F.silu(z)


FORMS = [
    {},
    dict(directions=1),
    dict(bias=False, taps=1),
    dict(length=3, taps=5),
    dict(channels=17, length=1),
    dict(channels=32, length=70, states=16, rank=1, batch=1),
    dict(channels=83, length=33, states=1, batch=3, taps=3),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_composed(form):
    inputs = make(**form)
    want = 0.5 * step_by_step(**inputs)
    for backend in ("torch", "reference"):
        torch.testing.assert_close(mamba_inner(**inputs, scale=0.5, backend=backend), want)


@needs_library
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_compiled(form, variant):
    inputs = make(**form, dtype=torch.float32)
    want = step_by_step(**{name: None if x is None else x.double() for name, x in inputs.items()})
    got = cpu.mamba_inner_fwd(**inputs, scale=1.0)
    assert (got - want).abs().max() <= 3e-6 * want.abs().max()
    half = {
        name: x.bfloat16() if name in ("xz", "x_proj") or "conv" in name else x
        for name, x in inputs.items()
        if x is not None
    }
    assert cpu.mamba_inner_fwd(**{"conv_bias": None, **half}, scale=1.0).dtype == torch.bfloat16


@needs_library
def test_the_number_of_threads_changes_no_bit():
    inputs = make(channels=40, length=150, states=4, dtype=torch.float32)
    assert torch.equal(*by_threads(lambda: mamba_inner(**inputs)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    dtype = torch.float32 if backend == "cpp" else torch.float64
    inputs = {name: x.requires_grad_() for name, x in make(dtype=dtype).items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    weight = torch.rand(2, 7, 5, dtype=torch.float64)
    (mamba_inner(**inputs, backend=backend) * weight).sum().backward()
    (step_by_step(**exact) * weight).sum().backward()
    for name, x in inputs.items():
        torch.testing.assert_close(x.grad.double(), exact[name].grad, rtol=1e-4, atol=1e-5)


def test_opcheck():
    torch.library.opcheck(OP, tuple(x.requires_grad_() for x in make().values()))
    without_bias = tuple(make(bias=False, dtype=torch.float32).values())
    torch.library.opcheck(OP, (*without_bias, 0.5))


def test_transforms_and_decomposition():
    inputs = make()
    args = tuple(inputs.values())
    want = OP(*args)
    torch.testing.assert_close(decompositions()[OP.default](*args), want)
    both = torch.stack([inputs["xz"], -inputs["xz"]])
    torch.testing.assert_close(torch.vmap(lambda xz: OP(xz, *args[1:]))(both)[0], want)
    _, tangent = torch.func.jvp(lambda xz: OP(xz, *args[1:]), args[:1], args[:1])
    near = (OP(args[0] * (1 + 1e-6), *args[1:]) - OP(args[0] * (1 - 1e-6), *args[1:])) / 2e-6
    torch.testing.assert_close(tangent, near, rtol=1e-5, atol=1e-7)


def test_flops():
    with FlopCounterMode(display=False) as counter:
        mamba_inner(**make())
    tokens, inner = 2 * 7, 2 * 5
    assert counter.get_total_flops() == tokens * inner * (9 * 3 + 1 + 2 * (4 + 2 + 2 * 3 + 2))


def test_bad_input():
    inputs = make()
    with pytest.raises(ValueError, match=r"mamba_inner: xz must have shape \(any, any, 10\), got \(2, 7, 9\)"):
        mamba_inner(**inputs | {"xz": inputs["xz"][..., :9]})
    with pytest.raises(ValueError, match="one direction or two"):
        mamba_inner(**make(directions=3))
    with pytest.raises(TypeError, match="x_proj must have the dtype"):
        mamba_inner(**inputs | {"x_proj": inputs["x_proj"].float()})
