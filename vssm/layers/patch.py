"""Stems and downsampling layers. Stems take images (B, C, H, W); everything else is channels-last (B, H, W, C)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.passes import run_linear

__all__ = ["ConvDownsample", "ConvStem", "PatchMerging", "PatchStem", "channels_last", "check_images"]


def channels_last(x: Tensor) -> Tensor:
    """Make images (B, C, H, W) a map (B, H, W, C), in memory too.

    At once, while they have the fewest channels: all later layers keep to it. Not by `memory_format`, which
    `torch.vmap` does not know.
    """
    return x.permute(0, 2, 3, 1).contiguous()


def check_images(images: Tensor, in_chans: int, smallest: int = 1, only: tuple[int, int] | None = None) -> None:
    """Refuse what a stem cannot take. Models that are traced, scripted or compiled go without the check.

    Args:
        images: What was given.
        in_chans: Channels of the image.
        smallest: Height and width of the smallest image.
        only: The one size (H, W) that is taken; None: any.

    Raises:
        ValueError: Not (B, in_chans, H, W), H or W is below the smallest, or another size than the one.
    """
    if not torch.jit.is_scripting():  # nor does it compile this
        _check_images(images, in_chans, smallest, only)


def _check_images(images: Tensor, in_chans: int, smallest: int, only: tuple[int, int] | None) -> None:
    # FX hands over a proxy; a condition on a size would become a demand of an exported program.
    if not isinstance(images, Tensor) or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != in_chans:
        raise ValueError(f"images must have the shape (B, {in_chans}, H, W), got {shape}")
    if min(shape[2:]) < smallest:
        raise ValueError(f"images must be at least {smallest} x {smallest} pixels, got {shape[2]} x {shape[3]}")
    if only is not None and shape[2:] != only:
        raise ValueError(
            f"images must be of {only[0]} x {only[1]} pixels, got {shape[2]} x {shape[3]}; "
            "set_input_size changes that, and dynamic_img_size=True takes any size"
        )


class PatchStem(nn.Module):
    """4 x 4 patches without overlap, then LayerNorm: (B, in_chans, H, W) to (B, H // 4, W // 4, dim).

    Args:
        in_chans: Channels of the image.
        dim: Width of the result.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 4, stride=4, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_chans, H, W) of at least 4 x 4 pixels."""
        check_images(x, self.conv.in_channels, 4)
        x = channels_last(x).permute(0, 3, 1, 2)
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2: (B, in_chans, H, W) to (B, ceil(H / 4), ceil(W / 4), dim).

    Args:
        in_chans: Channels of the image.
        dim: Width of the result.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.LayerNorm(dim // 2, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_chans, H, W)."""
        check_images(x, self.conv1.in_channels)
        x = channels_last(x).permute(0, 3, 1, 2)
        x = self.act(self.norm1(self.conv1(x).permute(0, 2, 3, 1)))
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Swin's patch merging: the four phases of a 2 x 2 grid side by side, LayerNorm, Linear. Odd sizes are zero-padded.

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
        self.norm = nn.LayerNorm(4 * dim, **dd)
        self.reduction = nn.Linear(4 * dim, dim_out, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample (B, H, W, dim)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        phases = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = self.norm(torch.cat(phases, dim=-1))
        return self.reduction(x) if torch.jit.is_scripting() else run_linear(self.reduction, x)


class ConvDownsample(nn.Module):
    """3 x 3 convolution of stride 2, then LayerNorm: (B, H, W, dim) to (B, ceil(H / 2), ceil(W / 2), dim_out).

    Args:
        dim: Width of the input.
        dim_out: Width of the result.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, **dd)
        self.norm = nn.LayerNorm(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample (B, H, W, dim)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
