"""The continuous, direction-aware scan of PlainMamba (arXiv 2403.17695, section 3.3).

Letters: B batch, H x W map of L = H * W pixels, C width of the block, D inner width, N states, R rank of the step size.
"""

import math
from typing import List, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from vssm_kernels.passes import run_linear
from vssm_kernels.tables import keep_tables

from ._state_space import StateSpaceMixer, init_linear, split_projection, state_matrix
from .linear import LinearScan, route_names
from .pruning import KeptTokens, gaps_along, gather_tokens, tokens_of_map, tokens_on_map
from .routes import CONTINUOUS, Route, encode_routes

__all__ = ["ContinuousSS2D", "snake_tables"]


def _snake(lines: int, length: int, device: torch.device) -> Tensor:
    """The place of each pixel of (lines, length) on a walk that turns at the end of every line."""
    line = torch.arange(lines, device=device).unsqueeze(1)
    place = torch.arange(length, device=device).unsqueeze(0)
    return line * length + torch.where(line % 2 == 0, place, length - 1 - place)


def _make_tables(height: int, width: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    rows = _snake(height, width, device)
    columns = _snake(width, height, device)
    last = height * width - 1
    steps = torch.stack([rows, last - rows, columns.t(), last - columns.t()], dim=2).flatten(0, 1)  # (L, 4)
    # The pixels in the order of their steps: a walk along the rows is its own inverse, one along the columns is
    # another map's.
    along = columns.flatten()
    along = along % height * width + along.div(height, rounding_mode="floor")
    order = torch.stack([rows.flatten(), rows.flatten().flip(0), along, along.flip(0)], dim=1)
    down = order.div(width, rounding_mode="floor").diff(dim=0)
    right = (order % width).diff(dim=0)
    moves = torch.where(right == 0, torch.where(down < 0, 3, 4), torch.where(right > 0, 1, 2))
    moves = torch.cat([torch.zeros_like(order[:1]), moves])
    return steps.flatten(), moves.gather(0, steps)


_kept_tables = keep_tables(_make_tables)


@torch.fx.wrap
def snake_tables(height: int, width: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Tell at which step each of the four routes of `CONTINUOUS` is at each pixel, and how it came there.

    Args:
        height: H.
        width: W.
        device: Where the tables are; they are made there, and kept.

    Returns:
        The steps (4 L,), route after route for each pixel; and the moves (L, 4): 0 where a route starts, 1 after a move
        to the right, 2 to the left, 3 up, 4 down. Both int64. Do not write to them.
    """
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        return _make_tables(height, width, device)
    else:
        return _kept_tables(height, width, device)


class ContinuousSS2D(StateSpaceMixer):
    """Four scans along snakes, whose neighbours in the sequence are neighbours on the map; B knows the last move.

    All scans share one state space, one projection and one convolution; each adds to B a learned vector for the move
    from the pixel before.

    As released, the step size, B and C of step t are those of pixel t in raster order, whatever pixel the input is read
    from at that step; the paper reads all of them along the route. The weights depend on it. The bias of the step size
    counts twice: in the projection, and again before the softplus.

    Args:
        dim: Width C of the input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width D as a multiple of C.
        dt_rank: Rank R of the step size; ceil(C / 16) when None.
        d_conv: Kernel size of the depth-wise convolution.
        align_projections: Read step size, B and C along the routes, too, as in the paper.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 7,
        align_projections: bool = False,
        A_init: str | float = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.d_inner = int(ssm_ratio * dim)
        self.align_projections = align_projections
        self.num_routes = len(CONTINUOUS)
        self.route_code: List[int] = encode_routes(CONTINUOUS)
        self.kept_code: List[int] = encode_routes((Route(), Route(reverse=True)))  # of tokens that stand along a snake
        inner, rank = self.d_inner, dt_rank or math.ceil(dim / 16)

        self.in_proj = nn.Linear(dim, 2 * inner, **dd)
        self.conv = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, **dd)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False, **dd)
        self.add_state_space(1, inner, d_state, rank, scan_float32=True, A_init=A_init, **dd)
        self.direction_Bs = nn.Parameter(torch.empty(5, d_state, **dd))
        self.out_proj = nn.Linear(inner, dim, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as the official training does: every matrix normal, steps at softplus(0)."""
        self.init_state_space(self.x_proj.weight)
        for layer in (self.in_proj, self.out_proj):
            init_linear(layer.weight)
            nn.init.zeros_(layer.bias)
        init_linear(self.x_proj.weight, self.dt_projs_weight, self.direction_Bs)
        self.dt_projs_bias.zero_()

    def state_space(self) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give those of all routes, which share them: A (4, D, N), D (4, D), 2 x bias (4, D), weight (4, D, R)."""
        A = state_matrix(self.A_logs).expand(self.num_routes, -1, -1)
        D, bias = self.Ds.expand(self.num_routes, -1), 2 * self.dt_projs_bias.expand(self.num_routes, -1)
        return A, D, bias, self.dt_projs_weight.expand(self.num_routes, -1, -1)

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve and activate: (B, H, W, D) to (B, H, W, D)."""
        return self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def project(self, u: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Project (B, H, W, D) to the low-rank step (B, H, W, 4, R), B and C (B, H, W, 4, N) of each route."""
        height, width = u.shape[1], u.shape[2]
        steps, moves = snake_tables(height, width, u.device)
        projected = self.x_proj(u) if torch.jit.is_scripting() else run_linear(self.x_proj, u)
        if self.align_projections:
            projected = projected.unsqueeze(3).expand(-1, -1, -1, self.num_routes, -1)
        else:
            # Where a route is at step t it finds what belongs to raster pixel t.
            projected = projected.flatten(1, 2).index_select(1, steps)
            projected = projected.unflatten(1, (height, width, self.num_routes))
        dt, B, C = split_projection(projected, self.dt_rank, self.d_state)
        moved = self.direction_Bs.to(B.dtype).index_select(0, moves.flatten())
        return dt, B + moved.unflatten(0, (height, width, self.num_routes)), C

    def mix(self, u: Tensor, merge: bool = True) -> Tensor:
        """Scan (B, H, W, D) to (B, H, W, D), or to each route's own result (B, H, W, 4, D) without `merge`."""
        dt, B, C = self.project(u)
        return self.scan(u, dt, B, C, self.route_code, merge=merge)

    def gated(self, x: Tensor) -> Tensor:
        """Give the input of the output projection: (B, H, W, C) to (B, H, W, D)."""
        xz = self.in_proj(x) if torch.jit.is_scripting() else run_linear(self.in_proj, x)
        x, z = xz.chunk(2, dim=-1)
        return self.mix(self.convolve(x)).to(x.dtype) * self.act(z)

    def forward(self, x: Tensor, kept: KeptTokens | None = None, outputs: List[Tensor] | None = None) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C), or the tokens that pruning has left, (B, L, C), to the same.

        Args:
            x: The map or tokens.
            kept: Which tokens they are; from `keep_tokens`.
            outputs: A list that is given what tells how much each token matters, (B, H * W or L, D): the gated result.
        """
        y = self.gated(x) if kept is None else self.gated_kept(x, kept)
        if outputs is not None:
            outputs.append(y.detach().flatten(1, -2))
        return self.out_proj(y) if torch.jit.is_scripting() else run_linear(self.out_proj, y)

    @torch.jit.ignore
    def keep_tokens(self, places: Tensor, height: int, width: int, decay: bool) -> KeptTokens:
        """Say which tokens pruning has left, and find them on the routes.

        Args:
            places: Increasing numbers in raster order, (B, L), int64.
            height: Rows of the whole map.
            width: Its columns.
            decay: Let the state decay over the gaps; False: carry it.
        """
        steps, moves = snake_tables(height, width, places.device)
        table = torch.cat([steps.view(-1, self.num_routes), moves], dim=1)
        found = table.index_select(0, places.flatten()).unflatten(0, places.shape)
        steps, moves = found[..., : self.num_routes : 2], found[..., self.num_routes :]  # a walk and the walk back
        order = steps.argsort(dim=1)
        along = [gather_tokens(moves[..., 2 * i : 2 * i + 2], order[..., i]) for i in range(2)]
        gaps = None
        if decay:
            gaps = torch.cat([gaps_along(x) for x in steps.gather(1, order).unbind(-1)], dim=-1)
        return KeptTokens(places, height, width, gaps, order, order.argsort(dim=1), torch.cat(along, dim=-1))

    def gated_kept(self, x: Tensor, kept: KeptTokens) -> Tensor:
        """Give the input of the output projection for the tokens that pruning has left: (B, L, C) to (B, L, D).

        The convolution sees the whole map, with zeros where tokens were pruned. Each route visits the tokens in the
        order that it has on that map, and the moves are those that it made into them there. Step size, B and C are, as
        released, those of the t-th token in raster order at step t.
        """
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = tokens_of_map(self.convolve(tokens_on_map(x, kept)), kept)
        projected = self.x_proj(u)
        order, ranks, moves = kept.order, kept.ranks, kept.moves
        assert order is not None and ranks is not None and moves is not None
        # Both walks in one batch: they share the state space.
        along, steps = [], []
        for i in range(2):
            along.append(gather_tokens(u, order[..., i]))
            if self.align_projections:
                read = gather_tokens(projected, order[..., i])
                steps.append(torch.stack([read, read], dim=2))
            else:
                steps.append(torch.stack([projected, projected.flip(1)], dim=2))  # read backwards on the way back
        dt, B, C = split_projection(torch.cat(steps).unsqueeze(1), self.dt_rank, self.d_state)
        moved = torch.cat([moves[..., :2], moves[..., 2:]]).unsqueeze(1)
        B = B + self.direction_Bs.to(B.dtype).index_select(0, moved.flatten()).view(B.shape)
        gaps = kept.gaps
        if gaps is not None:
            gaps = torch.cat([gaps[..., :2], gaps[..., 2:]])
        scanned = self.scan_kept(torch.cat(along).unsqueeze(1), dt, B, C, self.kept_code, gaps, sequences=(0, 2))
        rows, columns = scanned.view(2, x.shape[0], x.shape[1], self.d_inner).unbind()
        y = gather_tokens(rows, ranks[..., 0]) + gather_tokens(columns, ranks[..., 1])
        return y.to(x.dtype) * self.act(z)

    @torch.jit.ignore
    def paper_flops_offset(self, x: Tensor) -> int:
        """See `vssm.profiling.count`: the official code expands the step size once, not inside each of the scans."""
        return -(self.num_routes - 1) * math.prod(x.shape[1:-1]) * self.d_inner * self.dt_rank

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        u = self.convolve(self.in_proj(x)[..., : self.d_inner])
        apply = self.linear_part(*self.project(u), self.route_code)
        return [LinearScan(u, apply, route_names(self.route_code), self.d_inner)]
