"""The decoders of VM-UNet (arXiv 2402.02491) and MHS-UNet (arXiv 2406.05992), which differ in their token mixers."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from ...layers import MixerBlock
from ...models import init_weights
from ...scans import DIAGONAL, RASTER, SNAKE, SPIRAL, SS2D, MultiHeadSS2D, Route
from .expand import PatchExpand

__all__ = ["MHSDecoder", "VMDecoder", "gated_ss2d"]


def gated_ss2d(dim: int) -> SS2D:
    """The mixer of the first VMamba: sixteen states, twice the width, a gate."""
    return SS2D(dim, d_state=16, ssm_ratio=2.0, conv_bias=True, gate=True, scan_float32=True)


class VMStage(nn.Module):
    """Patch expanding (none in the coarsest stage), then blocks. Channels-last."""

    def __init__(self, upsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.upsample = upsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.upsample(x))


class VMDecoder(nn.Module):
    """A stage for each map. The skip is added before a stage's patch expanding, so the finest map is not used.

    Args:
        channels: width of each map of the encoder.
        reductions: stride of each map.
        depths: blocks of each stage, coarse to fine; one number for all.
        drop_path_rate: stochastic depth of the first block, falling linearly to 0 in the last.
        mixer: makes the token mixer of a block from its width.

    Raises:
        ValueError: `depths` has not one entry for each map.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        depths: int | Sequence[int] = 2,
        drop_path_rate: float = 0.2,
        mixer: Callable[[int], nn.Module] = gated_ss2d,
    ):
        super().__init__()
        dims, strides = list(channels[::-1]), list(reductions[::-1])
        depths = [depths] * len(dims) if isinstance(depths, int) else list(depths)
        if len(depths) != len(dims):
            raise ValueError(f"the decoder's depths need {len(dims)} numbers for this encoder, got {depths}")
        rates = iter(torch.linspace(drop_path_rate, 0, sum(depths), device="cpu").tolist())
        upsamples: list[nn.Module] = [nn.Identity()]
        for i in range(1, len(dims)):
            upsamples.append(PatchExpand(dims[i - 1], dims[i], strides[i - 1] // strides[i]))
        self.stages = nn.ModuleList(
            VMStage(upsample, [MixerBlock(dim, mixer(dim), None, next(rates)) for _ in range(depth)])
            for upsample, dim, depth in zip(upsamples, dims, depths, strict=True)
        )
        # A quarter of the width at stride 4, as published.
        self.out_channels = max(dims[-1] // strides[-1], 16)
        self.upsample = PatchExpand(dims[-1], self.out_channels, strides[-1])
        init_weights(self)

    def forward_stages(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the encoder to the maps after each stage; all NCHW."""
        x = self.stages[0](maps[-1].permute(0, 2, 3, 1))
        stages = [x]
        for stage, skip in zip(self.stages[1:], reversed(maps[1 : len(self.stages)]), strict=True):
            x = stage(x + skip.permute(0, 2, 3, 1))
            stages.append(x)
        return [y.permute(0, 3, 1, 2) for y in stages]

    def finish(self, x: Tensor) -> Tensor:
        """The last stage's map to one (B, out_channels, H, W) of the image's resolution."""
        return self.upsample(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.finish(self.forward_stages(maps)[-1])


class MHSDecoder(VMDecoder):
    """`VMDecoder` with the multi-head scan as its mixer.

    Args:
        heads: the routes of each head, see `MultiHeadSS2D`.
        threshold: of the gate over a head's routes.
        channels, reductions, depths, drop_path_rate: see `VMDecoder`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        depths: int | Sequence[int] = 2,
        drop_path_rate: float = 0.2,
        heads: Sequence[Sequence[Route]] = (SNAKE, DIAGONAL, SPIRAL, RASTER),
        threshold: float = 0.4,
    ):
        super().__init__(
            channels,
            reductions,
            depths,
            drop_path_rate,
            mixer=lambda dim: MultiHeadSS2D(dim, heads=heads, threshold=threshold),
        )
