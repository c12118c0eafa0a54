"""What calibration remembers of the tensors that it sees, and the steps that follow from it."""

import math

import torch
from torch import Tensor

from .fake import symmetric_scale
from .per_token import TokenSteps, token_steps

__all__ = ["AbsMax", "MinMaxPerToken", "Percentile", "upper_quantile"]


def upper_quantile(x: Tensor, alpha: float) -> Tensor:
    """Return the quantile `alpha` of all elements, interpolated linearly; `torch.quantile` takes at most 16 million."""
    x = x.flatten()
    place = float(torch.tensor(alpha, dtype=x.dtype)) * (x.numel() - 1)  # rounded as torch.quantile does
    below = min(math.floor(place), x.numel() - 1)
    top = x.topk(x.numel() - below).values  # descending: the last is the element at `below`
    low, high = top[-1], top[max(len(top) - 2, 0)]
    return low + (high - low) * (place - below)


class AbsMax:
    """The largest absolute value of all tensors seen.

    Args:
        channels: One for each channel (the last dimension); else one for the whole tensor.
    """

    def __init__(self, channels: bool = False):
        self.channels = channels
        self.bound: Tensor | None = None

    def __call__(self, x: Tensor) -> None:
        """Look at a tensor."""
        new = x.detach().abs().float()
        new = new.flatten(0, -2).amax(0) if self.channels else new.amax()
        self.bound = new if self.bound is None else torch.maximum(self.bound, new)

    def scale(self, bits: int) -> Tensor:
        """Return the symmetric step.

        Raises:
            RuntimeError: Nothing was seen.
        """
        if self.bound is None:
            raise RuntimeError(f"{type(self).__name__} has seen no tensor")
        return symmetric_scale(self.bound, bits)


class Percentile(AbsMax):
    """The quantile of absolute values, so that few outliers do not coarsen all others (Quamba, arXiv 2410.13229).

    An error of the scan's input is carried along by the state, so it pays to clip there.

    Args:
        alpha: The quantile, 0.99999 in the paper; its code takes 0.9995 for small models.
        momentum: How much of the difference a further tensor adds: m <- m + momentum (new - m).
    """

    def __init__(self, alpha: float = 0.9995, momentum: float = 0.01):
        super().__init__()
        self.alpha = alpha
        self.momentum = momentum

    def __call__(self, x: Tensor) -> None:
        """Look at a tensor."""
        new = upper_quantile(x.detach().abs().float(), self.alpha)
        self.bound = new if self.bound is None else self.bound + self.momentum * (new - self.bound)


class MinMaxPerToken:
    """The smallest and the largest value at each position of (B, positions ..., C), over images and channels."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def __call__(self, x: Tensor) -> None:
        """Look at a tensor (B, positions ..., C)."""
        x = x.detach().float()
        low, high = x.amin((0, -1), keepdim=True), x.amax((0, -1), keepdim=True)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def steps(self, levels: int) -> TokenSteps:
        """Return steps and zero points of the shape (1, positions ..., 1).

        Raises:
            RuntimeError: Nothing was seen.
        """
        if self.low is None or self.high is None:
            raise RuntimeError("MinMaxPerToken has seen no tensor")
        return token_steps(self.low, self.high, levels)
