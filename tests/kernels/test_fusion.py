"""Several kernels over a map whose edges are repeated: against PyTorch's padding and convolutions in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.test_cpu import by_threads, needs_library
from vssm_kernels.fusion import fusion_here

pytestmark = needs_library
DILATIONS = [1, 3, 5]


def make(size=(9, 7), channels=19, sides=(3, 3, 3)):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, *size, channels, generator=g)
    return x, [torch.randn(channels, 1, side, side, generator=g) for side in sides]


def by_layers(x, weights):
    y = 0
    for weight, dilation in zip(weights, DILATIONS, strict=True):
        reach = dilation * (weight.shape[-1] // 2)
        padded = F.pad(x.permute(0, 3, 1, 2), [reach] * 4, mode="replicate")
        y = y + F.conv2d(padded, weight, dilation=dilation, groups=len(weight))
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 7), (14, 23)])
@pytest.mark.parametrize("sides", [(3, 3, 3), (1, 5, 3)])
def test_results_and_gradients(variant, size, sides):
    x, weights = make(size, sides=sides)
    ours, exact = ([t.to(dtype).requires_grad_() for t in (x, *weights)] for dtype in (torch.float32, torch.float64))
    got, want = fusion_here(ours[0], ours[1:], DILATIONS), by_layers(exact[0], exact[1:])
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(got, ours, grad), torch.autograd.grad(want, exact, grad.double())
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_what_needs_no_gradient_gets_none():
    x, weights = make()
    for first in (True, False):
        leaves = [x.clone().requires_grad_(first), *(w.clone().requires_grad_(not first) for w in weights)]
        fusion_here(leaves[0], leaves[1:], DILATIONS).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [first, *[not first] * 3]


def test_gradients_of_gradients():
    x, weights = make((4, 3), channels=2)
    results = []
    for run in (lambda leaves: fusion_here(leaves[0], leaves[1:], DILATIONS), lambda ls: by_layers(ls[0], ls[1:])):
        leaves = [t.clone().requires_grad_() for t in (x, *weights)]
        first = torch.autograd.grad(run(leaves).square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.sin().sum() for g in first), leaves))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    # With frozen kernels there is no other gradient.
    leaf = x.clone().requires_grad_()
    first = torch.autograd.grad(fusion_here(leaf, weights, DILATIONS).square().sum(), leaf, create_graph=True)[0]
    want = torch.autograd.grad(by_layers(leaf, weights).square().sum(), leaf)[0]
    assert torch.allclose(first, want, rtol=1e-4, atol=1e-4) and torch.autograd.grad(first.sum(), leaf)[0].any()


def test_no_bits_depend_on_the_threads():
    x, weights = make((20, 13))

    def compute():
        leaves = [t.clone().requires_grad_() for t in (x, *weights)]
        y = fusion_here(leaves[0], leaves[1:], DILATIONS)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    assert all(torch.equal(a, b) for a, b in zip(*by_threads(compute), strict=True))


def test_the_layers_run_where_something_looks_on(monkeypatch):
    x, weights = make()
    assert fusion_here(x, weights, DILATIONS) is not None
    assert fusion_here(x.double(), weights, DILATIONS) is fusion_here(x[:0], weights, DILATIONS) is None
    with FlopCounterMode(display=False):
        assert fusion_here(x, weights, DILATIONS) is None
    monkeypatch.setenv("VSSM_BACKEND", "torch")
    assert fusion_here(x, weights, DILATIONS) is None
