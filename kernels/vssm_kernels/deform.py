"""The deformable step of DCNv4 on CPUs. Torchvision's operator takes nine times as long, and fifty for gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cpu_maps
from .watch import is_followed, runs_here

__all__ = ["deform_here"]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, numbers):
        ctx.save_for_backward(x, numbers)
        return cpu_maps.deform(x, numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return cpu_maps.deform_grad(grad.contiguous(), *ctx.saved_tensors)


def deform_here(x: Any, numbers: Tensor) -> Tensor | None:
    """Sum what each group of channels finds at nine moved points, by weights (DCNv4, arXiv 2401.06197).

    A point between pixels is interpolated bilinearly; what lies outside the map counts as zero.

    Args:
        x: (B, H, W, D).
        numbers: (B, H, W, G, 27), G a divisor of D: of the nine points around a pixel, which go down columns from the
            upper left one, the steps (right, down) in pixels, then the weights.

    Returns:
        (B, H, W, D) in the dtype of x, computed in float32. None where PyTorch's operators have to run: on another
        device, in float64, and where something but autograd looks on. It can be differentiated once.
    """
    if is_followed() or not runs_here(x, numbers):
        return None
    return _Step.apply(x.float().contiguous(), numbers.float().contiguous()).to(x.dtype)
