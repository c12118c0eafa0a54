"""Branches of several resolutions side by side, as in HRNet (arXiv 1908.07919). Maps are channels-last (B, H, W, C).

Branch 0 has the most pixels; each further one has half of them along each side, rounded up.
"""

from collections.abc import Sequence

import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.depthwise import DepthwiseConv2d

from .conv_norm import ConvNorm, LinearNorm

__all__ = [
    "AddBranch",
    "Bottleneck",
    "FuseBranches",
    "FuseTo",
    "HighResolutionNeck",
    "KeepBranch",
    "KeepBranches",
    "MultiScaleConv",
]


@torch.fx.wrap  # a traced graph calls it with maps, which have sizes to compare
def _resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Resize (B, H', W', C) bilinearly to the size of another map (B, H, W, ...), if it has not got it."""
    height, width = like.shape[1], like.shape[2]
    free = False
    if not torch.jit.is_scripting():
        # There a comparison would bind the program to the sizes at hand; a resize to the same size changes nothing.
        free = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if not free and x.shape[1] == height and x.shape[2] == width:
        return x
    resized = F.interpolate(x.permute(0, 3, 1, 2), size=[height, width], mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


class Bottleneck(nn.Module):
    """ResNet's: ReLU(shortcut(x) + expand(conv(reduce(x)))), each a convolution with BatchNorm.

    (B, H, W, dim) to (B, H, W, dim_out). The shortcut is a projection where the widths differ.

    Args:
        dim: Width of the input.
        dim_out: Width of the result, four times the inner width.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        inner = dim_out // 4
        self.reduce = LinearNorm(dim, inner, act=True, **dd)
        self.conv = ConvNorm(inner, inner, act=True, **dd)
        self.expand = LinearNorm(inner, dim_out, **dd)
        self.shortcut = LinearNorm(dim, dim_out, **dd) if dim != dim_out else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, dim)."""
        return self.act(self.shortcut(x) + self.expand(self.conv(self.reduce(x))))


class AddBranch(nn.Module):
    """Add a branch of half the resolution, made from the last one: a list of maps to a list with one more.

    The first stage makes both its branches from the map of the stem; others leave the old ones as they are.

    Args:
        dim: Width of the last map.
        dims: Widths of all branches of the result.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, dims: Sequence[int], device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        first = len(dims) == 2
        self.old = ConvNorm(dim, dims[0], act=True, **dd) if first else nn.Identity()
        self.new = ConvNorm(dim, dims[-1], stride=2, act=True, **dd)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Go on from n maps with n + 1."""
        added = [self.new(maps[-1])]
        if len(maps) == 1:
            return [self.old(maps[0])] + added
        return maps + added


class _Enlarge(nn.Module):
    """Project to another width, and enlarge bilinearly: (B, H, W, dim) to (B, scale H, scale W, dim_out)."""

    def __init__(self, dim: int, dim_out: int, scale: int, device=None, dtype=None):
        super().__init__()
        self.scale = float(scale)
        self.proj = LinearNorm(dim, dim_out, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).permute(0, 3, 1, 2)
        x = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return x.permute(0, 2, 3, 1)


def _shrink(dim: int, dim_out: int, times: int, **dd) -> nn.Sequential:
    """Halve the sides so many times; the last of the halvings changes the width, and has no activation."""
    layers: list[nn.Module] = []
    for i in range(times):
        last = i == times - 1
        layers.append(ConvNorm(dim, dim, stride=2, depthwise=True, **dd))
        layers.append(LinearNorm(dim, dim_out if last else dim, act=not last, **dd))
    return nn.Sequential(*layers)


class FuseTo(nn.Module):
    """One branch after a fusion: ReLU of the sum of all branches, each brought to its size and width.

    Args:
        index: Which branch.
        dims: Widths of all branches.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, index: int, dims: Sequence[int], device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.index = index
        paths: list[nn.Module] = []
        for i, dim in enumerate(dims):
            if i == index:
                paths.append(nn.Identity())
            elif i > index:
                paths.append(_Enlarge(dim, dims[index], 2 ** (i - index), **dd))
            else:
                paths.append(_shrink(dim, dims[index], index - i, **dd))
        self.paths = nn.ModuleList(paths)
        self.act = nn.ReLU()

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, H / 2^i, W / 2^i, dims[i]) to that of this branch."""
        parts: list[Tensor] = []
        for i, path in enumerate(self.paths):
            part = path(maps[i])
            if i > self.index:  # enlarged by a power of two, which overshoots where a side was odd
                part = _resize_like(part, maps[self.index])
            parts.append(part)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return self.act(total)


class KeepBranch(nn.Module):
    """In place of a `FuseTo`: the branch as it is."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Pick it from the maps."""
        return maps[self.index]


class FuseBranches(nn.Module):
    """Let every branch see all others: a list of maps to a list of maps of the same shapes. See `FuseTo`."""

    def __init__(self, dims: Sequence[int], device=None, dtype=None):
        super().__init__()
        self.outputs = nn.ModuleList([FuseTo(i, dims, device=device, dtype=dtype) for i in range(len(dims))])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Fuse the maps."""
        fused: list[Tensor] = []
        for output in self.outputs:
            fused.append(output(maps))
        return fused


class KeepBranches(nn.Module):
    """In place of a `FuseBranches` or of a neck: the maps as they are."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Give them back."""
        return maps


class HighResolutionNeck(nn.Module):
    """HRNet's way from its branches to a classifier: wider maps, which are added from the largest to the smallest.

    Branches (B, H / 2^i, W / 2^i, dims[i]) to maps of the same sizes and the widths out_dims, but for the last, which
    has num_features.

    Args:
        dims: Widths of the branches.
        out_dims: Widths of the maps.
        num_features: Width of the last map.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dims: Sequence[int], out_dims: Sequence[int], num_features: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.widen = nn.ModuleList([Bottleneck(a, b, **dd) for a, b in zip(dims, out_dims, strict=True)])
        pairs = zip(out_dims[:-1], out_dims[1:], strict=True)
        self.shrink = nn.ModuleList([nn.Identity(), *(ConvNorm(a, b, stride=2, act=True, **dd) for a, b in pairs)])
        self.final = LinearNorm(out_dims[-1], num_features, act=True, **dd)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Widen the maps, and add them up."""
        found: list[Tensor] = []
        for i, (widen, shrink) in enumerate(zip(self.widen, self.shrink)):  # noqa: B905  (TorchScript has no strict)
            wide = widen(maps[i])
            found.append(wide if i == 0 else shrink(found[-1]) + wide)
        found[-1] = self.final(found[-1])
        return found


class MultiScaleConv(nn.Module):
    """Depth-wise convolutions of 3, 5, 7 and 9 pixels on a quarter of the channels each, then GELU.

    (B, H, W, dim) to the same. The result takes a channel of each kernel in turn.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        part = dim // 4
        kernels = (3, 5, 7, 9)
        self.convs = nn.ModuleList(
            [DepthwiseConv2d(part, k, padding=k // 2, device=device, dtype=dtype) for k in kernels]
        )
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, H, W, dim)."""
        x = x.permute(0, 3, 1, 2)
        width = x.shape[1] // 4
        parts: list[Tensor] = []
        for i, conv in enumerate(self.convs):
            parts.append(conv(x[:, i * width : (i + 1) * width]))
        return self.act(torch.stack(parts, dim=2).flatten(1, 2).permute(0, 2, 3, 1))
