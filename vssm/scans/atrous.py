"""Atrous scan: the ES2D of EfficientVMamba (arXiv 2403.09977, section 3.2), a quarter of the positions a route.

Letters: B batch, H x W map, C width of the block, D inner width, K = 4 routes, N states, R rank of the step size; h and
w are H / 2 and W / 2, rounded up.
"""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._state_space import split_projection
from .cross import SS2D
from .linear import LinearScan
from .routes import ATROUS

__all__ = ["AtrousSS2D"]


class AtrousSS2D(SS2D):
    """SS2D that skips: each route takes one phase of the 2 x 2 grid, so every pixel is scanned once instead of 4 times.

    Odd sizes are filled up with zeros to even ones, at the bottom and right, after the convolution and before the
    projection. The zeros are positions of their sequences as any other: they add nothing to the state, but it decays
    there by a step of softplus(dt_projs_bias). The official code does the same.

    Takes and gives (B, H, W, C) of any H and W in any floating dtype; scans in float32 or better.

    Args:
        dim: Width C of the input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width D as a multiple of C.
        kwargs: Further arguments of `SS2D`, routes excepted.
    """

    def __init__(self, dim: int, d_state: int = 16, ssm_ratio: float = 2.0, **kwargs):
        options = dict(conv_bias=True, gate=True, scan_float32=True)
        super().__init__(dim, d_state=d_state, ssm_ratio=ssm_ratio, routes=ATROUS, **{**options, **kwargs})

    def pad(self, x: Tensor) -> Tensor:
        """Fill odd sizes up with zeros: (B, H, W, D) to (B, 2 h, 2 w, D)."""
        return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Project every pixel of (B, 2 h, 2 w, D) for its own route only, which is a quarter of the work.

        Returns:
            The low-rank step (B, 2 h, 2 w, K, R), B and C (B, 2 h, 2 w, K, N). A pixel has the same for all routes,
            without a copy: only one route reads it.
        """
        batch, height, width, inner = x.shape
        # Phase (row i, column j) of the 2 x 2 grid is that of route 2 j + i in ATROUS. Sizes are spelled out, because
        # torch.export can follow them and not those of unflatten(-1, 2).
        phases = x.reshape(batch, height // 2, 2, width // 2, 2, inner)
        weight = self.x_proj.weight.unflatten(0, (2, 2, -1))
        size = self.dt_rank + 2 * self.d_state
        projected = torch.einsum("bhiwjd,jipd->bhiwjp", phases, weight).reshape(batch, height, width, 1, size)
        dt, B, C = split_projection(projected, self.dt_rank, self.d_state)
        every = [-1, -1, -1, self.num_routes, -1]
        return dt.expand(every), B.expand(every), C.expand(every)

    def mix(self, x: Tensor) -> Tensor:
        """Scan and merge: (B, H, W, D) to (B, H, W, D)."""
        height = x.shape[1]
        width = x.shape[2]
        x = self.pad(x)
        dt, B, C = self.project(x)
        y = self.scan(x, dt, B, C, self.route_code, out_dtype=self.out_norm.weight.dtype)
        return y[:, :height, :width]

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`. One result holds all routes, which share no pixel.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        height, width = x.shape[1:3]
        source = self.convolve(self.in_proj(x)[..., : self.d_inner])
        scan = self.linear_part(*self.project(self.pad(source)), self.route_code)

        def apply(u: Tensor) -> Tensor:
            return scan(self.pad(u)).sum(3, keepdim=True)[:, :height, :width]

        return [LinearScan(source, apply, ("the pixel's phase",), self.d_inner)]
