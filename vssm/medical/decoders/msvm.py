"""The decoder of MSVM-UNet (arXiv 2408.13735, section 3)."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from ...layers import MixerBlock
from ...scans import SS2D
from .expand import LargeKernelPatchExpand

__all__ = ["MSVMDecoder"]


class MultiScaleFFN(nn.Module):
    """MS-FFN: widen, GELU, add depth-wise convolutions of several sizes, narrow. (B, H, W, dim) to the same."""

    def __init__(self, dim: int, hidden_dim: int, kernel_sizes: Sequence[int] = (1, 3, 5)):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.convs = nn.ModuleList(
            nn.Conv2d(hidden_dim, hidden_dim, k, padding=k // 2, groups=hidden_dim, bias=False) for k in kernel_sizes
        )
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x)).permute(0, 3, 1, 2)
        y = x
        for conv in self.convs:
            y = y + conv(x)
        return self.fc2(y.permute(0, 2, 3, 1))


class MSVMStage(nn.Module):
    """Large-kernel patch expanding, concatenation with the skip, a linear layer, blocks. Channels-last."""

    def __init__(self, dim: int, dim_out: int, scale: int, blocks: Sequence[nn.Module]):
        super().__init__()
        self.upsample = LargeKernelPatchExpand(dim, dim_out, scale)
        self.fuse = nn.Linear(2 * dim_out, dim_out)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.fuse(torch.cat([self.upsample(x), skip], dim=-1)))


class MSVMDecoder(nn.Module):
    """A stage of VMamba blocks with a multi-scale feed-forward layer for every map but the last, then patch expanding.

    Args:
        channels: width of each map of the encoder.
        reductions: stride of each map.
        depth: blocks of a stage.
        d_state: states per channel of the scan.
        ssm_ratio: inner width of the scan as a multiple of the width.
        mlp_ratio: hidden width of the feed-forward layer as a multiple of the width.
        kernel_sizes: of the feed-forward layer's convolutions.
        drop_path_rate: stochastic depth of the first block, falling linearly to 0 in the last.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        depth: int = 2,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        kernel_sizes: Sequence[int] = (1, 3, 5),
        drop_path_rate: float = 0.2,
    ):
        super().__init__()
        rates = iter(torch.linspace(drop_path_rate, 0, depth * (len(channels) - 1), device="cpu").tolist())

        def block(dim: int) -> MixerBlock:
            mixer = SS2D(dim, d_state=d_state, ssm_ratio=ssm_ratio)
            return MixerBlock(dim, mixer, MultiScaleFFN(dim, int(mlp_ratio * dim), kernel_sizes), next(rates))

        self.stages = nn.ModuleList(
            MSVMStage(
                channels[i],
                channels[i - 1],
                reductions[i] // reductions[i - 1],
                [block(channels[i - 1]) for _ in range(depth)],
            )
            for i in range(len(channels) - 1, 0, -1)
        )
        self.out_channels = channels[0]
        self.upsample = LargeKernelPatchExpand(channels[0], self.out_channels, reductions[0])
        for module in self.modules():  # as officially, where only the encoder has its own start
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward_stages(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the encoder to the maps after each stage; all NCHW."""
        x, stages = maps[-1].permute(0, 2, 3, 1), []
        for stage, skip in zip(self.stages, reversed(maps[: len(self.stages)]), strict=True):
            x = stage(x, skip.permute(0, 2, 3, 1))
            stages.append(x.permute(0, 3, 1, 2))
        return stages

    def finish(self, x: Tensor) -> Tensor:
        """The last stage's map to one (B, out_channels, H, W) of the image's resolution."""
        return self.upsample(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.finish(self.forward_stages(maps)[-1])
