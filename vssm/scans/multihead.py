"""Multi-head scan of MHS-VM (arXiv 2406.05992, section 3): sub-spaces that are scanned along routes of their own.

Letters: B batch, H x W map, C width, n heads, S = C // n width of a head, m walks a head (its routes and their
reverses), N states, R rank of the step size.
"""

import math
from typing import List, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from vssm_kernels.passes import run_linear

from ._state_space import StateSpaceMixer, init_linear, split_projection
from .linear import LinearScan, route_names
from .routes import DIAGONAL, RASTER, SNAKE, SPIRAL, Route, encode_routes

__all__ = ["MULTIHEAD_PATTERNS", "MultiHeadSS2D", "scan_route_attention"]

# For pictures, two heads a row.
MULTIHEAD_PATTERNS = {"snake, diagonal": SNAKE + DIAGONAL, "spiral, raster": SPIRAL + RASTER}


def scan_route_attention(y: Tensor, threshold: float) -> Tensor:
    """Sum the walks of a head, gated by how much they disagree (arXiv 2406.05992, "scan route attention").

    The gate is ReLU(cv - threshold), cv the coefficient of variation over the walks of their values above the smallest:
    std(y) / (mean(y - min y) + 1e-5), with the unbiased std. For four walks cv lies between 2/3 and 2.

    Args:
        y: What each walk found at each pixel, (..., m, S), float32 or better.
        threshold: Not trained; 0 to 0.5 in the published settings.

    Returns:
        (..., S).
    """
    low = y.amin(dim=-2, keepdim=True)
    variation = y.std(dim=-2) / ((y - low).mean(dim=-2) + 1e-5)
    return y.sum(dim=-2) * (variation - threshold).relu()


class MultiHeadSS2D(StateSpaceMixer):
    """Project, convolve depth-wise, scan every head along its own routes, gate, merge, gate again.

    There is no output projection after the gate: the heads' results are projected before it.

    Args:
        dim: Width C of the input and output.
        heads: The routes of each head; every route is also walked backwards. All heads have equally many.
        d_state: States N per channel.
        dt_rank: Rank R of the step size; ceil(S / 16) when None.
        threshold: Of `scan_route_attention`. It is no parameter, so a checkpoint does not hold it: the published one is
            tested with 0.4.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: Fewer channels than heads, no heads, or heads with different numbers of routes.
    """

    def __init__(
        self,
        dim: int,
        heads: Sequence[Sequence[Route]] = (SNAKE, DIAGONAL, SPIRAL, RASTER),
        d_state: int = 16,
        dt_rank: int | None = None,
        threshold: float = 0.4,
        A_init: str | float = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if len({len(routes) for routes in heads}) != 1:
            raise ValueError(f"MultiHeadSS2D: every head needs as many routes, got {[len(r) for r in heads]}")
        if dim < len(heads):
            raise ValueError(f"MultiHeadSS2D: {dim} channels are too few for {len(heads)} heads")
        walks = [
            walk for routes in heads for route in routes for walk in (route, route._replace(reverse=not route.reverse))
        ]
        self.num_heads = len(heads)
        self.num_walks = len(walks) // self.num_heads
        self.head_dim = dim // self.num_heads
        self.threshold = threshold
        self.route_code: List[int] = encode_routes(walks)
        width, count, rank = self.head_dim, len(walks), dt_rank or math.ceil(self.head_dim / 16)

        self.in_proj = nn.Linear(dim, 2 * dim, bias=False, **dd)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.head_proj = nn.Linear(dim, self.num_heads * width, bias=False, **dd)
        self.x_proj_weight = nn.Parameter(torch.empty(count, rank + 2 * d_state, width, **dd))
        self.add_state_space(count, width, d_state, rank, scan_float32=False, A_init=A_init, **dd)
        self.merge_norm = nn.LayerNorm(self.num_heads * width, **dd)
        self.merge_proj = nn.Linear(self.num_heads * width, dim, bias=False, **dd)
        self.out_norm = nn.LayerNorm(dim, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as the official code does: scans as in Mamba, projections truncated normal."""
        init_linear(self.in_proj.weight, self.head_proj.weight, self.merge_proj.weight)
        self.init_state_space(self.x_proj_weight)

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve and activate: (B, H, W, C) to (B, H, W, C)."""
        return self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project (B, H, W, C) to the sub-spaces, with the parameters of each of the n m walks.

        Returns:
            The input of every walk (B, H, W, n m, S), its low-rank step (B, H, W, n m, R), B and C (B, H, W, n m, N).
        """
        u = self.head_proj(x) if torch.jit.is_scripting() else run_linear(self.head_proj, x)
        u = u.unflatten(-1, (self.num_heads, self.head_dim))  # (B, H, W, n, S)
        weight = self.x_proj_weight.unflatten(0, (self.num_heads, self.num_walks))
        projected = torch.einsum("bhwns,nmps->bhwnmp", u, weight).flatten(3, 4)
        dt, B, C = split_projection(projected, self.dt_rank, self.d_state)
        u = u.unsqueeze(4).expand(-1, -1, -1, -1, self.num_walks, -1).flatten(3, 4)
        return u, dt, B, C

    def mix(self, x: Tensor) -> Tensor:
        """Scan in the sub-spaces and merge: (B, H, W, C) to (B, H, W, C)."""
        u, dt, B, C = self.project(x)
        y = self.scan(u, dt, B, C, self.route_code, merge=False, out_dtype=self.merge_norm.weight.dtype)
        y = scan_route_attention(y.unflatten(3, (self.num_heads, self.num_walks)), self.threshold)
        y = self.merge_norm(y.flatten(3)).to(x.dtype)
        return self.merge_proj(y) if torch.jit.is_scripting() else run_linear(self.merge_proj, y)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C)."""
        xz = self.in_proj(x) if torch.jit.is_scripting() else run_linear(self.in_proj, x)
        x, z = xz.chunk(2, dim=-1)
        return self.out_norm(self.mix(self.convolve(x))) * self.act(z)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        The walks of a head meet in its channels. What gates them, which depends on their results, is left out.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        x, _ = self.in_proj(x).chunk(2, dim=-1)
        u, dt, B, C = self.project(self.convolve(x))
        apply = self.linear_part(dt, B, C, self.route_code)
        return [LinearScan(u, apply, route_names(self.route_code), self.num_heads * self.head_dim)]
