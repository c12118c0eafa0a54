"""Atrous scan: the ES2D of EfficientVMamba (arXiv 2403.09977, section 3.2), a quarter of the positions a route.

Letters: B batch, H x W map, C width of the block, D inner width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross import SS2D
from .routes import ATROUS

__all__ = ["AtrousSS2D"]

torch.fx.wrap("_pad_to_even")


def _pad_to_even(x: Tensor) -> Tensor:
    """Zeros below and to the right of a channels-last map of odd size.

    F.pad copies even when there is nothing to add, hence the branch on the shape, which FX keeps as one call.
    """
    if x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
        return x
    return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))


class AtrousSS2D(SS2D):
    """SS2D that skips: each route scans one phase of the 2 x 2 grid, so every pixel is scanned once instead of 4 times.

    Of a map of odd size the phases are unequal; zeros make them equal. They are positions of their sequences as any
    other: without input they add nothing to the state, but it decays there by a step of softplus(dt_projs_bias).

    Takes and gives (B, H, W, C) of any H and W, in any floating dtype; computes the scan in float32 or better.

    Args:
        dim: width C of the input and output.
        d_state: states per channel.
        ssm_ratio: inner width D as a multiple of C.
        kwargs: further arguments of `SS2D`.
    """

    def __init__(self, dim: int, d_state: int = 16, ssm_ratio: float = 2.0, **kwargs):
        options = dict(conv_bias=True, gate=True, routes=ATROUS, scan_float32=True)
        super().__init__(dim, d_state=d_state, ssm_ratio=ssm_ratio, **{**options, **kwargs})

    def mix(self, x: Tensor) -> Tensor:
        """Pad, scan, put back, crop: (B, H, W, D) to (B, H, W, D)."""
        height = x.shape[1]
        width = x.shape[2]
        x = _pad_to_even(x)
        dt, B, C = self._project(x)
        return self._scan(x, dt, B, C, 0, self.route_code)[:, :height, :width]
