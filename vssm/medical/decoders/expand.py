"""Layers that make a map larger by moving channels into space."""

import torch.nn as nn
from timm.layers import ConvNormAct
from torch import Tensor

__all__ = ["LargeKernelPatchExpand", "PatchExpand", "channels_to_space"]


def channels_to_space(x: Tensor, scale: int) -> Tensor:
    """(B, H, W, scale * scale * C) to (B, scale * H, scale * W, C).

    Channel (p * scale + q) * C + c goes to pixel (scale * h + p, scale * w + q): space is the slow index, where
    torch.nn.PixelShuffle has it as the fast one.
    """
    return x.unflatten(-1, (scale, scale, -1)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


class PatchExpand(nn.Module):
    """Linear, channels to space, LayerNorm (Swin-Unet, arXiv 2105.05537): (B, H, W, dim) to (B, sH, sW, dim_out)."""

    def __init__(self, dim: int, dim_out: int, scale: int):
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, scale * scale * dim_out, bias=False)
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_to_space(self.expand(x), self.scale))


class LargeKernelPatchExpand(nn.Module):
    """LKPE of MSVM-UNet (arXiv 2408.13735, section 3.4): (B, H, W, dim) to (B, sH, sW, dim_out).

    1 x 1 convolution with BatchNorm and ReLU, depth-wise 3 x 3 convolution, channels to space, LayerNorm.
    """

    def __init__(self, dim: int, dim_out: int, scale: int):
        super().__init__()
        self.scale = scale
        hidden = scale * scale * dim_out
        self.expand = ConvNormAct(dim, hidden, 1, bias=True)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.expand(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.norm(channels_to_space(x, self.scale))
