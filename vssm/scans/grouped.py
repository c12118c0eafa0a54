"""Grouped mixer of GroupMamba: one direction a channel group, then channel modulation (arXiv 2407.13772, section 3).

Letters: B batch, H x W map, C width of the block, K groups (one route each), D = C / K, N states, R rank of the step
size.
"""

import math
from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor

from vssm_kernels.passes import conv_pass, norm_pass, run_linear

from ._state_space import StateSpaceMixer, init_linear, split_projection
from .linear import LinearScan, route_names
from .routes import CROSS, encode_routes

__all__ = ["GroupedSS2D"]


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each group by a matrix of its own: (B, H, W, K, D) with (K, E, D) to (B, H, W, K, E)."""
    y = torch.bmm(x.flatten(0, 2).transpose(0, 1), weight.transpose(1, 2))
    return y.transpose(0, 1).unflatten(0, x.shape[:3])


class GroupedLayerNorm(nn.Module):
    """LayerNorm of each group by itself, (..., K, D) to (..., K, D).

    Args:
        groups: K.
        dim: Width D of a group.
        eps: Added to the variance.
        device: Of the parameters.
        dtype: Of the parameters.

    The parameters are flat, (K D,).
    """

    def __init__(self, groups: int, dim: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.groups = groups
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(groups * dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(groups * dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., K, D)."""
        x = F.layer_norm(x, (self.dim,), eps=self.eps)
        return x * self.weight.unflatten(0, (self.groups, self.dim)) + self.bias.unflatten(0, (self.groups, self.dim))


class GroupedSS2D(StateSpaceMixer):
    """Modulated group mamba layer: the norm stands inside, and the skip is a product.

    n = norm(x); m = the groups of n, each through a gated scan along its own route; y = s m n g with a learned scalar s
    and gates g of the channels from the mean of n (squeeze-and-excite); out = proj(norm(y)), with the same norm.

    Every group has its own projections, convolution, scan and norm. They are stacked and run together.

    Args:
        dim: Width C of the input and output; a multiple of the number of routes.
        d_state: States N per channel.
        dt_rank: Rank R of the step size of a group; ceil(D / 16) when None.
        d_conv: Kernel size of the depth-wise convolution, odd.
        reduction: The gates are computed from C // reduction numbers.
        routes: Scan pattern of single routes, one for each group of channels, see `vssm.scans.routes`.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

    The scan runs in float32 whatever autocast says, as it officially does.

    Raises:
        ValueError: The width is not a multiple of the number of routes, or below `reduction`.
    """

    quant_weights = ("in_proj_weight", "x_proj_weight", "out_proj_weight")

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        dt_rank: int | None = None,
        d_conv: int = 3,
        reduction: int = 16,
        routes: tuple = CROSS,
        A_init: str | float = "real",
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
        self.route_code: List[int] = encode_routes(routes)
        groups, width = self.groups, self.group_dim
        rank = dt_rank or math.ceil(width / 16)

        self.norm = nn.LayerNorm(dim, **dd)
        # Squeeze-and-excite by hand: timm's channels-last one does not compile under TorchScript.
        self.gate = Mlp(dim, dim // reduction, act_layer=nn.ReLU, **dd)
        self.in_proj_weight = nn.Parameter(torch.empty(groups, 2 * width, width, **dd))
        self.conv = nn.Conv2d(dim, dim, d_conv, padding=d_conv // 2, groups=dim, **dd)
        self.act = nn.SiLU()
        self.x_proj_weight = nn.Parameter(torch.empty(groups, rank + 2 * d_state, width, **dd))
        self.add_state_space(groups, width, d_state, rank, scan_float32=True, A_init=A_init, **dd)
        self.out_norm = GroupedLayerNorm(groups, width, **dd)
        self.out_proj_weight = nn.Parameter(torch.empty(groups, width, width, **dd))
        self.skip_scale = nn.Parameter(torch.ones(1, **dd))
        self.proj = nn.Linear(dim, dim, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as the official code does (log-uniform steps, A by `A_init`)."""
        init_linear(self.in_proj_weight, self.out_proj_weight)
        self.init_state_space(self.x_proj_weight)
        nn.init.ones_(self.skip_scale)
        nn.init.ones_(self.out_norm.weight)
        nn.init.zeros_(self.out_norm.bias)

    def enter(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Project the normalised map (B, H, W, C) to what is scanned and its gate, (B, H, W, K, D) each."""
        x = grouped_linear(x.unflatten(-1, (self.groups, self.group_dim)), self.in_proj_weight)
        u, z = x.chunk(2, dim=-1)
        u = self.convolve(u.flatten(3))
        return u.unflatten(-1, (self.groups, self.group_dim)), z

    def convolve(self, u: Tensor) -> Tensor:
        """Convolve and activate (B, H, W, C)."""
        if not torch.jit.is_scripting():
            y = conv_pass(self.conv, u, self.act)
            if y is not None:
                return y
        return self.act(self.conv(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def project(self, u: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Project (B, H, W, K, D) to the low-rank step (B, H, W, K, R), B and C (B, H, W, K, N)."""
        return split_projection(grouped_linear(u, self.x_proj_weight), self.dt_rank, self.d_state)

    def mix(self, x: Tensor) -> Tensor:
        """Send every group through its gated scan: (B, H, W, C) to (B, H, W, K, D)."""
        u, z = self.enter(x)
        dt, B, C = self.project(u)
        y = self.scan(u, dt, B, C, self.route_code, merge=False)
        return grouped_linear(self.normalise(y, z), self.out_proj_weight)

    def normalise(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise what was scanned and gate it, (B, H, W, K, D) each."""
        if not torch.jit.is_scripting():
            gated = norm_pass(self.out_norm, y, z.dtype, z, self.act, self.groups)
            if gated is not None:
                return gated
        return self.out_norm(y).to(z.dtype) * self.act(z)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C)."""
        x = self.norm(x)
        gate = torch.sigmoid(self.gate(x.mean((1, 2), keepdim=True)))
        skip = x * (self.skip_scale * gate)
        # The map first: its strides, not those of the stacked groups, are the product's, and flatten copies nothing.
        y = skip.unflatten(-1, (self.groups, self.group_dim)) * self.mix(x)
        y = self.norm(y.flatten(3))
        return self.proj(y) if torch.jit.is_scripting() else run_linear(self.proj, y)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        u, _ = self.enter(self.norm(x))
        apply = self.linear_part(*self.project(u), self.route_code)
        return [LinearScan(u, apply, route_names(self.route_code), self.groups * self.group_dim)]
