"""One constant step and zero point for each position of the tokens (PTQ4VM, arXiv 2412.20386, section 4).

The order in which a scan reads an image is fixed, so what its tensors look like depends on the position more than on
the image. Such steps are tied to one size of images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .fake import fake_quantize_levels

__all__ = ["TokenSteps", "search_token_steps", "search_weight_steps", "token_steps"]

CANDIDATES = 100


@dataclass(frozen=True)
class TokenSteps:
    """Steps of positions.

    Attributes:
        step: (1, positions ..., 1).
        zero: The level that stands for 0, of the same shape.
    """

    step: Tensor
    zero: Tensor


def token_steps(low: Tensor, high: Tensor, levels: int) -> TokenSteps:
    """Return the steps of the ranges from `low` to `high`: s = (high - low) / (levels - 1), z = round(-low / s)."""
    step = ((high - low) / (levels - 1)).clamp(min=torch.finfo(low.dtype).tiny)
    # A constant that is far from 0 has no range: its zero point would leave the integers that float32 counts.
    step = torch.maximum(step, torch.maximum(low.abs(), high.abs()) * 1e-6)
    return TokenSteps(step, (-low / step).round())


def search_token_steps(x: Tensor, levels: int, candidates: int = CANDIDATES) -> TokenSteps:
    """Narrow the ranges of all positions by one share, the one with the smallest squared error.

    Both ends move towards each other by k hundredths, and 0 stays inside. Errors of a position count relative to its
    energy. The whole range is not among the candidates, as in the official code: on data without outliers that of
    `token_steps` is better.

    Args:
        x: (B, positions ..., C).
        levels: As for `fake_quantize_levels`.
        candidates: How many shares are tried.
    """
    low, high = x.amin((0, -1), keepdim=True), x.amax((0, -1), keepdim=True)
    energy = x.square().sum((0, -1)).clamp(min=torch.finfo(x.dtype).tiny)
    best, chosen = float("inf"), token_steps(low, high, levels)
    for k in range(1, candidates + 1):
        move = (high - low) * (k / candidates)
        found = token_steps((low + move).clamp(max=0), (high - move).clamp(min=0), levels)
        error = (fake_quantize_levels(x, found.step, found.zero, levels) - x).square().sum((0, -1))
        total = float((error / energy).sum())
        if total < best:
            best, chosen = total, found
    return chosen


def search_weight_steps(weight: Tensor, levels: int, candidates: int = CANDIDATES) -> Tensor:
    """Choose the symmetric step of each output channel by the error |e|^2.4, out of max|w| k / 100.

    Args:
        weight: (out, in).
        levels: The integers go from -(levels / 2 - 1) to levels / 2 - 1.
        candidates: How many steps are tried.

    Returns:
        (out, 1).
    """
    top = levels // 2 - 1
    bound = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    best, chosen = torch.full_like(bound, float("inf")), bound / top
    for k in range(candidates, 0, -1):
        step = bound * (k / candidates) / top
        error = ((weight / step).round().clamp(-top, top) * step - weight).abs().pow(2.4).sum(1, keepdim=True)
        chosen = torch.where(error < best, step, chosen)
        best = torch.minimum(best, error)
    return chosen
