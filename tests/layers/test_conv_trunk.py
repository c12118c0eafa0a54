"""Stem and head of SegMAN and A2Mamba, and the scales of their blocks; their vectors have the rest."""

import pytest
import torch
from torch import nn

from vssm.layers import ChannelScale, ConvFFN, ConvMixerBlock, DeepConvStem, HiddenHead


@torch.no_grad()
def test_stem_rounds_up():
    stem = DeepConvStem(3, 8).eval()
    for size in ((8, 8), (7, 10), (1, 1)):
        assert stem(torch.randn(1, 3, *size)).shape == (1, *(-(-n // 4) for n in size), 8)


@torch.no_grad()
def test_head_comes_and_goes():
    head, x = HiddenHead(6, 5, hidden_dim=16).eval(), torch.randn(2, 3, 4, 6)
    assert head(x).shape == (2, 5) and head(x, pre_logits=True).shape == (2, 16)
    want = torch.nn.functional.silu(head.hidden.linear(x) / (1 + 1e-5) ** 0.5).mean((1, 2))
    assert torch.allclose(head(x, pre_logits=True), want, atol=1e-6)
    head.reset(0, "")
    assert head(x) is x and not list(head.parameters())
    head.reset(7)
    assert head(x).shape == (2, 7) and not head.hidden.training
    head.reset(7, "max")
    want = torch.nn.functional.silu(head.hidden.linear(x) / (1 + 1e-5) ** 0.5).amax((1, 2))
    assert torch.allclose(head(x, pre_logits=True), want, atol=1e-6)
    with pytest.raises(ValueError, match="num_classes=0, got 7"):
        head.reset(7, "")


@pytest.mark.parametrize("scale", ["layer_scale", "residual_scale"])
@torch.no_grad()
def test_scales(scale):
    block = ConvMixerBlock(4, nn.Identity(), mlp=ConvFFN(4, 8, act_first=True), eps=1e-6, **{scale: 0.5}).double()
    assert block.norm1.eps == block.norm2.eps == 1e-6
    for part in (block.pos_conv1, block.pos_conv2):
        for parameter in part.parameters():
            parameter.zero_()
    for part in (block.scale1, block.scale2):
        assert (part.weight == 0.5).all() and (part.bias == 0).all()
        part.bias.fill_(0.25)
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64)

    def add(x, y):
        return x + 0.5 * y + 0.25 if scale == "layer_scale" else 0.5 * x + 0.25 + y

    want = add(x, block.norm1(x))
    assert torch.allclose(block(x), add(want, block.mlp(block.norm2(want))))
    with pytest.raises(ValueError, match="not both, got 0.5 and 1"):
        ConvMixerBlock(4, nn.Identity(), layer_scale=0.5, residual_scale=1.0)
    assert ChannelScale(4, 1.0).paper_flops_offset(torch.empty(2, 3, 3, 4)) == 72
