"""The op that MLPs are in models compiled for inference, and which MLPs are."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.test_cpu import needs_library
from tests.kernels.test_passes import HALVES, rounded
from vssm.layers import ConvFFN, DepthwiseMlp, add_mlp
from vssm_kernels.ops import mlp as op

KINDS = {
    "plain": lambda: Mlp(8, 20),
    "tanh": lambda: Mlp(8, 20, act_layer=lambda: nn.GELU("tanh")),
    "without biases": lambda: Mlp(8, 20, bias=False),
    "convolution": lambda: DepthwiseMlp(8, 20),
    "convolution and sum": lambda: ConvFFN(8, 20),
    "activation first": lambda: ConvFFN(8, 20, act_first=True),
}


class Branch(nn.Module):
    """x + mlp(norm(x)), as blocks have it."""

    def __init__(self, mlp):
        super().__init__()
        self.norm, self.mlp, self.drop_path = nn.LayerNorm(8), mlp, DropPath(0.5)

    def forward(self, x):
        y = add_mlp(x, self.norm, self.mlp, self.drop_path)
        return x + self.drop_path(self.mlp(self.norm(x))) if y is None else y


def make(kind):
    torch.manual_seed(0)
    branch = Branch(KINDS[kind]()).eval()
    for p in branch.parameters():
        nn.init.normal_(p, std=0.5)
    return branch


def ops_of(module, x):
    """The result of a compiled module, and the ops of ours in its graph."""
    found = []

    def backend(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes if "vssm" in str(node.target))
        return graph

    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend=backend)(x), found


@needs_library
@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3, 11)])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_branches(kind, size, monkeypatch):
    branch, x = make(kind), rounded(5, *size, 8)
    want = make(kind).double()(x.double())
    for hidden in (1, 2**20):  # in as many pieces as can be, and in one
        monkeypatch.setattr(op, "_HIDDEN", hidden)
        y, found = ops_of(branch, x)
        assert found == ["vssm.mlp"]
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    for dtype in HALVES:
        with torch.autocast("cpu", dtype):
            y, found = ops_of(branch, x)
            assert found == ["vssm.mlp"] and y.dtype == torch.float32
            torch.testing.assert_close(y, branch(x), rtol=1e-2, atol=1e-2 * want.abs().max().item())
        y, found = ops_of(make(kind).to(dtype), x.to(dtype))
        assert found == ["vssm.mlp"] and y.dtype == dtype
        torch.testing.assert_close(y.double(), want, rtol=2e-2, atol=2e-2 * want.abs().max().item())


@needs_library
@torch.no_grad()
@pytest.mark.parametrize("act_first", [True, False])
def test_layers_alone(act_first):
    layer, x = ConvFFN(8, 20, act_first=act_first).eval(), rounded(2, 3, 5, 8)
    y, found = ops_of(layer, x)
    assert found == ["vssm.mlp"]
    torch.testing.assert_close(y, layer(x))


@needs_library
@torch.no_grad()
def test_where_the_layers_run():
    x = rounded(2, 3, 5, 8)

    def runs(branch, x=x):
        y, found = ops_of(branch, x)
        return not found and torch.equal(y, branch(x))

    assert not runs(make("plain"))
    with torch.enable_grad():
        assert runs(make("plain"))
    assert runs(make("plain").double(), x.double())
    other = make("plain")
    other.mlp.act = nn.ReLU()
    assert runs(other)
    other = make("plain")
    other.norm = nn.LayerNorm(8, elementwise_affine=False)
    assert runs(other)
    other = make("plain")
    other.mlp.fc1.register_forward_hook(lambda module, args, result: 2 * result)
    assert runs(other)
    other = make("plain")
    other.mlp.fc2 = type("Adapter", (nn.Linear,), {})(20, 8)
    assert runs(other)
    other = make("convolution")
    other.mlp.dwconv = nn.Conv2d(20, 20, 3, padding=1, groups=20, padding_mode="replicate")
    assert runs(other)
    assert not ops_of(make("plain").train(), x)[1]
    exported = torch.export.export(make("plain"), (x,))
    assert not any("vssm" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_the_op(conv, norm):
    x, weight1, weight2 = rounded(2, 3, 5, 8), rounded(20, 8), rounded(8 if norm else 6, 20)
    inputs = dict(x=x, weight1=weight1, bias1=rounded(20), weight2=weight2, bias2=None)
    if norm:
        inputs |= dict(norm_weight=rounded(8), norm_bias=rounded(8))
    if conv:
        inputs |= dict(conv_weight=rounded(20, 1, 3, 3), conv_bias=rounded(20))
    torch.library.opcheck(torch.ops.vssm.mlp.default, (), inputs)
    torch.library.opcheck(torch.ops.vssm.mlp.default, (), inputs | dict(x=x.transpose(1, 2)))
    with FlopCounterMode(display=False) as counter:
        torch.ops.vssm.mlp(**inputs)
    assert counter.get_total_flops() == 2 * 30 * 20 * (8 + len(weight2) + 9 * conv)
    with pytest.raises(ValueError, match="bias1 must have shape"):
        torch.ops.vssm.mlp(**inputs | dict(bias1=rounded(19)))
    with pytest.raises(ValueError, match="the input is empty"):
        torch.ops.vssm.mlp(**inputs | dict(x=x[:0]))


def test_pieces_add_up(monkeypatch):
    monkeypatch.setattr(op, "_HIDDEN", 7)
    x, weight1, weight2 = rounded(3, 4, 5, 8), rounded(20, 8), rounded(8, 20)
    want = F.linear(F.gelu(F.linear(x, weight1)), weight2)
    torch.testing.assert_close(torch.ops.vssm.mlp(x, weight1, None, weight2, None), want, rtol=1e-5, atol=1e-4)
