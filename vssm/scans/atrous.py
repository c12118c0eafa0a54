"""Atrous scan: the ES2D of EfficientVMamba (arXiv 2403.09977, section 3.2), a quarter of the positions a route.

Letters: B batch, H x W map, C width of the block, D inner width, K = 4 routes, N states, R rank of the step size; h and
w are H / 2 and W / 2, rounded up.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross import SS2D
from .routes import ATROUS

__all__ = ["AtrousSS2D"]

# A strided route over the map is a plain one over a phase of its 2 x 2 grid.
_PHASE_ROUTES = tuple(route._replace(stride=(1, 1), offset=(0, 0)) for route in ATROUS)


class AtrousSS2D(SS2D):
    """SS2D that skips: each route scans one phase of the 2 x 2 grid, so every pixel is scanned once instead of 4 times.

    Of a map of odd size the phases are unequal; zeros make them equal. They are positions of their sequences as any
    other: without input they add nothing to the state, but it decays there by a step of softplus(dt_projs_bias).

    Takes and gives (B, H, W, C) of any H and W in any floating dtype; scans in float32 or better.

    Args:
        dim: width C of the input and output.
        d_state: states N per channel.
        ssm_ratio: inner width D as a multiple of C.
        kwargs: further arguments of `SS2D`, routes excepted.
    """

    def __init__(self, dim: int, d_state: int = 16, ssm_ratio: float = 2.0, **kwargs):
        options = dict(conv_bias=True, gate=True, scan_float32=True)
        super().__init__(dim, d_state=d_state, ssm_ratio=ssm_ratio, routes=_PHASE_ROUTES, **{**options, **kwargs})

    def _project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Phases (B, h, w, K, D) to the low-rank step (B, h, w, K, R), B and C (B, h, w, K, N).

        Every route sees pixels of its own: projecting the map for all of them would cost four times as much.
        """
        weight = self.x_proj.weight.unflatten(0, (self.num_routes, -1))
        projected = torch.einsum("bhwkd,kpd->bhwkp", x, weight)
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return dt, B, C

    def to_phases(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the four phases of its 2 x 2 grid, zeros at the end of odd sizes: (B, h, w, 4, D)."""
        batch, height, width, inner = x.shape
        h = (height + 1) // 2
        w = (width + 1) // 2
        x = F.pad(x, (0, 0, 0, 2 * w - width, 0, 2 * h - height))
        # Row and column phase to one dimension, the column slowest: (B, h, w, K, D). Sizes are spelled out, because
        # torch.export can follow them and not those of unflatten(-1, 2).
        return x.reshape(batch, h, 2, w, 2, inner).permute(0, 1, 3, 4, 2, 5).reshape(batch, h, w, 4, inner)

    def from_phases(self, y: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `to_phases`: (B, h, w, 4, D) to (B, H, W, D)."""
        batch, h, w, _, inner = y.shape
        y = y.reshape(batch, h, w, 2, 2, inner).permute(0, 1, 4, 2, 3, 5).reshape(batch, 2 * h, 2 * w, inner)
        return y[:, :height, :width]

    def mix(self, x: Tensor) -> Tensor:
        """Scan every phase and put it back: (B, H, W, D) to (B, H, W, D)."""
        phases = self.to_phases(x)
        dt, B, C = self._project(phases)
        y = self._scan(phases, dt, B, C, 0, self.route_code, merge=False)
        return self.from_phases(y, x.shape[1], x.shape[2])
