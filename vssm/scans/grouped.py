"""Grouped mixer of GroupMamba: one direction a channel group, then channel modulation (arXiv 2407.13772, section 3).

Letters: B batch, H x W map, C width of the block, K groups (one route each), D = C / K, N states, R rank of the step
size.
"""

import math
from typing import List

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from torch import Tensor

from ._parameters import at_least_float32, init_state_space
from .routes import CROSS, encode_routes

__all__ = ["GroupedSS2D"]

torch.fx.wrap("at_least_float32")


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """A matrix for each group: (B, H, W, K, D) with (K, E, D) to (B, H, W, K, E)."""
    return torch.einsum("bhwkd,ked->bhwke", x, weight)


class GroupedLayerNorm(nn.Module):
    """LayerNorm of each group by itself: (..., K, D) to (..., K, D). Its parameters are flat, (K*D,)."""

    def __init__(self, groups: int, dim: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.groups = groups
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(groups * dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(groups * dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, (self.dim,), eps=self.eps)
        return x * self.weight.unflatten(0, (self.groups, self.dim)) + self.bias.unflatten(0, (self.groups, self.dim))


class GroupedSS2D(nn.Module):
    """Modulated group mamba layer: the norm stands inside, and the skip is a product.

    n = norm(x); m = the groups of n, each through a gated scan along its own route; y = s m n g with a learned scalar s
    and gates g of the channels from the mean of n (squeeze-and-excite); out = proj(norm(y)), with the same norm.

    Every group has its own projections, convolution, scan and norm. They are stacked and run together.

    Args:
        dim: width C of the input and output; a multiple of the number of routes.
        d_state: states N per channel.
        dt_rank: rank R of the step size of a group; ceil(D / 16) when None.
        d_conv: kernel size of the depth-wise convolution, odd.
        reduction: the gates are computed from C // reduction numbers.
        routes: scan pattern of single routes, one for each group of channels, see `vssm.scans.routes`.

    The scan runs in float32 whatever autocast says, as it officially does.

    Raises:
        ValueError: the width is not a multiple of the number of routes, or below `reduction`.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        dt_rank: int | None = None,
        d_conv: int = 3,
        reduction: int = 16,
        routes: tuple = CROSS,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.groups = len(routes)
        if dim % self.groups or dim < reduction:
            raise ValueError(
                f"GroupedSS2D: the width must be a multiple of the {self.groups} routes and at least {reduction}, "
                f"the channel reduction; got {dim}"
            )
        self.group_dim = dim // self.groups
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(self.group_dim / 16)
        self.route_code: List[int] = encode_routes(routes)
        groups, width = self.groups, self.group_dim

        self.norm = nn.LayerNorm(dim, **dd)
        # Squeeze-and-excite by hand: timm's channels-last one does not compile under TorchScript.
        self.gate = Mlp(dim, dim // reduction, act_layer=nn.ReLU, **dd)
        self.in_proj_weight = nn.Parameter(torch.empty(groups, 2 * width, width, **dd))
        self.conv = nn.Conv2d(dim, dim, d_conv, padding=d_conv // 2, groups=dim, **dd)
        self.act = nn.SiLU()
        self.x_proj_weight = nn.Parameter(torch.empty(groups, self.dt_rank + 2 * d_state, width, **dd))
        self.dt_projs_weight = nn.Parameter(torch.empty(groups, width, self.dt_rank, **dd))
        self.dt_projs_bias = nn.Parameter(torch.empty(groups, width, **dd))
        self.A_logs = nn.Parameter(torch.empty(dim, d_state, **dd))
        self.Ds = nn.Parameter(torch.empty(dim, **dd))
        self.out_norm = GroupedLayerNorm(groups, width, **dd)
        self.out_proj_weight = nn.Parameter(torch.empty(groups, width, width, **dd))
        self.skip_scale = nn.Parameter(torch.ones(1, **dd))
        self.proj = nn.Linear(dim, dim, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The initialisation of the official code (S4D-real A, log-uniform steps)."""
        for weight in (self.in_proj_weight, self.out_proj_weight):
            trunc_normal_(weight, std=0.02)
        init_state_space(self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds)

    def mix(self, x: Tensor) -> Tensor:
        """Every group through its gated scan: (B, H, W, C) to (B, H, W, K, D)."""
        x = grouped_linear(x.unflatten(-1, (self.groups, self.group_dim)), self.in_proj_weight)
        u, z = x.chunk(2, dim=-1)
        u = self.act(self.conv(u.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        u = u.unflatten(-1, (self.groups, self.group_dim))
        dt, B, C = grouped_linear(u, self.x_proj_weight).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        A = -torch.exp(at_least_float32(self.A_logs)).unflatten(0, (self.groups, self.group_dim))
        D = self.Ds.unflatten(0, (self.groups, self.group_dim))
        u, dt, B, C = at_least_float32(u), at_least_float32(dt), at_least_float32(B), at_least_float32(C)
        # The op itself rather than vssm_kernels.selective_scan_2d: TorchScript and FX see one node.
        y = torch.ops.vssm.selective_scan_2d(
            u, dt, A, B, C, D, self.dt_projs_bias, self.dt_projs_weight, self.route_code, True, False, None, "auto"
        )
        return grouped_linear(self.out_norm(y).to(z.dtype) * self.act(z), self.out_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = self.norm(x)
        gate = torch.sigmoid(self.gate(x.mean((1, 2), keepdim=True)))
        skip = x * (self.skip_scale * gate)
        # The map first: its strides, not those of the stacked groups, are the product's, and flatten copies nothing.
        y = skip.unflatten(-1, (self.groups, self.group_dim)) * self.mix(x)
        return self.proj(self.norm(y.flatten(3)))
