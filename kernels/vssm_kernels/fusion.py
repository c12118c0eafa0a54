"""Several depth-wise kernels over one map whose edges are repeated, in one pass on CPUs, forward and backward.

PyTorch pads and convolves for each kernel: a third of the training step of Spatial-Mamba-T.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_maps
from .depthwise import tap_offsets
from .second_order import gradients_to_differentiate
from .watch import is_followed, runs_here

__all__ = ["fusion_by_taps", "fusion_here", "fusion_taps"]

Offsets = tuple[tuple[int, int], ...]


def fusion_taps(weights: Sequence[Tensor], dilations: Sequence[int]) -> tuple[Tensor, Offsets]:
    """Lay square kernels side by side.

    Args:
        weights: (D, 1, k, k) each, k odd.
        dilations: Of each kernel.

    Returns:
        (T, D) in float32, and rows and columns from a pixel to what each of the T taps reads.
    """
    # Compilers warn of a function that keeps its results.
    find = tap_offsets.__wrapped__ if torch.compiler.is_compiling() else tap_offsets
    offsets: Offsets = ()
    for weight, dilation in zip(weights, dilations, strict=True):
        size = weight.shape[-1]
        reach = dilation * (size // 2)
        offsets += find((size, size), (reach, reach), (dilation, dilation))
    return torch.cat([w.flatten(1).float() for w in weights], dim=1).t().contiguous(), offsets


class _Fusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, taps, offsets):
        ctx.save_for_backward(x, taps)
        ctx.offsets = offsets
        return cpu_maps.depthwise(x, taps, None, offsets, x.shape[1:3], x.dtype, replicate=True)

    @staticmethod
    def backward(ctx, grad):
        x, taps = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            form = partial(fusion_by_taps, offsets=ctx.offsets)
            return *gradients_to_differentiate(form, (x, taps), ctx.needs_input_grad[:2], grad), None
        reach = _reach(ctx.offsets)
        grad = grad.contiguous()
        grad_x = grad_taps = None
        if ctx.needs_input_grad[0]:
            size = (x.shape[1] + 2 * reach, x.shape[2] + 2 * reach)
            turned = tuple((-reach - row, -reach - column) for row, column in ctx.offsets)
            grad_x = cpu_maps.depthwise(grad, taps, None, turned, size, x.dtype)
            for dim in (1, 2):
                grad_x = _fold(grad_x, dim, reach)
        if ctx.needs_input_grad[1]:
            inside = tuple((reach + row, reach + column) for row, column in ctx.offsets)
            grad_taps = cpu_maps.depthwise_grad(_pad(x, reach), grad, inside, 1)
        return grad_x, grad_taps, None


def _reach(offsets: Iterable[tuple[int, int]]) -> int:
    return max(abs(step) for offset in offsets for step in offset)


def _pad(x: Tensor, reach: int) -> Tensor:
    """Repeat the edges of (B, H, W, D)."""
    return F.pad(x.permute(0, 3, 1, 2), [reach] * 4, mode="replicate").permute(0, 2, 3, 1)


def _fold(grad: Tensor, dim: int, reach: int) -> Tensor:
    """The adjoint of repeating the edges of a dimension; changes what it is given."""
    size = grad.shape[dim] - 2 * reach
    inside = grad.narrow(dim, reach, size)
    inside.select(dim, 0).add_(grad.narrow(dim, 0, reach).sum(dim))
    inside.select(dim, size - 1).add_(grad.narrow(dim, reach + size, reach).sum(dim))
    return inside


def fusion_by_taps(x: Tensor, taps: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Compute what one pass does in PyTorch's operators, which can be differentiated as often as one likes.

    Args:
        x: (B, H, W, D).
        taps: (T, D), dtype of x; as its offsets, see `fusion_taps`.
        offsets: See there.

    Returns:
        (B, H, W, D).
    """
    height, width = x.shape[1:3]
    reach = _reach(offsets)
    padded = _pad(x, reach)
    parts = (padded[:, reach + row :, reach + column :][:, :height, :width] for row, column in offsets)
    return sum(part * tap for part, tap in zip(parts, taps, strict=True))


def fusion_here(x: Any, weights: Sequence[Tensor], dilations: Sequence[int]) -> Tensor | None:
    """Correlate a map with several square kernels at once, its edges repeated, and add the results.

    Args:
        x: (B, H, W, D), float32.
        weights: (D, 1, k, k) each, k odd.
        dilations: Of each kernel.

    Returns:
        (B, H, W, D), or None where PyTorch's operators have to run: on another device or dtype, and where something
        but autograd looks on.
    """
    if is_followed() or not runs_here(x, *weights) or x.dtype != torch.float32:
        return None
    taps, offsets = fusion_taps(weights, dilations)
    return _Fusion.apply(x, taps, offsets)
