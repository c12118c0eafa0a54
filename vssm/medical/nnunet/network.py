"""A network of this package as nnU-Net trains it: with deep supervision, and in a precision of its own."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..unet import UNet

__all__ = ["PRECISIONS", "SupervisedUNet"]

# None leaves it to nnU-Net: float16 on GPUs, float32 on CPUs.
PRECISIONS: tuple[str | None, ...] = (None, "bfloat16", "float16", "float32")


class SupervisedUNet(nn.Module):
    """A network with a linear head on each coarse map of its decoder.

    Images (B, C, H, W) or volumes (B, C, D, H, W) of any size give logits of the same size; with deep supervision a
    list, that size first, then each coarser one. The logits of a coarse map are cropped to the size that nnU-Net gives
    the labels, ``round(size * scale)``. They are float32 in any precision.

    Args:
        net: Makes the logits.
        heads: Make the heads of the coarse maps.
        deep_supervision: Give the list; to be set at any time on a network with heads.
        precision: One of ``PRECISIONS``.

    Attributes:
        scales: Size of each output against the input, one number for each axis, the first ones all 1.

    Raises:
        ValueError: An unknown precision, or heads for a decoder without coarse maps.
    """

    def __init__(self, net: UNet, heads: bool, deep_supervision: bool, precision: str | None = None):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be None, 'bfloat16', 'float16' or 'float32', got {precision!r}")
        self.net = net
        self.precision = precision
        self.deep_supervision = heads and deep_supervision
        self.scales: list[tuple[float, ...]] = [(1.0,) * net.spatial_dims]
        self.heads = nn.ModuleList()
        conv = nn.Conv2d if net.spatial_dims == 2 else nn.Conv3d
        for channels, scale in _coarse_maps(net) if heads else ():
            self.scales.append(scale)
            self.heads.append(conv(channels, net.num_classes, 1))
        if heads and not self.heads:
            raise ValueError(f"{type(net.decoder).__name__} has no coarse map that deep supervision could use")

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What the network spares."""
        return {f"net.{name}" for name in self.net.no_weight_decay()}

    def _autocast(self, device: str) -> AbstractContextManager:
        if self.precision is None:
            return nullcontext()
        if self.precision == "float32":
            return torch.autocast(device, enabled=False)
        return torch.autocast(device, dtype=getattr(torch, self.precision))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        with self._autocast(x.device.type):
            if not self.deep_supervision:
                return self.net(x).float()
            stages = self.net.forward_intermediates(x)[1]
            # Fine to coarse; the finest has the resolution of the input in some decoders, and the head of the network.
            coarse = list(reversed(stages))[len(stages) - len(self.heads) :]
            logits = [self.net.head(self.net.decoder.finish(stages[-1]))]
            logits += [head(y) for head, y in zip(self.heads, coarse, strict=True)]
        size = x.shape[2:]
        return [_crop(y, size, scale).float() for y, scale in zip(logits, self.scales, strict=True)]


def _crop(x: Tensor, size: Sequence[int], scale: Sequence[float]) -> Tensor:
    return x[(..., *(slice(round(n * part)) for n, part in zip(size, scale, strict=True)))]


@torch.no_grad()
def _coarse_maps(net: UNet) -> list[tuple[int, tuple[float, ...]]]:
    """Channels and scale of each map of the decoder that is coarser than the input, fine to coarse.

    Decoders do not tell them, so the smallest input that every norm takes is sent through.
    """
    strides = (net.stride,) * 2 if net.spatial_dims == 2 else net.stride
    size = [2 * stride for stride in strides]
    training = net.training
    stages = net.eval().forward_intermediates(torch.zeros(1, net.in_chans, *size))[1]
    net.train(training)
    maps = [(y.shape[1], tuple(a / b for a, b in zip(y.shape[2:], size, strict=True))) for y in reversed(stages)]
    return [(channels, scale) for channels, scale in maps if min(scale) < 1]
