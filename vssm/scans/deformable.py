"""Cross-scan behind a deformable sampling: the DSS2D of HRVMamba (arXiv 2410.03174).

Letters: B batch, H x W map, C width of the block, D inner width, G groups.
"""

import math
from typing import Any

import torch
import torch.nn as nn
import torchvision  # type: ignore[import-untyped]  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from vssm_kernels.deform import deform_by_gathering, deform_here
from vssm_kernels.watch import is_transformed

from .cross import SS2D

__all__ = ["DeformableSS2D", "DeformableStep"]


# One node in FX graphs, for which operator runs is a matter of the machine.
torch.fx.wrap("deformable_step")


def deformable_step(x: Tensor, numbers: Tensor) -> Tensor:
    """Sum what each group of channels finds at nine moved points, by weights (DCNv4, arXiv 2401.06197).

    Args:
        x: (B, D, H, W).
        numbers: (B, H, W, G, 27), G a divisor of D, see `vssm_kernels.deform`.

    Returns:
        As x, computed in float32 or better.
    """
    if not torch.jit.is_scripting():
        found = deform_here(x.permute(0, 2, 3, 1), numbers)
        if found is not None:
            return found.permute(0, 3, 1, 2)
        if is_transformed():  # torchvision's operator gives tangents of zero there
            precise = torch.promote_types(x.dtype, torch.float32)
            y = deform_by_gathering(x.permute(0, 2, 3, 1).to(precise), numbers.to(precise))
            return y.permute(0, 3, 1, 2).to(x.dtype)
    dim, groups = x.shape[1], numbers.shape[3]
    # Officially points go down columns and steps are (right, down); in torchvision along rows and (down, right).
    steps = numbers[..., :18].unflatten(-1, (3, 3, 2)).flip(-1)  # (B, H, W, G, column, row, 2)
    steps = steps.permute(0, 3, 5, 4, 6, 1, 2).flatten(1, 4)
    weights = numbers[..., 18:].unflatten(-1, (3, 3)).permute(0, 3, 5, 4, 1, 2).flatten(1, 3)
    # The operator computes positions in the dtype of the map, where half a dtype would miss by up to half a pixel.
    precise = torch.promote_types(x.dtype, torch.float32)
    y = torch.ops.torchvision.deform_conv2d(
        x.to(precise),
        torch.ones(dim, 1, 3, 3, dtype=precise, device=x.device),
        steps.to(precise),
        weights.to(precise),
        torch.zeros(dim, dtype=precise, device=x.device),
        1,  # strides
        1,
        1,  # padding
        1,
        1,  # dilation
        1,
        dim,
        groups,
        True,  # use the weights
    )
    return y.to(x.dtype)


class DeformableStep(nn.Module):
    """Sum what each group of channels finds at nine moved points, by weights without bounds: (B, D, H, W) to the same.

    The core of DCNv4, without its projections. Steps and weights are a linear function of the pixel. A point between
    pixels is interpolated bilinearly; what lies outside the map counts as zero.

    Args:
        dim: Channels D.
        groups: Groups G of channels that share their points; they must divide the channels.
        offset_conv: Convolve the map depth-wise before steps and weights are taken from it.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: The groups do not divide the channels.
    """

    def __init__(self, dim: int, groups: int, offset_conv: bool = False, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if dim % groups:
            raise ValueError(f"DeformableStep: {dim} channels are not divisible by {groups} groups")
        self.groups = groups
        self.offset_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd) if offset_conv else nn.Identity()
        # Nine points, each with a step to the right, a step down and a weight.
        # The official kernel reads rows of a multiple of eight numbers; those at the end stay unused.
        self.offset_mask = nn.Linear(dim, math.ceil(27 * groups / 8) * 8, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Sample (B, D, H, W)."""
        numbers = self.offset_mask(self.offset_conv(x).permute(0, 2, 3, 1))[..., : 27 * self.groups]
        return deformable_step(x, numbers.unflatten(-1, (self.groups, 27)))


class DeformableSS2D(SS2D):
    """VMamba's SS2D with a deformable step in place of its depth-wise convolution: (B, H, W, C) to the same.

    Args:
        dim: Width C.
        offset_conv: See `DeformableStep`.
        se: Scale the channels by squeeze-and-excitation after the norm of the scan.
        kwargs: Further arguments of `SS2D`, without those of the convolution.

    The step has as many groups as the rank of the scan's step size, ceil(C / 16).
    """

    def __init__(self, dim: int, offset_conv: bool = False, se: bool = False, **kwargs: Any):
        super().__init__(dim, d_conv=1, **kwargs)
        dd: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.conv = DeformableStep(self.d_inner, self.dt_rank, offset_conv, **dd)
        self.se = ChannelGate(self.d_inner, **dd) if se else nn.Identity()

    def core(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Do what stands between the projections: (B, H, W, D) to (B, H, W, D).

        Args:
            x: What is scanned.
            z: What gates the result, before its activation; None: no gate.
        """
        y = self.se(self.out_norm(self.mix(self.convolve(x))).to(x.dtype))
        return y if z is None else y * self.act(z)


class ChannelGate(nn.Module):
    """Squeeze-and-excitation by two linear layers without biases: x * sigmoid(fc2(ReLU(fc1(mean of x)))).

    (B, H, W, D) to the same.
    """

    def __init__(self, dim: int, reduction: int = 8, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // reduction, bias=False, **dd)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(dim // reduction, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, H, W, D)."""
        gate = self.fc2(self.act(self.fc1(x.mean((1, 2), keepdim=True))))
        return x * gate.sigmoid()
