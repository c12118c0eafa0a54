"""torch.compile of whole models: one graph, which serves any size. `test_compile_backward.py` has the gradients."""

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vssm
from tests.small import few_stages

PICOS = [name for name in vssm.list_models() if name.endswith("_pico")]
# No two sizes alike in the first, which the compiler would take for one; and no map of a single pixel, which it makes
# an exception of.
SIZES = [(2, 3, 160, 192), (5, 3, 192, 160), (4, 3, 256, 128), (3, 3, 135, 171)]


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def create(name):
    """All kinds of blocks with a scan once: others are usual convolutions, and take the compiler longest."""
    torch.manual_seed(0)
    options = dict(depths=(1, 0)) if name == "efficientvmamba_pico" else few_stages(name)
    return timm.create_model(name, num_classes=7, **options).eval()


@torch.no_grad()
def check_sizes(name, backend, sizes):
    model = create(name)
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
