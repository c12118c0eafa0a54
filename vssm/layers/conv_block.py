"""Stem, downsampling and block of the families whose maps pass through many small convolutions.

The stem and the downsampling, of VSSD and Spatial-Mamba, come from MILA (arXiv 2405.16605). Stems take images
(B, C, H, W); everything else is channels-last (B, H, W, C).
"""

import math

import torch
import torch.nn as nn
from timm.layers import ConvNormAct, DropPath, Mlp
from torch import Tensor

from vssm_kernels.depthwise import DepthwiseConv2d

from .mlp import add_mlp
from .patch import channels_last, check_images

__all__ = [
    "CONV_BLOCK_NORMS",
    "CONV_BLOCK_RENAMES",
    "ChannelScale",
    "ConvMixerBlock",
    "InvertedDownsample",
    "ResidualConvStem",
]

# The names of the batch norms in the stem and the downsampling, as parts of parameters' names.
CONV_BLOCK_NORMS = (
    "stem.conv1.bn",
    "stem.conv2.0.bn",
    "stem.conv2.1.bn",
    "stem.conv3.0.bn",
    "stem.conv3.1.bn",
    "downsample.project.bn",
)
# Official name -> ours, for the layers below: a downsampling layer moves to the next stage's start.
CONV_BLOCK_RENAMES = (
    (r"^patch_embed\.", "stem."),
    (r"^head\.", "head.fc."),
    (r"^(stem\..*)\.norm\.", r"\1.bn."),
    (r"^layers\.0\.downsample\.", "stages.1.downsample."),
    (r"^layers\.1\.downsample\.", "stages.2.downsample."),
    (r"^layers\.2\.downsample\.", "stages.3.downsample."),
    (r"\.downsample\.conv\.0\.conv\.", ".downsample.expand."),
    (r"\.downsample\.conv\.1\.conv\.", ".downsample.conv."),
    (r"\.downsample\.conv\.2\.norm\.", ".downsample.project.bn."),
    (r"\.downsample\.conv\.2\.", ".downsample.project."),
    (r"^layers\.", "stages."),
    (r"\.cpe([12])\.", r".pos_conv\1."),
)


class ResidualConvStem(nn.Module):
    """Stride 2, a residual pair, stride 2 into four times the width, 1 x 1; each convolution with a BatchNorm.

    (B, in_chans, H, W) to (B, ceil(H / 4), ceil(W / 4), dim).

    Args:
        in_chans: Channels of the image.
        dim: Width of the result.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNormAct(in_chans, half, 3, stride=2, **dd)
        self.conv2 = nn.Sequential(ConvNormAct(half, half, 3, **dd), ConvNormAct(half, half, 3, apply_act=False, **dd))
        self.conv3 = nn.Sequential(
            ConvNormAct(half, 4 * dim, 3, stride=2, **dd), ConvNormAct(4 * dim, dim, 1, apply_act=False, **dd)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_chans, H, W)."""
        check_images(x, self.conv1.conv.in_channels)
        x = channels_last(x).permute(0, 3, 1, 2)
        x = self.conv1(x)
        x = x + self.conv2(x)
        return self.conv3(x).permute(0, 2, 3, 1).contiguous()


class InvertedDownsample(nn.Module):
    """1 x 1 into four times the new width, depth-wise 3 x 3 of stride 2, 1 x 1 back and BatchNorm.

    (B, H, W, dim) to (B, ceil(H / 2), ceil(W / 2), dim_out).

    Args:
        dim: Width of the input.
        dim_out: Width of the result.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        hidden = 4 * dim_out
        self.expand = nn.Conv2d(dim, hidden, 1, **dd)
        self.act1 = nn.ReLU()
        self.conv = DepthwiseConv2d(hidden, 3, stride=2, padding=1, **dd)
        self.act2 = nn.ReLU()
        self.project = ConvNormAct(hidden, dim_out, 1, bias=True, apply_act=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample (B, H, W, dim)."""
        x = self.act1(self.expand(x.permute(0, 3, 1, 2)))
        return self.project(self.act2(self.conv(x))).permute(0, 2, 3, 1)


class ChannelScale(nn.Module):
    """Multiply each channel of (..., dim) by a weight and add a bias, which starts at 0.

    Args:
        dim: Channels.
        start: What the weights start with.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, start: float, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(dim, **dd))
        self.bias = nn.Parameter(torch.empty(dim, **dd))
        self.init_weights()

    def init_weights(self) -> None:
        """Start the parameters."""
        nn.init.constant_(self.weight, self.start)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (..., dim)."""
        return x * self.weight + self.bias

    def paper_flops_offset(self, x: Tensor) -> int:
        """Give what the papers' counter adds: the official scale is a depth-wise 1 x 1 convolution."""
        return math.prod(map(int, x.shape))


class ConvMixerBlock(nn.Module):
    """A token mixer and an MLP on residual branches, each behind a residual depth-wise 3 x 3 convolution.

    x + pos_conv1(x), x + mixer(norm1(x)), x + pos_conv2(x), x + mlp(norm2(x)); (B, H, W, dim) to the same. With scales
    the sum of a branch f is x + scale(f(x)), or scale(x) + f(x).

    Args:
        dim: Width.
        mixer: Maps (B, H, W, dim) to (B, H, W, dim).
        mlp_ratio: Hidden width of the MLP as a multiple of the width.
        drop_path: Rate of the stochastic depth of the mixer and of the MLP.
        mlp: The MLP, in place of one of `mlp_ratio`.
        eps: Of the norms.
        layer_scale: What the scales of the two branches start with; None for no scales.
        residual_scale: What the scales of what the branches are added to start with; None for no scales.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: Both kinds of scales were asked for.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mlp: nn.Module | None = None,
        eps: float = 1e-5,
        layer_scale: float | None = None,
        residual_scale: float | None = None,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if layer_scale is not None and residual_scale is not None:
            raise ValueError(f"a block scales branches or residuals, not both, got {layer_scale} and {residual_scale}")
        start = residual_scale if layer_scale is None else layer_scale
        self.scales_residual = residual_scale is not None
        self.pos_conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=eps, **dd)
        self.mixer = mixer
        self.scale1 = nn.Identity() if start is None else ChannelScale(dim, start, **dd)
        self.pos_conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=eps, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd) if mlp is None else mlp
        self.scale2 = nn.Identity() if start is None else ChannelScale(dim, start, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, dim)."""
        x = x + self.pos_conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.mixer(self.norm1(x))
        x = self.scale1(x) + self.drop_path(y) if self.scales_residual else x + self.drop_path(self.scale1(y))
        x = x + self.pos_conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if not torch.jit.is_scripting() and isinstance(self.scale2, nn.Identity):
            added = add_mlp(x, self.norm2, self.mlp, self.drop_path)
            if added is not None:
                return added
        y = self.mlp(self.norm2(x))
        return self.scale2(x) + self.drop_path(y) if self.scales_residual else x + self.drop_path(self.scale2(y))
