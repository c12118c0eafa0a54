"""The deformable step by the compiled library, on every instruction set, against torchvision's operator in float64."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.test_cpu import by_threads, every_variant, needs_library
from vssm.scans import DeformableStep
from vssm.scans import deformable as module
from vssm_kernels import cpu_maps
from vssm_kernels.deform import deform_by_gathering, deform_here

pytestmark = needs_library
# Channels, groups, height and width; the last has rows of many vectors.
SIZES = [(1, 1, 1, 1), (16, 2, 5, 7), (24, 1, 3, 2), (34, 2, 1, 6), (6, 6, 9, 4), (132, 2, 3, 3)]


def make(channels, groups, height, width, reach=1.5):
    """A step in float64, whose points go far, and an input, a gradient."""
    generator = torch.Generator().manual_seed(0)
    step = DeformableStep(channels, groups).double()
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double() * reach * channels**-0.5)
    x, grad = torch.randn(2, 2, height, width, channels, generator=generator).double().permute(0, 1, 4, 2, 3)
    return step, x, grad


def run(step, x, grad):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = step(x)
    return y.detach(), *torch.autograd.grad(y, [x, *step.parameters()], grad)


@pytest.fixture
def calls(monkeypatch):
    found, compute = [], cpu_maps.deform
    monkeypatch.setattr(cpu_maps, "deform", lambda *args: found.append(1) or compute(*args))
    return found


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("reach", [0.3, 6.0])
def test_values_and_gradients(size, reach, calls):
    step, x, grad = make(*size, reach=reach)
    want = run(step, x, grad)
    assert not calls
    step.float()
    for count, _ in enumerate(every_variant(), 1):
        for got, exact in zip(run(step, x.float(), grad.float()), want, strict=True):
            assert got.dtype == torch.float32 and got.shape == exact.shape
            # A step that rounds to the other side of a pixel has the slope of that side.
            torch.testing.assert_close(got.double(), exact, rtol=2e-4, atol=2e-4 * exact.abs().max().item())
        assert len(calls) == count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    """The numbers come in half, the points are computed in float32."""
    step, x, grad = make(16, 2, 5, 7)
    half = step.to(dtype), x.to(dtype), grad.to(dtype)
    got = run(*half)
    with torch.no_grad():
        numbers = step.offset_mask(half[1].permute(0, 2, 3, 1))[..., :54].unflatten(-1, (2, 27)).double()
    assert all(g.dtype == dtype for g in got)
    x = half[1].double().permute(0, 2, 3, 1)
    exact = deform_here(x.float(), numbers.float()).permute(0, 3, 1, 2)
    torch.testing.assert_close(got[0], exact.to(dtype))


def test_points_that_are_nowhere_or_far_away():
    x, numbers = torch.ones(1, 3, 4, 2), torch.zeros(1, 3, 4, 1, 27)
    numbers[..., 18:] = 1
    whole = deform_here(x, numbers)
    for value in (1e30, -1e30, float("inf"), float("-inf"), 5.0, -5.0):
        numbers[0, 1, 1, 0, :18] = value
        y = deform_here(x, numbers)
        assert (y[0, 1, 1] == 0).all()
        y[0, 1, 1] = whole[0, 1, 1]
        assert torch.equal(y, whole)
    numbers[0, 1, 1, 0, 3] = float("nan")
    leaf = numbers.clone().requires_grad_()
    y = deform_here(x, leaf)
    assert y[0, 1, 1].isnan().all() and y.isnan().sum() == 2
    y.sum().backward()
    assert leaf.grad[0, 1, 1, 0, 2:4].isnan().all() and leaf.grad[0, 0].isfinite().all()


def test_the_same_bits_for_every_number_of_threads():
    x, grad, numbers = torch.randn(2, 3, 9, 8, 34)[:2, 0], torch.randn(2, 9, 8, 34), torch.randn(2, 9, 8, 2, 27)
    x = x.contiguous()
    results = by_threads(lambda: [cpu_maps.deform(x, numbers), *cpu_maps.deform_grad(grad, x, numbers)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layouts(calls):
    step, x, grad = make(16, 2, 5, 7)
    step, x, grad = step.float(), x.float(), grad.float()
    want = run(step, x, grad)
    for given in (x.contiguous(), x.contiguous().transpose(2, 3).contiguous().transpose(2, 3)):
        assert all(torch.equal(a, b) for a, b in zip(run(step, given, grad.contiguous()), want, strict=True))
    assert len(calls) == 3


def test_what_else_looks_at_it(calls, monkeypatch):
    """Compilers, modes and other backends take torchvision's operator."""
    step, x, _ = make(4, 2, 3, 3)
    step, x = step.float(), x.float()
    want = step(x)
    assert torch.equal(torch.fx.symbolic_trace(step)(x), want) and len(calls) == 2  # one node, which runs as it is
    calls.clear()
    with FlopCounterMode(display=False):
        step(x)
    torch.testing.assert_close(torch.compile(step, backend="eager")(x), want)
    assert step(x[:0]).shape == (0, 4, 3, 3)
    assert step.to("meta")(x.to("meta")).shape == want.shape
    monkeypatch.setenv("VSSM_BACKEND", "torch")
    assert module.deform_here(x.permute(0, 2, 3, 1), torch.zeros(2, 3, 3, 2, 27)) is None
    assert not calls


def test_every_derivative():
    """Forward mode, transforms and second order, where torchvision's operator gives zeros or fails."""
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(1, 4, 3, 5, generator=generator) for _ in "xv")
    numbers, w = (torch.randn(1, 3, 5, 2, 27, generator=generator) for _ in "nw")
    run = module.deformable_step
    double = run(x.double(), numbers.double())
    gathered = deform_by_gathering(x.double().permute(0, 2, 3, 1), numbers.double()).permute(0, 3, 1, 2)
    torch.testing.assert_close(gathered, double)
    y, tangent = torch.func.jvp(run, (x.double(), numbers.double()), (v.double(), w.double()))
    moved = run(x.double() + 1e-7 * v, numbers.double() + 1e-7 * w)
    torch.testing.assert_close(y, double)
    torch.testing.assert_close(tangent, (moved - double) / 1e-7, rtol=1e-4, atol=1e-4)

    def loss(x, numbers):
        return run(x, numbers).square().sum()

    got = torch.func.grad(loss, (0, 1))(x, numbers)
    leaves = x.clone().requires_grad_(), numbers.clone().requires_grad_()
    grads = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    torch.testing.assert_close(got, tuple(g.detach() for g in grads), rtol=1e-4, atol=1e-4)
    second = torch.autograd.grad((grads[0] * v).sum() + (grads[1] * w).sum(), leaves)
    want = torch.func.jvp(torch.func.grad(loss, (0, 1)), (x.double(), numbers.double()), (v.double(), w.double()))[1]
    for a, b in zip(second, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)
