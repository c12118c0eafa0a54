"""Cross-scan mixers: the SS2D of VMamba, its cascade form and the SSD form (arXiv 2401.10166, sections 4.2 and 5).

Letters: B batch, H x W map, C width of the block, D inner width, K routes, N states, R rank of the step size.
"""

import math
from collections.abc import Callable
from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.passes import conv_pass, norm_pass, run_linear
from vssm_kernels.routes import map_rank

from ._state_space import (
    StateSpaceMixer,
    at_least_float32,
    half_life,
    init_linear,
    init_projection,
    init_state_matrix,
    inner_width,
    no_maps,
    one_more,
    split_projection,
    state_matrix,
)
from .linear import LinearScan, repeat_batch, route_names
from .routes import CROSS, Route, encode_routes

__all__ = ["SS2D", "SSD2D", "CascadeSS2D", "CrossScan"]


class _ProjectedScan(StateSpaceMixer):
    """Scan a map along single routes; the step size, B and C are projections of it, by `x_proj`."""

    def add_scan(
        self,
        channels: int,
        d_state: int,
        dt_rank: int,
        routes: tuple,
        scan_float32: bool,
        A_init: str | float,
        **dd,
    ) -> None:
        """Register the projection and the parameters of the state space."""
        self.num_routes = len(routes)
        self.route_code: List[int] = encode_routes(routes)
        self.x_proj = nn.Linear(channels, self.num_routes * (dt_rank + 2 * d_state), bias=False, **dd)
        self.add_state_space(self.num_routes, channels, d_state, dt_rank, scan_float32, A_init, **dd)

    def init_scan(self) -> None:
        """Start the projection and the parameters of the state space."""
        self.init_state_space(self.x_proj.weight)

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Project (B, H, W, D) to the low-rank step (B, H, W, K, R), B and C (B, H, W, K, N)."""
        projected = self.x_proj(x) if torch.jit.is_scripting() else run_linear(self.x_proj, x)
        projected = projected.unflatten(-1, (self.num_routes, self.dt_rank + 2 * self.d_state))
        return split_projection(projected, self.dt_rank, self.d_state)

    def mix(self, x: Tensor) -> Tensor:
        """Scan and merge: (B, H, W, D) to (B, H, W, D)."""
        dt, B, C = self.project(x)
        # Half in, float out: the sum over routes leaves the half range before a norm brings it back.
        return self.scan(x, dt, B, C, self.route_code, out_dtype=self.Ds.dtype)

    def scans_of(self, u: Tensor) -> List[LinearScan]:
        """Say how the scan of a map (1, H, W, D) is linear."""
        dt, B, C = self.project(u)
        apply = self.linear_part(dt, B, C, self.route_code)
        return [LinearScan(u, apply, route_names(self.route_code), self.scan_channels)]


class CrossScan(_ProjectedScan):
    """The scan of an `SS2D` alone, without projections, convolution and norm: (B, H, W, D) to (B, H, W, D).

    Args:
        dim: Channels D.
        d_state: States N per channel.
        dt_rank: Rank R of the step size; ceil(D / 16) when None.
        routes: Scan pattern of single routes, see `vssm.scans.routes`.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

    A starts at -1, a decay of exp(-step), as in SegMAN.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        dt_rank: int | None = None,
        routes: tuple = CROSS,
        A_init: str | float = -1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        rank = dt_rank or math.ceil(dim / 16)
        self.add_scan(dim, d_state, rank, routes, False, A_init, device=device, dtype=dtype)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as the official code does."""
        self.init_scan()

    def forward(self, x: Tensor) -> Tensor:
        """Scan (B, H, W, D); the sums of the routes are in float32 or better under autocast."""
        return self.mix(x)


class SS2D(_ProjectedScan):
    """2-D selective scan: project, convolve depth-wise, scan along the routes, normalise, project back.

    The step size, B and C are point-wise projections of the map, so they are computed once, not once a route.

    Args:
        dim: Width C of the input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width D as a multiple of C.
        dt_rank: Rank R of the step size; ceil(C / 16) when None.
        d_conv: Kernel size of the depth-wise convolution; below 2 there is none.
        conv_bias: Whether that convolution has a bias.
        act_layer: Activation after the convolution, and of the gate.
        gate: Multiply the result by an activated second projection of the input (the z of Mamba).
        routes: Scan pattern of single routes, see `vssm.scans.routes`.
        scan_float32: Give the result of a scan in float32 or better. It is computed in that whatever the inputs are.
        out_proj: Project back; without it the result is the D channels before, which then have to be C.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: The routes are over maps of another rank; or nothing projects back, and the inner width is another.
    """

    spatial_dims = 2

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
        out_proj: bool = True,
        A_init: str | float = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        rank = map_rank(encode_routes(routes))
        if rank != self.spatial_dims:
            name = type(self).__name__
            raise ValueError(f"{name}: the routes must be over {self.spatial_dims} dimensions, got routes over {rank}")
        self.d_inner = inner_width(dim, ssm_ratio, out_proj)
        self.gate = gate
        inner = self.d_inner

        self.in_proj = nn.Linear(dim, 2 * inner if gate else inner, bias=False, **dd)
        self.conv: nn.Module
        if d_conv > 1:
            conv = nn.Conv2d if self.spatial_dims == 2 else nn.Conv3d
            self.conv = conv(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias, **dd)
        else:
            self.conv = nn.Identity()
        self.act = act_layer()
        self.add_scan(inner, d_state, dt_rank or math.ceil(dim / 16), routes, scan_float32, A_init, **dd)
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj: nn.Module = nn.Linear(inner, dim, bias=False, **dd) if out_proj else nn.Identity()
        SS2D.init_weights(self)  # a subclass that extends it has made only these parameters yet

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as the official code does (log-uniform steps, A by `A_init`)."""
        init_linear(*(layer.weight for layer in (self.in_proj, self.out_proj) if isinstance(layer, nn.Linear)))
        self.init_scan()

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve and activate: (B, H, W, D) to (B, H, W, D)."""
        if not torch.jit.is_scripting():
            y = conv_pass(self.conv, x, self.act)
            if y is not None:
                return y
        return self.act(self.conv(x.movedim(-1, 1)).movedim(1, -1))

    def core(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Do what stands between the projections: (B, H, W, D) to (B, H, W, D).

        Args:
            x: What is scanned.
            z: What gates the result, before its activation; None: no gate.
        """
        y = self.mix(self.convolve(x))
        if not torch.jit.is_scripting():
            gated = norm_pass(self.out_norm, y, x.dtype, z, self.act)
            if gated is not None:
                return gated
        y = self.out_norm(y).to(x.dtype)
        return y if z is None else y * self.act(z)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C)."""
        x = self.in_proj(x) if torch.jit.is_scripting() else run_linear(self.in_proj, x)
        if self.gate:
            x, z = x.chunk(2, dim=-1)
            x = self.core(x, z)
        else:
            x = self.core(x, None)
        return self.out_proj(x) if torch.jit.is_scripting() else run_linear(self.out_proj, x)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        return self.scans_of(self.convolve(self.in_proj(x)[..., : self.d_inner]))


class CascadeSS2D(SS2D):
    """Rows, then columns: every row is a sequence of its own, scanned both ways; then every column of the result.

    Routes 0 and 1 hold the parameters of the rows, 2 and 3 those of the columns. As in the official code, the backward
    half is reversed before its scan and its result is not reversed back before the sum.

    Args:
        dim: Width C of the input and output.
        kwargs: Further arguments of `SS2D`.
    """

    def __init__(self, dim: int, **kwargs):
        super().__init__(dim, **kwargs)
        self.row_code: List[int] = encode_routes((Route(), Route()))  # two sequences, both along the row

    def both_ways(self, x: Tensor) -> Tensor:
        """Lay S sequences of length L out as B S maps of one row, each forwards and backwards.

        (B, S, L, D) to (B S, 1, L, 2, D).
        """
        x = x.flatten(0, 1)
        return torch.stack([x, x.flip(1)], dim=2).unsqueeze(1)

    def project_lines(self, x: Tensor, first: int) -> Tuple[Tensor, Tensor, Tensor]:
        """Project normalised sequences (B, S, L, D) with the parameters of two routes, laid out as `both_ways` does.

        Args:
            x: The sequences.
            first: The first of the two routes.

        Returns:
            The low-rank step (B S, 1, L, 2, R), B and C (B S, 1, L, 2, N).
        """
        dt, B, C = self.project(x)
        dt, B, C = dt.flatten(0, 1), B.flatten(0, 1), C.flatten(0, 1)
        dt = torch.stack([dt[:, :, first], dt[:, :, first + 1].flip(1)], dim=2).unsqueeze(1)
        B = torch.stack([B[:, :, first], B[:, :, first + 1].flip(1)], dim=2).unsqueeze(1)
        C = torch.stack([C[:, :, first], C[:, :, first + 1].flip(1)], dim=2).unsqueeze(1)
        return dt, B, C

    def scan_lines(self, x: Tensor, first: int) -> Tensor:
        """Scan normalised sequences (B, S, L, D) both ways with the parameters of two routes: (B, S, L, D)."""
        dt, B, C = self.project_lines(x, first)
        out_dtype = self.out_norm.weight.dtype
        y = self.scan(self.both_ways(x), dt, B, C, self.row_code, out_dtype=out_dtype, sequences=(first, first + 2))
        return y.view(x.shape[0], x.shape[1], x.shape[2], self.d_inner)

    def mix(self, x: Tensor) -> Tensor:
        """Scan rows, then columns: (B, H, W, D) to (B, H, W, D)."""
        rows = self.scan_lines(F.layer_norm(x, (self.d_inner,)), 0)
        return self.scan_lines(F.layer_norm(rows.transpose(1, 2), (self.d_inner,)), 2).transpose(1, 2)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear: rows and then columns as one scan; see `vssm.scans.linear`.

        The deviation by which the norm between them divides is held fixed too; the mean that it subtracts is left out.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        u = F.layer_norm(self.convolve(self.in_proj(x)[..., : self.d_inner]), (self.d_inner,))
        scanned = self.scan_lines(u, 0)
        deviation = (scanned.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        columns = F.layer_norm(scanned.transpose(1, 2), (self.d_inner,))
        over_rows = self.linear_part(*self.project_lines(u, 0), self.row_code, (0, 2))
        over_columns = self.linear_part(*self.project_lines(columns, 2), self.row_code, (2, 4))

        def lines(scan: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            return scan(self.both_ways(x))[:, 0].sum(2).unflatten(0, x.shape[:2])

        def apply(u: Tensor) -> Tensor:
            y = lines(over_rows, u) / deviation
            return lines(over_columns, y.transpose(1, 2)).transpose(1, 2).unsqueeze(3)

        return [LinearScan(u, apply, ("rows, then columns",), self.d_inner)]


class SSD2D(nn.Module):
    """SS2D with the state-space dual of Mamba-2: one scalar decay a head, many states (the m2 variants of VMamba).

    Args:
        dim: Width C of the input and output.
        d_state: States N.
        ssm_ratio: Inner width D as a multiple of C.
        dt_rank: Heads M, which must divide the inner width; ceil(C / 16) when None.
        d_conv: Kernel size of the depth-wise convolution.
        conv_bias: Whether that convolution has a bias.
        act_layer: Activation after the convolution.
        routes: Scan pattern of single routes of one length, see `vssm.scans.routes`.
        chunk_size: Positions that the operator computes at once.
        A_init: How A starts, see `vssm.scans.init_state_matrix`; there is one A a head.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: The heads do not divide the inner width.
    """

    quant_points = ("u", "dt", "B", "C")

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
        A_init: str | float = "real",
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
        self.head_dim = self.d_inner // self.num_heads
        self.chunk_size = chunk_size
        self.A_init = A_init
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
        """Start the parameters as the official "v2" initialisation of the m2 variants does."""
        init_linear(self.in_proj.weight, self.out_proj.weight)
        init_projection(self.x_proj.weight)
        self.dt_projs_bias.uniform_(0, 0.1)
        init_state_matrix(self.A_logs.unsqueeze(-1), self.A_init)  # one A a head
        self.Ds.fill_(1)

    def half_lives(self) -> Tensor:
        """Give after how many positions half of each head's state is left at the step of an input of zeros, (K, M)."""
        return half_life(F.softplus(at_least_float32(self.dt_projs_bias)) * state_matrix(self.A_logs))

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Project (B, H, W, D) to the steps (B, L, K, M), B and C (B, L, K, N), along their routes."""
        projected = self.x_proj(x) if torch.jit.is_scripting() else run_linear(self.x_proj, x)
        projected = projected.unflatten(-1, (self.num_routes, self.num_heads + 2 * self.d_state))
        along = torch.ops.vssm.read_map(projected, routes=self.route_code, per_sequence=True)
        return split_projection(along, self.num_heads, self.d_state)

    def scan(self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, merge: bool = True, skip: bool = True) -> Tensor:
        """Scan along the routes.

        Args:
            u: The input (B, H, W, D).
            dt: What `project` gave, as B and C.
            B: See dt.
            C: See dt.
            merge: Sum the results of all routes.
            skip: Add the skip D u.

        Returns:
            (B, H, W, D), or one result for each route, (B, H, W, K, D), if they are not merged.
        """
        along = torch.ops.vssm.read_map(u, routes=self.route_code)
        y = torch.ops.vssm.ssd(
            along.unflatten(-1, (self.num_heads, self.head_dim)).flatten(2, 3),
            dt=dt.flatten(2),
            A=state_matrix(self.A_logs).flatten(),
            B=B,
            C=C,
            D=self.Ds.flatten(0, 1) if skip else None,
            dt_bias=self.dt_projs_bias.flatten(),
            dt_softplus=True,
            chunk_size=self.chunk_size,
        )
        y = y.unflatten(2, (self.num_routes, self.num_heads)).flatten(3)  # (B, L, K, D)
        height, width = u.shape[1], u.shape[2]
        return torch.ops.vssm.write_map(y, routes=self.route_code, height=height, width=width, merge=merge)

    def mix(self, x: Tensor) -> Tensor:
        """Scan and merge: (B, H, W, D) to (B, H, W, D)."""
        empty = no_maps(x)
        if empty:
            x = one_more(x)
        dt, B, C = self.project(x)
        y = self.scan(x, dt, B, C)
        return y[:0] if empty else y

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve and activate: (B, H, W, D) to (B, H, W, D)."""
        return self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C)."""
        x = self.in_proj(x) if torch.jit.is_scripting() else run_linear(self.in_proj, x)
        x = self.convolve(x)
        y = self.out_norm(self.mix(x)).to(x.dtype)
        return self.out_proj(y) if torch.jit.is_scripting() else run_linear(self.out_proj, y)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        source = self.convolve(self.in_proj(x))
        held = self.project(source)

        def apply(u: Tensor) -> Tensor:
            dt, B, C = (repeat_batch(x, len(u)) for x in held)
            return self.scan(u, dt, B, C, merge=False, skip=False)

        return [LinearScan(source, apply, route_names(self.route_code), self.d_inner)]
