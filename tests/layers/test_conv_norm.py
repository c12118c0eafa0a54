"""Convolutions with BatchNorm: shapes, the layers they stand for, and folding."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vssm.layers import ConvNorm, LinearNorm


def trained(layer):
    """In eval mode with statistics and affine parameters that are not the initial ones."""
    torch.manual_seed(0)
    for tensor in [*layer.parameters(), *layer.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return layer.double().eval()


LAYERS = [
    ConvNorm(6, 6, depthwise=True),
    ConvNorm(6, 10, stride=2, act=True),
    LinearNorm(6, 10),
    LinearNorm(6, 10, act=True),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@torch.no_grad()
def test_forward_and_fuse(layer):
    layer = trained(copy.deepcopy(layer))
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    y = x.permute(0, 3, 1, 2)
    if isinstance(layer, ConvNorm):
        y = F.conv2d(y, layer.conv.weight, stride=layer.conv.stride, padding=1, groups=layer.conv.groups)
    else:
        y = F.conv2d(y, layer.linear.weight[:, :, None, None])
    norm = layer.norm
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
    y = (y.relu() if isinstance(norm.act, torch.nn.ReLU) else y).permute(0, 2, 3, 1)
    assert torch.allclose(layer(x), y)
    assert torch.allclose(layer.fuse().fuse()(x), y)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in layer.modules())


@torch.no_grad()
def test_fuse_residual():
    layer = trained(ConvNorm(6, 6, depthwise=True))
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    keep, scale = torch.rand(6).double(), torch.rand(6).double()
    want = keep * x + scale * layer(x)
    layer.fuse_residual(keep, scale)
    assert torch.allclose(layer(x), want)
