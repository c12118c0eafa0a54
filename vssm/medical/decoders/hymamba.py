"""HyMamba's decoder: UNETR's blocks of MONAI, and a residual unit of its own at the end (arXiv 2408.08070)."""

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from ..._optional import require
from ...layers import ResidualUnit

__all__ = ["HyMambaDecoder"]


class HyMambaDecoder(nn.Module):
    """A transposed convolution and a residual block for every map but the last, then a residual unit.

    Args:
        channels: width of each map of the encoder, the finest first, which has the volume's resolution.
        reductions: stride (D, H, W) of each map.
        out_channels: width of the result; None: half of the finest map's.

    Raises:
        MissingExtraError: MONAI is not installed.
        ValueError: the finest map has not the volume's resolution.
    """

    def __init__(self, channels: Sequence[int], reductions: Sequence[Sequence[int]], out_channels: int | None = None):
        super().__init__()
        if any(step != 1 for step in reductions[0]):
            raise ValueError(f"HyMamba's decoder needs a map of the volume's resolution, not of {reductions[0]}")
        # Here, not above: MONAI takes seconds to import, and the networks of images do without it.
        blocks = require("monai.networks.blocks", "medical")
        self.stages = nn.ModuleList()
        for i in range(len(channels) - 1, 0, -1):
            scale = [a // b for a, b in zip(reductions[i], reductions[i - 1], strict=True)]
            options = dict(kernel_size=3, upsample_kernel_size=scale, norm_name="instance", res_block=True)
            self.stages.append(blocks.UnetrUpBlock(3, channels[i], channels[i - 1], **options))
        self.out_channels = out_channels or max(channels[0] // 2, 1)
        self.last = ResidualUnit(channels[0], self.out_channels)

    def forward_stages(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the encoder to the map after each stage; all (B, C, D, H, W)."""
        x, stages = maps[-1], []
        for stage, finer in zip(self.stages, reversed(maps[:-1]), strict=True):
            x = stage(x, finer)
            stages.append(x)
        return stages

    def finish(self, x: Tensor) -> Tensor:
        """The last stage's map to the width of the result."""
        return self.last(x)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.finish(self.forward_stages(maps)[-1])
