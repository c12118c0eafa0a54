"""Large maps in pieces give what they give whole, and nothing that looks at a model sees pieces."""

import pytest
import timm
import torch
import torch.nn as nn
from timm.layers import Mlp
from torch.utils.flop_counter import FlopCounterMode

import vssm
from vssm.layers import ConvMixerBlock, MixerBlock, add_mlp, pieces, split_batch, split_rows
from vssm.models import StagedBackbone
from vssm_kernels.ops import mlp as mlp_op

PICOS = [name for name in vssm.list_models() if name.endswith("_pico")]


@pytest.fixture
def small(monkeypatch):
    """Every image and some pixels by themselves."""
    monkeypatch.setattr(pieces, "_STAGE", 1)
    monkeypatch.setattr(mlp_op, "_HIDDEN", 64)


def seen(part, call):
    """The lengths of the batches that reach a part in a call."""
    lengths, forward = [], part.forward
    part.forward = lambda x: lengths.append(len(x)) or forward(x)
    call()
    del part.forward
    return lengths


@torch.no_grad()
@pytest.mark.parametrize("name", PICOS)
def test_models(name, monkeypatch):
    model = timm.create_model(name).double().eval()
    x = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    want = model(x)
    monkeypatch.setattr(pieces, "_STAGE", 1)
    monkeypatch.setattr(mlp_op, "_HIDDEN", 64)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-12)
    if isinstance(model, StagedBackbone) and isinstance(model.stages, nn.Sequential):
        assert seen(model.stages[-1].blocks, lambda: model(x)) == [1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("kind", [MixerBlock, ConvMixerBlock])
def test_the_mlp_of_a_block(kind, small):
    mlp = Mlp(8, 32)
    block = kind(8, nn.Identity(), mlp=mlp).eval()
    x = torch.randn(1, 5, 7, 8)
    got = block(x)
    lengths = []
    for layer in (mlp.fc1, mlp.fc2):
        assert not lengths or sum(lengths) == 35
        lengths = seen(layer, lambda: block(x))  # noqa: B023
        assert len(lengths) > 1 and sum(lengths) == 35
    mlp.fc1.register_forward_hook(lambda layer, args, y: None)
    assert seen(mlp.fc2, lambda: block(x)) == [1]  # the whole map
    torch.testing.assert_close(got, block(x))


def test_the_mlps_that_go_whole(small):
    x, norm, stay = torch.randn(2, 5, 7, 8), nn.LayerNorm(8).eval(), nn.Identity().eval()
    with torch.no_grad():
        assert add_mlp(x, norm, Mlp(8, 32).eval(), stay) is not None
        for mlp in (Mlp(8, 32), Mlp(8, 32, act_layer=nn.ReLU).eval(), Mlp(8, 32, use_conv=True).eval(), stay):
            assert add_mlp(x, norm, mlp, stay) is None
        assert add_mlp(x, nn.BatchNorm1d(8).eval(), Mlp(8, 32).eval(), stay) is None


def test_what_looks_at_a_model_sees_the_whole(small):
    part, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout()).eval(), torch.randn(4, 3, 8)

    def count(x=x):
        rows = split_rows(x, 32, [part])
        assert len(split_batch(x, part)) == min(4, 1 if rows is None else len(rows))
        return len(split_batch(x, part))

    assert count() == 1  # autograd
    with torch.no_grad():
        assert count() == 4
        assert count(x.to("meta")) == 1
        with FlopCounterMode(display=False):
            assert count() == 1
        part[1].train()
        assert count() == 1
        part.eval()
        for hook in (part[0].register_forward_hook(print), part[0].register_forward_pre_hook(print)):
            assert count() == 1
            hook.remove()
        assert count() == 4


@torch.no_grad()
def test_small_maps_go_whole():
    part = nn.Identity().eval()
    assert len(split_batch(torch.empty(1, 3, 600, 600), part)) == len(split_rows(torch.empty(49, 8), 32, [part])) == 1
    assert len(split_batch(torch.empty(2, 56, 56, 96), part)) == 1
    assert len(split_batch(torch.empty(8, 56, 56, 96), part)) == 4
