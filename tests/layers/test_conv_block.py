"""Stem, downsampling and block of VSSD and Spatial-Mamba against their definitions, at any size."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from vssm.layers import ConvMixerBlock, InvertedDownsample, ResidualConvStem


def randomised(layer: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    layer = layer.double().eval()
    with torch.no_grad():
        for name, t in layer.state_dict().items():
            if t.is_floating_point():
                v = 0.3 * torch.randn(t.shape, generator=g, dtype=torch.float64)
                t.copy_(1 + v.abs() if name.endswith("running_var") else v)
    return layer


def conv(weights: dict, name: str, x: torch.Tensor, **kwargs) -> torch.Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **kwargs)


def norm(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    c = (1, -1, 1, 1)
    scaled = (x - w[f"{name}.running_mean"].view(c)) / (w[f"{name}.running_var"].view(c) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"].view(c) + w[f"{name}.bias"].view(c)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 1)])
@torch.no_grad()
def test_stem(size):
    stem = randomised(ResidualConvStem(3, 6))
    w = stem.state_dict()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    a = norm(w, "conv1.bn", conv(w, "conv1.conv", x, stride=2, padding=1)).relu()
    b = norm(w, "conv2.0.bn", conv(w, "conv2.0.conv", a, padding=1)).relu()
    a = a + norm(w, "conv2.1.bn", conv(w, "conv2.1.conv", b, padding=1))
    a = norm(w, "conv3.0.bn", conv(w, "conv3.0.conv", a, stride=2, padding=1)).relu()
    a = norm(w, "conv3.1.bn", conv(w, "conv3.1.conv", a))
    y = stem(x)
    assert y.shape == (2, *(-(-s // 4) for s in size), 6) and y.is_contiguous()
    assert torch.allclose(y, a.permute(0, 2, 3, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (1, 1)])
@torch.no_grad()
def test_downsampling(size):
    layer = randomised(InvertedDownsample(3, 5))
    w = layer.state_dict()
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    a = conv(w, "expand", x.permute(0, 3, 1, 2)).relu()
    a = conv(w, "conv", a, stride=2, padding=1, groups=20).relu()
    a = norm(w, "project.bn", conv(w, "project.conv", a))
    y = layer(x)
    assert y.shape == (2, *(-(-s // 2) for s in size), 5)
    assert torch.allclose(y, a.permute(0, 2, 3, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 6), (3, 1), (1, 1)])
@torch.no_grad()
def test_block(size):
    """Twice 1 + depth-wise convolution, each before a residual branch; both branches have a LayerNorm of eps 1e-5."""
    block = randomised(ConvMixerBlock(4, nn.Linear(4, 4), mlp_ratio=2.0, drop_path=0.1))
    w = block.state_dict()
    x = torch.randn(2, *size, 4, dtype=torch.float64)

    def positional(name, x):
        return x + conv(w, name, x.permute(0, 3, 1, 2), padding=1, groups=4).permute(0, 2, 3, 1)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    a = positional("pos_conv1", x)
    a = a + linear("mixer", layer_norm("norm1", a))
    a = positional("pos_conv2", a)
    hidden = linear("mlp.fc1", layer_norm("norm2", a))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    a = a + linear("mlp.fc2", hidden)
    assert torch.allclose(block(x), a, rtol=1e-10, atol=1e-12)


def test_stochastic_depth_drops_both_branches_of_a_sample():
    torch.manual_seed(0)
    block = ConvMixerBlock(4, nn.Linear(4, 4), drop_path=1.0 - 1e-9).train()
    x = torch.randn(2, 3, 3, 4)
    kept = x + block.pos_conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    kept = kept + block.pos_conv2(kept.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(block(x), kept)
