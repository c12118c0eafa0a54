"""Quantise tensors and bring them back, so that a network in float32 computes what one of few bits would.

Symmetric, b bits: s = max|x| / (2^(b-1) - 1), q = clamp(round(x / s), -2^(b-1), 2^(b-1) - 1). Asymmetric, n levels,
with one step s and one zero point z: x = (round(clamp(x / s + z, 0, n - 1)) - z) s. Halves are rounded to even.
"""

import torch
from torch import Tensor

__all__ = ["fake_quantize", "fake_quantize_levels", "quantize", "straight_through_round", "symmetric_scale"]


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, *grad: Tensor) -> Tensor:
        return grad[0]


def straight_through_round(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity (arXiv 1308.3432)."""
    return _Round.apply(x)


def symmetric_scale(bound: Tensor, bits: int) -> Tensor:
    """Return the step at which `bound` is the largest integer: max|x| / (2^(bits - 1) - 1).

    Args:
        bound: Largest absolute value, of any shape. Where it is 0, the step is the smallest normal number, not 0.
        bits: From 2 to 16.
    """
    return (bound / (2 ** (bits - 1) - 1)).clamp(min=torch.finfo(bound.dtype).tiny)


def quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the integers of a symmetric quantiser, in the dtype of `x`; gradients pass the rounding.

    Args:
        x: Of any shape.
        scale: The step, broadcast to `x`.
        bits: From 2 to 16.
    """
    top = 2 ** (bits - 1)
    return straight_through_round(x / scale).clamp(-top, top - 1)


def fake_quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Quantise symmetrically and multiply by the step again: see `quantize`."""
    return quantize(x, scale, bits) * scale


def fake_quantize_levels(x: Tensor, step: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Quantise to `levels` values that need not lie around 0, and bring back (PTQ4VM, arXiv 2412.20386).

    Args:
        x: Of any shape.
        step: Broadcast to `x`.
        zero: The level that stands for 0, broadcast to `x`.
        levels: 256, 64 or 16 for 8, 6 or 4 bits.

    Returns:
        Values of the shape of `x`, with gradients to `x` inside the range, and to `step`.
    """
    return straight_through_round((x / step + zero).clamp(0, levels - 1) - zero) * step
