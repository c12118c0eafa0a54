"""Encoders of volumes: (B, C, D, H, W) to maps of falling resolution.

`VolumeMamba` is ours: VMamba's blocks (arXiv 2401.10166) with scans in three dimensions, of which nobody has published
weights. HyMamba (`vssm.medical.hymamba_encoder`) is MambaMIM's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from os import PathLike
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor

from .._errors import did_you_mean
from ..checkpoint import load_weights, read_checkpoint, unwrap_state_dict
from ..layers import MixerBlock
from ..models import Stage, drop_path_rates, init_weights, stage_dims
from ..scans import CROSS_3D, SS3D, TRI_ORIENTED, ConvSSM
from .hymamba_encoder import HyMambaEncoder

__all__ = ["VOLUME_ENCODERS", "SlicesSSM", "VolumeMamba", "create_volume_encoder"]

SCANS = {"cross": CROSS_3D, "tri-oriented": TRI_ORIENTED}


class VolumeDownsample(nn.Module):
    """A convolution of some stride along each axis, then LayerNorm: (B, C, D, H, W) to (B, D', H', W', dim).

    The kernel is as wide as two strides less one, so that it sees nothing but the voxel itself along an axis of stride
    1, and neighbouring windows overlap along the others.
    """

    def __init__(self, in_chans: int, dim: int, stride: Sequence[int]):
        super().__init__()
        depth, height, width = stride
        kernel = (2 * depth - 1, 2 * height - 1, 2 * width - 1)
        padding = (depth - 1, height - 1, width - 1)
        self.conv = nn.Conv3d(in_chans, dim, kernel, (depth, height, width), padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).movedim(1, -1))


class VolumeMamba(nn.Module):
    """VMamba's hierarchy on volumes.

    Args:
        in_chans: channels of the volume.
        depths: blocks of each stage.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        strides: step (D, H, W) of each stage's downsampling, the first that of the stem; a single number for all axes.
            Slices that lie further apart than their pixels want 1 along D first: ``[(1, 2, 2), 2, 2, 2]``.
        scan: "cross" (six directions) or "tri-oriented" (forwards, backwards and from slice to slice, as SegMamba).
        d_state: states per channel of the scan.
        ssm_ratio: inner width of the scan as a multiple of the width.
        mlp_ratio: hidden width of the MLP as a multiple of the width; 0 for no MLP.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Attributes:
        channels: width of each map; the first map is the volume itself.
        reductions: stride (D, H, W) of each map against the volume.

    Raises:
        ValueError: an unknown scan, or not one stride of three whole numbers from 1 for each stage.
    """

    spatial_dims = 3

    def __init__(
        self,
        in_chans: int = 1,
        depths: Sequence[int] = (2, 2, 2, 2),
        dims: int | Sequence[int] = 48,
        strides: Sequence[int | Sequence[int]] | None = None,
        scan: str = "cross",
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if scan not in SCANS:
            raise ValueError(f"scan must be one of {', '.join(SCANS)}, got {scan!r}{did_you_mean(scan, SCANS)}")
        steps = [(step,) * 3 if isinstance(step, int) else tuple(step) for step in strides or [2] * len(depths)]
        if len(steps) != len(depths) or any(len(s) != 3 or min(s) < 1 or prod(s) == 1 for s in steps):
            raise ValueError(
                f"strides must say for each of {len(depths)} stages a step along D, H and W, at least one above 1, "
                f"got {strides}"
            )
        dims = stage_dims(dims, depths)
        mixer: dict[str, Any] = dict(routes=SCANS[scan], d_state=d_state, ssm_ratio=ssm_ratio)
        widths = [in_chans, *dims]
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = [
                MixerBlock(
                    dims[i],
                    SS3D(dims[i], **mixer),
                    Mlp(dims[i], int(dims[i] * mlp_ratio)) if mlp_ratio > 0 else None,
                    rate,
                )
                for rate in rates
            ]
            stages.append(Stage(VolumeDownsample(widths[i], dims[i], steps[i]), blocks))
        self.stages = nn.ModuleList(stages)
        self.channels = widths
        self.reductions: list[tuple[int, ...]] = [(1, 1, 1)]
        for step in steps:
            self.reductions.append(tuple(a * b for a, b in zip(self.reductions[-1], step, strict=True)))
        init_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, D, H, W) to that and a map (B, C, D', H', W') of each stage."""
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]).movedim(-1, 1))
        return maps


class SlicesSSM(nn.Module):
    """ConvSSM from slice to slice of a map, from the first to the last and back, added to the map.

    To a state space over time, which ConvSSM (arXiv 2310.19694) is, the slices are frames. As a volume has no
    first slice, another one reads them in reverse order.

    Args:
        dim: width of the map.
        d_state: complex states of each direction.

    (B, C, D, H, W) to the same, of any size.
    """

    def __init__(self, dim: int, d_state: int = 64):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.forth = ConvSSM(dim, d_state)
        self.back = ConvSSM(dim, d_state)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        slices = self.norm(x.movedim(1, -1))
        y = F.gelu(self.forth(slices) + self.back(slices.flip(1)).flip(1))
        return x + self.proj(y).movedim(-1, 1)


VOLUME_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "vmamba3d_pico": partial(VolumeMamba, depths=(1, 1, 1), dims=16, mlp_ratio=2.0),
    "vmamba3d_tiny": partial(VolumeMamba, depths=(2, 2, 2, 2), dims=48),
    "vmamba3d_small": partial(VolumeMamba, depths=(2, 2, 8, 2), dims=64),
    "hymamba": HyMambaEncoder,
    "hymamba_pico": partial(
        HyMambaEncoder, dims=(8, 8, 16, 24, 48), depths=(1, 1, 1, 1), expand=(2, 2, 2, 2), mamba_depth=2, img_size=48
    ),
}


def create_volume_encoder(
    name: str, in_chans: int = 1, pretrained: bool | str | PathLike = False, options: Any = None
) -> nn.Module:
    """An encoder of volumes by name.

    Args:
        name: one of ``VOLUME_ENCODERS``.
        in_chans: channels of the volume.
        pretrained: a file with weights of this encoder; nothing is fetched.
        options: more arguments of the encoder's class, such as ``strides``.

    Raises:
        ValueError: an unknown name or option, published weights, or weights of another encoder.
        FileNotFoundError: there is no such file.
    """
    if name not in VOLUME_ENCODERS:
        raise ValueError(
            f"encoder must be one of {', '.join(VOLUME_ENCODERS)} for volumes, got {name!r}"
            f"{did_you_mean(name, VOLUME_ENCODERS)}"
        )
    if pretrained is True:
        raise ValueError(f"no weights of '{name}' can be fetched: pretrained must be False or a file")
    options = dict(options or {}, in_chans=in_chans)
    try:
        encoder = VOLUME_ENCODERS[name](**options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"the encoder '{name}' does not take all of {sorted(options)}: {error}") from error
    if pretrained:
        stored = read_checkpoint(pretrained)
        convert = getattr(encoder, "convert_weights", unwrap_state_dict)
        load_weights(encoder, convert(stored))
    return encoder
