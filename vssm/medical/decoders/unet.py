"""The convolutional decoder of U-Net (arXiv 1505.04597), with interpolation in place of transposed convolutions."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor

__all__ = ["UNetDecoder"]


class UNetStage(nn.Module):
    """Bilinear interpolation, concatenation with the skip, two 3 x 3 convolutions with BatchNorm and ReLU. NCHW."""

    def __init__(self, dim: int, skip_dim: int, dim_out: int, scale: int):
        super().__init__()
        self.scale = scale
        self.convs = nn.Sequential(ConvNormAct(dim + skip_dim, dim_out, 3), ConvNormAct(dim_out, dim_out, 3))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        return self.convs(x if skip is None else torch.cat([x, skip], dim=1))


class UNetDecoder(nn.Module):
    """A stage for every map but the last, then one without a skip up to the image's resolution.

    Args:
        channels: width of each map of the encoder.
        reductions: stride of each map.
        decoder_channels: width of each stage, coarse to fine, and of the last one without a skip; by default the widths
            of the skips, and half of the finest one's.

    Raises:
        ValueError: `decoder_channels` has not one entry for each map.
    """

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], decoder_channels: Sequence[int] | None = None
    ):
        super().__init__()
        widths = list(decoder_channels or [*channels[-2::-1], max(channels[0] // 2, 16)])
        if len(widths) != len(channels):
            raise ValueError(f"decoder_channels needs {len(channels)} widths for this encoder, got {widths}")
        skips = [*channels[-2::-1], 0]
        strides = [*reductions[::-1], 1]
        dims = [channels[-1], *widths]
        self.stages = nn.ModuleList(
            UNetStage(dims[i], skips[i], widths[i], strides[i] // strides[i + 1]) for i in range(len(widths))
        )
        self.out_channels = widths[-1]

    def forward_stages(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the encoder to the maps after each stage with a skip; all NCHW."""
        x, stages = maps[-1], []
        for stage, skip in zip(self.stages[:-1], reversed(maps[: len(self.stages) - 1]), strict=True):
            x = stage(x, skip)
            stages.append(x)
        return stages

    def finish(self, x: Tensor) -> Tensor:
        """The last stage's map to one (B, out_channels, H, W) of the image's resolution."""
        return self.stages[-1](x)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.finish(self.forward_stages(maps)[-1])
