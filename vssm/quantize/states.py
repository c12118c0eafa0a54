"""Scale a scan so that its states become even enough for one 8-bit step per time step (k-scaled PTQ, arXiv 2501.16738).

Letters: B batch, D channels, L steps, N states.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["StateFactors", "state_factors", "state_steps"]


@dataclass(frozen=True)
class StateFactors:
    """What a scan's tensors are multiplied by; the output does not change.

    Attributes:
        r_C: Of channels, (D,): the output is multiplied by it.
        r_L: Of steps, (L,).
        r_D: Of states, (N,).
    """

    r_C: Tensor
    r_L: Tensor
    r_D: Tensor

    @property
    def decay(self) -> Tensor:
        """Factor of the decays, (L,): r_L of the step before over r_L, with 1 before the first step."""
        return torch.cat([torch.ones_like(self.r_L[:1]), self.r_L[:-1]]) / self.r_L

    @property
    def input(self) -> Tensor:
        """Factor of the inputs dt B x, (D, L, N): 1 / (r_C r_L r_D)."""
        return 1 / (self.r_C[:, None, None] * self.r_L[:, None] * self.r_D)

    @property
    def output(self) -> Tensor:
        """Factor of C, (N, L): r_D r_L."""
        return self.r_D[:, None] * self.r_L


def state_factors(states: Tensor) -> StateFactors:
    """Return the factors for the states of calibration images.

    Mean |h| over images; each factor is the mean over the other two dimensions, raised to the share that its deviation
    has in the sum of the three, so that their product follows |h|.

    Args:
        states: (B, D, L, N).
    """
    size = states.abs().mean(0)
    means = size.mean((1, 2)), size.mean((0, 2)), size.mean((0, 1))
    deviations = [mean.std() for mean in means]
    total = torch.stack(deviations).sum()
    r_C, r_L, r_D = (mean.pow(d / total) for mean, d in zip(means, deviations, strict=True))
    return StateFactors(r_C, r_L, r_D)


def state_steps(states: Tensor) -> Tensor:
    """Return the 8-bit step of each time step: 2 max|h| / 255, (L,).

    Args:
        states: Scaled ones, (B, D, L, N).
    """
    return states.abs().amax((0, 1, 3)) * (2 / 255)
