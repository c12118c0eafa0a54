"""A classifier that is fixed before training, and its loss (neural collapse, arXiv 2302.03004; Mamba-FSCIL).

Letters: B batch, C channels, K classes, those to come included.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor

from .._errors import UserError

__all__ = ["ETFClassifier", "dot_regression_loss", "simplex_etf"]


def simplex_etf(channels: int, classes: int, generator: torch.Generator | None = None) -> Tensor:
    """Make K unit vectors (C, K) of which any two have the same angle, the widest that there is: cos = -1 / (K - 1).

    Args:
        channels: C, at least K.
        classes: K, at least 2.
        generator: Of the random basis.

    Raises:
        UserError: There are fewer channels than classes, or fewer than two classes.
    """
    if not 2 <= classes <= channels:
        raise UserError(f"{channels} channels hold the fixed vectors of 2 to {channels} classes, not of {classes}.")
    basis, _ = torch.linalg.qr(torch.rand(channels, classes, generator=generator, dtype=torch.float64))
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return (math.sqrt(classes / (classes - 1)) * basis @ centred).float()


class ETFClassifier(nn.Module):
    """Score vectors by their cosines with the fixed vectors of the classes.

    The vectors are saved with the weights: they are random, and differ from one linear algebra library to the next.

    Args:
        channels: C.
        classes: K, with all that are to come.
        seed: Of the random basis.
    """

    etf_vec: Tensor

    def __init__(self, channels: int, classes: int, seed: int = 0):
        super().__init__()
        self.register_buffer("etf_vec", simplex_etf(channels, classes, torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor, classes: int | None = None) -> Tensor:
        """Give the cosines of vectors (B, C) with the first classes, all when None: (B, classes)."""
        return F.normalize(x, dim=1) @ self.etf_vec[:, :classes].to(x.dtype)

    def targets(self, labels: Tensor) -> Tensor:
        """Give the fixed vectors (B, C) of class numbers (B,)."""
        return self.etf_vec.T[labels]


def dot_regression_loss(
    x: Tensor, targets: Tensor, labels: Tensor | None = None, classes: int = 0, weight: float = 10.0
) -> Tensor:
    """Draw the directions of vectors towards fixed ones: weight / 2 mean (h . t - |t|)^2 with h = x / |x|.

    Args:
        x: (B, C).
        targets: Unit vectors (B, C).
        labels: Class numbers (B,). Where given, a vector t is longer the rarer its class is in the batch of all
            processes: by sqrt((samples / classes present) / samples of the class).
        classes: How many there may be; needed with `labels`.
        weight: Factor.

    Returns:
        A scalar in float32 or better.
    """
    x = F.normalize(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, dim=1)
    targets = targets.to(x.dtype)
    length = x.new_ones(len(x))
    if labels is not None:
        counts = torch.bincount(labels, minlength=classes).to(x.dtype)
        all_reduce(counts)
        length = (counts.sum() / (counts > 0).sum() / counts[labels]).sqrt()
    dot = (x * targets).sum(1) * length
    return 0.5 * weight * (dot - length).square().mean()
