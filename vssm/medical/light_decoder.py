"""The decoder of masked pre-training, which is thrown away after it (SparK, arXiv 2301.03580; MambaMIM, 2408.08070)."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

__all__ = ["LightDecoder", "decoder_steps"]


def decoder_steps(reductions: Sequence[Sequence[int]]) -> list[tuple[tuple[int, ...], int | None]]:
    """Plan the way from the coarsest map to the image's resolution, by steps of at most 2 along each axis.

    Args:
        reductions: Stride of each map along each axis, fine to coarse.

    Returns:
        Of each step its factors, and the number of the map that the step starts from; None: only what came before.

    Raises:
        ValueError: A ratio of neighbouring strides is no power of two.
    """
    steps: list[tuple[tuple[int, ...], int | None]] = []
    one = tuple(1 for _ in reductions[0])
    finer = [one, *reductions] if tuple(reductions[0]) != one else list(reductions)
    for number in range(len(finer) - 1, 0, -1):
        ratio = [b // a for a, b in zip(finer[number - 1], finer[number], strict=True)]
        if any(b % a or r & (r - 1) for a, b, r in zip(finer[number - 1], finer[number], ratio, strict=True)):
            raise ValueError(f"masked pre-training needs maps whose strides double, not {list(reductions)}")
        level: int | None = number - len(finer) + len(reductions)
        while any(r > 1 for r in ratio):
            steps.append((tuple(min(r, 2) for r in ratio), level))
            ratio, level = [max(r // 2, 1) for r in ratio], None
    return steps


class _Step(nn.Module):
    """Enlarge a map and halve its width: (B, C, ...) to (B, C // 2, ...)."""

    def __init__(self, dim: int, factors: Sequence[int]):
        super().__init__()
        volumes = len(factors) == 3
        up = nn.ConvTranspose3d if volumes else nn.ConvTranspose2d
        self.up_sample = up(dim, dim, tuple(factors), tuple(factors))
        self.conv = _two_convs(dim, dim // 2, volumes)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up_sample(x))


def _two_convs(in_chans: int, dim: int, volumes: bool) -> nn.Sequential:
    conv, norm = (nn.Conv3d, nn.BatchNorm3d) if volumes else (nn.Conv2d, nn.BatchNorm2d)
    layers: list[nn.Module] = []
    for width in (in_chans, dim):
        layers += [conv(width, dim, 3, padding=1), norm(dim), nn.ReLU()]
    return nn.Sequential(*layers)


class LightDecoder(nn.Module):
    """Dense maps of an encoder to the image: at each step transposed convolution and two convolutions.

    Args:
        steps: See `decoder_steps`.
        dim: Width of the coarsest step, halved by each.
        in_chans: Channels of the image.
    """

    def __init__(self, steps: Sequence[tuple[Sequence[int], int | None]], dim: int, in_chans: int):
        super().__init__()
        volumes = len(steps[0][0]) == 3
        self.steps = nn.ModuleList(_Step(dim >> i, factors) for i, (factors, _) in enumerate(steps))
        self.fuse = nn.ModuleDict(
            {
                str(i): _two_convs(2 * (dim >> i), dim >> i, volumes)
                for i, (_, level) in enumerate(steps)
                if i and level is not None
            }
        )
        conv = nn.Conv3d if volumes else nn.Conv2d
        self.head = conv(dim >> len(steps), in_chans, 1)

    def forward(self, maps: Sequence[Tensor | None]) -> Tensor:
        """Maps for each step, coarse to fine, None where there is none, to the image (B, in_chans, ...)."""
        x = maps[0]
        for i, step in enumerate(self.steps):
            if i and maps[i] is not None:
                x = self.fuse[str(i)](torch.cat([x, maps[i]], dim=1))
            x = step(x)
        return self.head(x)
