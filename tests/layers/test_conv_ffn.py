"""The convolutional feed-forward layer against its definition on channels-first maps."""

import pytest
import torch
import torch.nn.functional as F

from vssm.layers import ConvFFN


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4)])
def test_definition(size):
    torch.manual_seed(0)
    layer, x = ConvFFN(6, 15).double(), torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.fc1.weight[:, :, None, None], layer.fc1.bias)
    y = F.gelu(y + F.conv2d(y, layer.conv.weight, layer.conv.bias, padding=1, groups=15))
    y = F.conv2d(y, layer.fc2.weight[:, :, None, None], layer.fc2.bias).permute(0, 2, 3, 1)
    assert torch.allclose(layer(x), y, rtol=1e-12, atol=1e-13)
    inputs = (x, *layer.parameters())
    g = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad(layer(x), inputs, g), torch.autograd.grad(y, inputs, g), strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


def test_it_starts_like_convolutions():
    torch.manual_seed(0)
    layer = ConvFFN(64, 128)
    for linear in (layer.fc1, layer.fc2):
        torch.nn.init.zeros_(linear.weight)
    layer.init_weights()
    for linear in (layer.fc1, layer.fc2):
        bound = linear.in_features**-0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound and 0 < linear.bias.abs().max() <= bound
