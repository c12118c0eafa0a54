"""The deformable step of DCNv4 on CPUs. Torchvision's operator takes nine times as long, and fifty for gradients."""

from typing import Any

import torch
from torch import Tensor

from . import cpu_maps
from .second_order import gradients_to_differentiate
from .watch import is_followed, runs_here

__all__ = ["deform_by_gathering", "deform_here"]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, numbers):
        ctx.save_for_backward(x, numbers)
        return cpu_maps.deform(x, numbers)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # to be differentiated again
            return gradients_to_differentiate(deform_by_gathering, ctx.saved_tensors, ctx.needs_input_grad, grad)
        return cpu_maps.deform_grad(grad.contiguous(), *ctx.saved_tensors)


def deform_by_gathering(x: Tensor, numbers: Tensor) -> Tensor:
    """Compute what `deform_here` does in PyTorch's operators, which have every derivative.

    Args:
        x: (B, H, W, D), of the dtype of the numbers.
        numbers: (B, H, W, G, 27), see `deform_here`.

    Returns:
        (B, H, W, D).
    """
    batch, height, width, groups, _ = numbers.shape
    maps = x.flatten(1, 2).unflatten(-1, (groups, -1)).permute(0, 2, 3, 1)  # (B, G, D / G, H W)
    point = torch.arange(9, device=x.device)
    right = numbers[..., 0:18:2] + (torch.arange(width, device=x.device)[:, None, None] + point // 3 - 1)
    down = numbers[..., 1:18:2] + (torch.arange(height, device=x.device)[:, None, None, None] + point % 3 - 1)
    y = torch.zeros_like(x)
    for far in (0, 1):
        for low in (0, 1):
            column, row = right.detach().floor() + far, down.detach().floor() + low
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (1 - (right - column).abs()) * (1 - (down - row).abs()) * inside * numbers[..., 18:]
            place = torch.where(inside, row * width + column, 0).long()
            place = place.permute(0, 3, 1, 2, 4).flatten(2).unsqueeze(2).expand(-1, -1, maps.shape[2], -1)
            found = maps.gather(3, place).unflatten(3, (height, width, 9))
            y = y + torch.einsum("bgdhwp,bhwgp->bhwgd", found, share).flatten(3)
    return y


def deform_here(x: Any, numbers: Tensor) -> Tensor | None:
    """Sum what each group of channels finds at nine moved points, by weights (DCNv4, arXiv 2401.06197).

    A point between pixels is interpolated bilinearly; what lies outside the map counts as zero.

    Args:
        x: (B, H, W, D).
        numbers: (B, H, W, G, 27), G a divisor of D: of the nine points around a pixel, which go down columns from the
            upper left one, the steps (right, down) in pixels, then the weights.

    Returns:
        (B, H, W, D) in the dtype of x, computed in float32. None where PyTorch's operators have to run: on another
        device, in float64, and where something but autograd looks on.
    """
    if is_followed() or not runs_here(x, numbers):
        return None
    return _Step.apply(x.float().contiguous(), numbers.float().contiguous()).to(x.dtype)
