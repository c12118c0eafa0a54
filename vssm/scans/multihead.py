"""Multi-head scan of MHS-VM (arXiv 2406.05992, section 3): sub-spaces that are scanned along routes of their own.

Letters: B batch, H x W map, C width, n heads, S = C // n width of a head, m walks a head (its routes and their
reverses), N states, R rank of the step size.
"""

import math
from typing import List, Sequence

import torch
import torch.nn as nn
from timm.layers import trunc_normal_
from torch import Tensor

from ._parameters import at_least_float32, init_state_space
from .routes import DIAGONAL, RASTER, SNAKE, SPIRAL, Route, encode_routes

__all__ = ["MULTIHEAD_PATTERNS", "MultiHeadSS2D", "scan_route_attention"]

# For pictures, two heads a row.
MULTIHEAD_PATTERNS = {"snake, diagonal": SNAKE + DIAGONAL, "spiral, raster": SPIRAL + RASTER}

torch.fx.wrap("at_least_float32")


def scan_route_attention(y: Tensor, threshold: float) -> Tensor:
    """Sum the walks of a head, gated by how much they disagree (arXiv 2406.05992, "scan route attention").

    The gate is ReLU(cv - threshold), cv the coefficient of variation over the walks of their values above the smallest:
    std(y) / (mean(y - min y) + 1e-5), with the unbiased std. For four walks cv lies between 2/3 and 2.

    Args:
        y: what each walk found at each pixel, (..., m, S), float32 or better.
        threshold: not trained; 0 to 0.5 in the published settings.

    Returns:
        (..., S).
    """
    low = y.amin(dim=-2, keepdim=True)
    variation = y.std(dim=-2) / ((y - low).mean(dim=-2) + 1e-5)
    return y.sum(dim=-2) * (variation - threshold).relu()


class MultiHeadSS2D(nn.Module):
    """Project, convolve depth-wise, scan every head along its own routes, gate, merge, gate again.

    There is no output projection after the gate: the heads' results are projected before it.

    Args:
        dim: width C of the input and output.
        heads: the routes of each head; every route is also walked backwards. All heads have equally many.
        d_state: states N per channel.
        dt_rank: rank R of the step size; ceil(S / 16) when None.
        threshold: of `scan_route_attention`. It is no parameter, so a checkpoint does not hold it: the published one is
            tested with 0.4.

    Raises:
        ValueError: fewer channels than heads, no heads, or heads with different numbers of routes.
    """

    def __init__(
        self,
        dim: int,
        heads: Sequence[Sequence[Route]] = (SNAKE, DIAGONAL, SPIRAL, RASTER),
        d_state: int = 16,
        dt_rank: int | None = None,
        threshold: float = 0.4,
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
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(self.head_dim / 16)
        self.threshold = threshold
        self.route_code: List[int] = encode_routes(walks)
        width, count = self.head_dim, len(walks)

        self.in_proj = nn.Linear(dim, 2 * dim, bias=False, **dd)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.head_proj = nn.Linear(dim, self.num_heads * width, bias=False, **dd)
        self.x_proj_weight = nn.Parameter(torch.empty(count, self.dt_rank + 2 * d_state, width, **dd))
        self.dt_projs_weight = nn.Parameter(torch.empty(count, width, self.dt_rank, **dd))
        self.dt_projs_bias = nn.Parameter(torch.empty(count, width, **dd))
        self.A_logs = nn.Parameter(torch.empty(count * width, d_state, **dd))
        self.Ds = nn.Parameter(torch.empty(count * width, **dd))
        self.merge_norm = nn.LayerNorm(self.num_heads * width, **dd)
        self.merge_proj = nn.Linear(self.num_heads * width, dim, bias=False, **dd)
        self.out_norm = nn.LayerNorm(dim, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The initialisation of the official code: Mamba's for the scans, truncated normals for the projections."""
        for linear in (self.in_proj, self.head_proj, self.merge_proj):
            trunc_normal_(linear.weight, std=0.02)
        init_state_space(self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds)

    def mix(self, x: Tensor) -> Tensor:
        """Scan in the sub-spaces and merge: (B, H, W, C) to (B, H, W, C)."""
        u = self.head_proj(x).unflatten(-1, (self.num_heads, self.head_dim))  # (B, H, W, n, S)
        weight = self.x_proj_weight.unflatten(0, (self.num_heads, self.num_walks))
        projected = torch.einsum("bhwns,nmps->bhwnmp", u, weight).flatten(3, 4)
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        u = u.unsqueeze(4).expand(-1, -1, -1, -1, self.num_walks, -1).flatten(3, 4)  # (B, H, W, n m, S)
        A = -torch.exp(at_least_float32(self.A_logs)).unflatten(0, (-1, self.head_dim))
        D = self.Ds.unflatten(0, (-1, self.head_dim))
        out_dtype = self.merge_norm.weight.dtype
        # The op itself rather than vssm_kernels.selective_scan_2d: TorchScript and FX see one node.
        y = torch.ops.vssm.selective_scan_2d(
            u, dt, A, B, C, D, self.dt_projs_bias, self.dt_projs_weight, self.route_code, True, False, out_dtype, "auto"
        )
        y = scan_route_attention(y.unflatten(3, (self.num_heads, self.num_walks)), self.threshold)
        return self.merge_proj(self.merge_norm(y.flatten(3)).to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.out_norm(self.mix(x)) * self.act(z)
