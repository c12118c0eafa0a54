"""Gradients of compiled models and blocks."""

import shutil

import pytest
import timm
import torch

from tests.models.test_compile import PICOS, create, forget_graphs  # noqa: F401  (a fixture for each test)


def gradients(call, model, x):
    model.zero_grad(set_to_none=True)
    y = call(x)
    y = torch.cat(y) if isinstance(y, tuple) else y  # both heads of a distilled model
    y.square().mean().backward()
    return y.detach(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICOS)
def test_backward(name):
    model = create(name).train()
    x = torch.randn(2, 3, 64, 96)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, grads = gradients(compiled, model, x)
    want_y, want = gradients(model, model, x)
    assert torch.allclose(y, want_y, rtol=1e-4, atol=1e-5)
    for n, g in grads.items():
        assert g is not None and (g - want[n]).norm() <= 1e-4 * want[n].norm() + 1e-6, n


@pytest.mark.slow
def test_inductor_backward_of_a_block():
    if not any(shutil.which(c) for c in ("g++", "clang++")):
        pytest.skip("torch.compile on a CPU needs a C++ compiler")
    torch.manual_seed(0)
    block = timm.create_model("vmamba_pico").stages[1].blocks[0].train()
    compiled = torch.compile(block, fullgraph=True)
    x = torch.randn(2, 8, 6, 64)
    results = []
    for f in (block, compiled):
        x_ = x.clone().requires_grad_()
        block.zero_grad()
        y = f(x_)
        y.square().mean().backward()
        results.append((y.detach(), x_.grad, block.mixer.A_logs.grad.clone()))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
