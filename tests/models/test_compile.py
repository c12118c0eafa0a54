"""torch.compile of whole models: one graph, which serves any size, forward and backward."""

import shutil

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vssm
from tests.small import few_blocks

PICOS = [name for name in vssm.list_models() if name.endswith("_pico")]
# No two sizes alike in the first, which the compiler would take for one; and no map of a single pixel, which it makes
# an exception of.
SIZES = [(2, 3, 160, 192), (5, 3, 192, 160), (4, 3, 256, 128), (3, 3, 135, 171)]


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def create(name, **options):
    """One block a stage: more of the same take the compiler longer and show nothing."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, **{**few_blocks(name), **options}).eval()


@torch.no_grad()
def check_sizes(name, backend, sizes):
    # Its last two stages are usual convolutions, and as dear to compile as the others.
    model = create(name, **(dict(depths=(1, 1)) if name == "efficientvmamba_pico" else {}))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for size in sizes:
        x = torch.randn(size)
        assert torch.allclose(compiled(x), model(x), rtol=1e-4, atol=1e-5)
        graphs.append(counter.frame_count)
    return graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", PICOS)
def test_one_graph_serves_any_size(name):
    graphs = check_sizes(name, "eager", SIZES)
    assert graphs[0] == graphs[2]
    assert graphs[-1] <= graphs[0] + 1  # families that pad odd maps have another graph for these


@pytest.mark.slow
@torch.no_grad()
def test_inductor():
    """For one size: with dynamic sizes it takes minutes to compile."""
    model, x = create("vmamba_pico"), torch.randn(2, 3, 96, 128)
    assert torch.allclose(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)


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
