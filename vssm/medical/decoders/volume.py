"""The decoder of volumes, made of MONAI's blocks as those of UNETR (arXiv 2103.10504) and Swin UNETR are."""

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from ..._optional import require

__all__ = ["VolumeDecoder"]


class VolumeDecoder(nn.Module):
    """A transposed convolution and a residual block for every map but the last; each skip goes through a block, too.

    Args:
        channels: width of each map of the encoder, the volume itself first.
        reductions: stride (D, H, W) of each map.
        decoder_channels: width of each stage, coarse to fine; by default the widths of the maps, and for the volume
            half of the finest map's.
        norm_name: MONAI's name of the norm.
        res_block: residual blocks, in place of plain ones.

    Raises:
        ValueError: `decoder_channels` has not one entry for each map but the last.
        MissingExtraError: MONAI is not installed.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[Sequence[int]],
        decoder_channels: Sequence[int] | None = None,
        norm_name: str = "instance",
        res_block: bool = True,
    ):
        super().__init__()
        # Here, not above: MONAI takes seconds to import, and the networks of images do without it.
        blocks = require("monai.networks.blocks", "medical")
        count = len(channels) - 1
        widths = list(decoder_channels or [*channels[-2:0:-1], max(channels[1] // 2, 8)])
        if len(widths) != count:
            raise ValueError(f"decoder_channels needs {count} widths for this encoder, got {widths}")
        dims = [channels[-1], *widths]
        common = dict(kernel_size=3, norm_name=norm_name, res_block=res_block)
        self.skips, self.stages = nn.ModuleList(), nn.ModuleList()
        for i in range(count):
            coarse, fine = reductions[-1 - i], reductions[-2 - i]
            scale = [a // b for a, b in zip(coarse, fine, strict=True)]
            self.skips.append(blocks.UnetrBasicBlock(3, channels[-2 - i], widths[i], stride=1, **common))
            self.stages.append(blocks.UnetrUpBlock(3, dims[i], widths[i], upsample_kernel_size=scale, **common))
        self.out_channels = widths[-1]

    def forward_stages(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the encoder, the volume first, to the map after each stage; all (B, C, D, H, W)."""
        x, stages = maps[-1], []
        for skip, stage, finer in zip(self.skips, self.stages, reversed(maps[:-1]), strict=True):
            x = stage(x, skip(finer))
            stages.append(x)
        return stages

    def finish(self, x: Tensor) -> Tensor:
        """The last stage's map, which has the volume's resolution."""
        return x

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.finish(self.forward_stages(maps)[-1])
