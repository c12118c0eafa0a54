"""Cross-scan mixers: the SS2D of VMamba, its cascade form and the SSD form (arXiv 2401.10166, sections 4.2 and 5).

Letters: B batch, H x W map, C width of the block, D inner width, K routes, N states, R rank of the step size.
"""

import math
from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor

from ._parameters import at_least_float32, init_state_space
from .routes import CROSS, Route, encode_routes, read_route, write_route

__all__ = ["SS2D", "SSD2D", "CascadeSS2D"]

torch.fx.wrap("at_least_float32")


class SS2D(nn.Module):
    """2-D selective scan: project, convolve depth-wise, scan along the routes, normalise, project back.

    The step size, B and C are point-wise projections of the map, so they are computed once, not once a route.

    Args:
        dim: width C of the input and output.
        d_state: states N per channel.
        ssm_ratio: inner width D as a multiple of C.
        dt_rank: rank R of the step size; ceil(C / 16) when None.
        d_conv: kernel size of the depth-wise convolution; below 2 there is none.
        conv_bias: whether that convolution has a bias.
        act_layer: activation after the convolution, and of the gate.
        gate: multiply the result by an activated second projection of the input (the z of Mamba).
        routes: scan pattern of single routes, see `vssm.scans.routes`.
        scan_float32: scan in float32 under autocast too; else in the dtype that autocast chose, summed in float32.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        conv_bias: bool = False,
        act_layer: type[nn.Module] = nn.SiLU,
        gate: bool = False,
        routes: tuple = CROSS,
        scan_float32: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.d_inner = int(ssm_ratio * dim)
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.gate = gate
        self.scan_float32 = scan_float32
        self.num_routes = len(routes)
        self.route_code: List[int] = encode_routes(routes)
        inner, count = self.d_inner, self.num_routes

        self.in_proj = nn.Linear(dim, 2 * inner if gate else inner, bias=False, **dd)
        if d_conv > 1:
            self.conv = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias, **dd)
        else:
            self.conv = nn.Identity()
        self.act = act_layer()
        self.x_proj = nn.Linear(inner, count * (self.dt_rank + 2 * d_state), bias=False, **dd)
        self.dt_projs_weight = nn.Parameter(torch.empty(count, inner, self.dt_rank, **dd))
        self.dt_projs_bias = nn.Parameter(torch.empty(count, inner, **dd))
        self.A_logs = nn.Parameter(torch.empty(count * inner, d_state, **dd))
        self.Ds = nn.Parameter(torch.empty(count * inner, **dd))
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        SS2D.init_weights(self)  # a subclass that extends it has made only these parameters yet

    @torch.no_grad()
    def init_weights(self) -> None:
        """The initialisation of the official code (S4D-real A, log-uniform steps)."""
        for linear in (self.in_proj, self.out_proj):
            trunc_normal_(linear.weight, std=0.02)
        init_state_space(self.x_proj.weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds)

    def _scan(
        self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, first: int, code: List[int], merge: bool = True
    ) -> Tensor:
        """Scan (B, H, W, [K,] D) with the parameters of the K sequences in `code`, starting at sequence `first`.

        (B, H, W, D), or (B, H, W, routes, D) with merge=False.
        """
        end = first + dt.shape[3]
        A = -torch.exp(at_least_float32(self.A_logs)).unflatten(0, (-1, self.d_inner))[first:end]
        D = self.Ds.unflatten(0, (-1, self.d_inner))[first:end]
        bias, weight = self.dt_projs_bias[first:end], self.dt_projs_weight[first:end]
        if self.scan_float32:
            u, dt, B, C = at_least_float32(u), at_least_float32(dt), at_least_float32(B), at_least_float32(C)
        # The op itself rather than vssm_kernels.selective_scan_2d: TorchScript and FX see one node.
        # Half in, float out: the sum over routes leaves the half range before out_norm brings it back.
        out_dtype = self.out_norm.weight.dtype
        return torch.ops.vssm.selective_scan_2d(u, dt, A, B, C, D, bias, weight, code, True, merge, out_dtype, "auto")

    def _project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, D) to the low-rank step (B, H, W, K, R), B and C (B, H, W, K, N)."""
        projected = self.x_proj(x).unflatten(-1, (self.num_routes, self.dt_rank + 2 * self.d_state))
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return dt, B, C

    def mix(self, x: Tensor) -> Tensor:
        """Scan and merge: (B, H, W, D) to (B, H, W, D)."""
        dt, B, C = self._project(x)
        return self._scan(x, dt, B, C, 0, self.route_code)

    def core(self, x: Tensor) -> Tensor:
        """What stands between the projections: (B, H, W, D) to (B, H, W, D)."""
        x = self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.out_norm(self.mix(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = self.in_proj(x)
        z = x
        if self.gate:
            x, z = x.chunk(2, dim=-1)
        y = self.core(x).to(x.dtype)
        if self.gate:
            y = y * self.act(z)
        return self.out_proj(y)


class CascadeSS2D(SS2D):
    """Rows, then columns: every row is a sequence of its own, scanned both ways; then every column of the result.

    Routes 0 and 1 hold the parameters of the rows, 2 and 3 those of the columns. As in the official code, the backward
    half is reversed before its scan and its result is not reversed back before the sum.
    """

    def __init__(self, dim: int, **kwargs):
        super().__init__(dim, **kwargs)
        self.row_code: List[int] = encode_routes((Route(), Route()))  # two sequences, both along the row

    def _both_ways(self, x: Tensor, first: int) -> Tensor:
        """(B, S, L, D), S sequences of length L, to the sum of both directions (B, S, L, D)."""
        x = F.layer_norm(x, (self.d_inner,))
        dt, B, C = self._project(x)
        batch = x.shape[0]
        length = x.shape[2]
        # (B, S, L, ...) as B*S maps of one row
        u, dt, B, C = x.flatten(0, 1), dt.flatten(0, 1), B.flatten(0, 1), C.flatten(0, 1)
        u = torch.stack([u, u.flip(1)], dim=2)
        dt = torch.stack([dt[:, :, first], dt[:, :, first + 1].flip(1)], dim=2)
        B = torch.stack([B[:, :, first], B[:, :, first + 1].flip(1)], dim=2)
        C = torch.stack([C[:, :, first], C[:, :, first + 1].flip(1)], dim=2)
        y = self._scan(u.unsqueeze(1), dt.unsqueeze(1), B.unsqueeze(1), C.unsqueeze(1), first, self.row_code)
        return y.view(batch, -1, length, self.d_inner)

    def mix(self, x: Tensor) -> Tensor:
        """Scan rows, then columns: (B, H, W, D) to (B, H, W, D)."""
        rows = self._both_ways(x, 0)
        return self._both_ways(rows.transpose(1, 2), 2).transpose(1, 2)


class SSD2D(nn.Module):
    """SS2D with the state-space dual of Mamba-2: one scalar decay a head, many states (the m2 variants of VMamba).

    Args: as `SS2D`; the inner width is split into `dt_rank` heads, which must divide it.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        ssm_ratio: float = 1.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        conv_bias: bool = False,
        act_layer: type[nn.Module] = nn.GELU,
        routes: tuple = CROSS,
        chunk_size: int = 64,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.d_inner = int(ssm_ratio * dim)
        self.d_state = d_state
        self.num_heads = dt_rank or math.ceil(dim / 16)
        if self.d_inner % self.num_heads:
            raise ValueError(f"SSD2D: the inner width {self.d_inner} is not divisible by {self.num_heads} heads")
        if any(route.path != "raster" or any(route.mirror) for route in routes):
            raise ValueError("SSD2D walks raster routes only, without a mirror")
        self.head_dim = self.d_inner // self.num_heads
        self.chunk_size = chunk_size
        self.num_routes = len(routes)
        self.route_code: List[int] = encode_routes(routes)
        inner, count, heads = self.d_inner, self.num_routes, self.num_heads

        self.in_proj = nn.Linear(dim, inner, bias=False, **dd)
        self.conv = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias, **dd)
        self.act = act_layer()
        self.x_proj = nn.Linear(inner, count * (heads + 2 * d_state), bias=False, **dd)
        self.dt_projs_bias = nn.Parameter(torch.empty(count, heads, **dd))
        self.A_logs = nn.Parameter(torch.empty(count, heads, **dd))
        self.Ds = nn.Parameter(torch.empty(count, heads, self.head_dim, **dd))
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The official "v2" initialisation of the m2 variants."""
        for linear in (self.in_proj, self.out_proj):
            trunc_normal_(linear.weight, std=0.02)
        bound = self.d_inner**-0.5
        self.x_proj.weight.uniform_(-bound, bound)
        self.dt_projs_bias.uniform_(0, 0.1)
        self.A_logs.zero_()
        self.Ds.fill_(1)

    def mix(self, x: Tensor) -> Tensor:
        """Scan and merge: (B, H, W, D) to (B, H, W, D)."""
        height = x.shape[1]
        width = x.shape[2]
        projected = self.x_proj(x).unflatten(-1, (self.num_routes, self.num_heads + 2 * self.d_state))
        inputs: List[Tensor] = []
        steps: List[Tensor] = []
        size = len(self.route_code) // self.num_routes
        for k in range(self.num_routes):
            code = self.route_code[size * k : size * (k + 1)]
            inputs.append(read_route(x, code))
            steps.append(read_route(projected[:, :, :, k], code))
        dt, B, C = torch.stack(steps, dim=2).split([self.num_heads, self.d_state, self.d_state], dim=-1)
        u = torch.stack(inputs, dim=2).unflatten(-1, (self.num_heads, self.head_dim)).flatten(2, 3)
        A = -torch.exp(at_least_float32(self.A_logs)).flatten()
        D, bias = self.Ds.flatten(0, 1), self.dt_projs_bias.flatten()
        y = torch.ops.vssm.ssd(u, dt.flatten(2), A, B, C, D, bias, True, self.chunk_size, "auto")
        y = y.unflatten(2, (self.num_routes, self.num_heads)).flatten(3)  # (B, L, K, D)
        merged = write_route(y[:, :, 0], self.route_code[:size], height, width)
        for k in range(1, self.num_routes):
            code = self.route_code[size * k : size * (k + 1)]
            merged = merged + write_route(y[:, :, k], code, height, width)
        return merged

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = self.act(self.conv(self.in_proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        y = self.out_norm(self.mix(x)).to(x.dtype)
        return self.out_proj(y)
