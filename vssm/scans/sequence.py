"""The mixer of Mamba for sequences of tokens, in one direction (arXiv 2312.00752) or in both (Vim, arXiv 2401.09417).

Letters: B batch, L tokens, C width of the block, D inner width, K directions, N states, R rank of the step size.
"""

import math
from typing import Any, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.depthwise import depthwise_conv2d
from vssm_kernels.passes import run_linear

from ._state_space import StateSpaceMixer, inner_width, runs_in_one_call, split_projection
from .linear import LinearScan, route_names
from .pruning import KeptTokens, gaps_along
from .routes import Route, encode_routes

__all__ = ["SS1D"]


class SS1D(StateSpaceMixer):
    """1-D selective scan: project, convolve causally, scan, gate, project back.

    Both directions share the projections in and out and the gate; convolution, projection to the step size, B and C,
    and the state space are each direction's own. The backward direction sees the sequence from its end, so its
    convolution looks at later tokens.

    A sequence is a map of one row to the scan operator, so nothing is reversed or gathered here. Both causal
    convolutions are one depth-wise convolution over the tokens, twice as wide: the kernel of the forward direction is
    padded with zeros on the right, that of the backward one is reversed and padded on the left.

    Args:
        dim: Width C of the input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width D as a multiple of C.
        dt_rank: Rank R of the step size; ceil(C / 16) when None.
        d_conv: Taps of the causal convolution.
        conv_bias: Whether that convolution has a bias.
        bidirectional: Scan in both directions and add the results.
        halve: Divide that sum by two.
        out_proj: Project back; without it the result is the gated D, which then has to be C.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: Nothing projects back, and the inner width is another.
    """

    quant_weights = ("x_proj_weight",)

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 4,
        conv_bias: bool = True,
        bidirectional: bool = False,
        halve: bool = False,
        out_proj: bool = True,
        A_init: str | float = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.d_inner = inner_width(dim, ssm_ratio, out_proj)
        self.d_conv = d_conv
        self.halve = halve
        routes = (Route(), Route(reverse=True)) if bidirectional else (Route(),)
        self.num_directions = len(routes)
        self.route_code: List[int] = encode_routes(routes)
        inner, count, rank = self.d_inner, self.num_directions, dt_rank or math.ceil(dim / 16)

        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **dd)
        self.conv = nn.Conv1d(count * inner, count * inner, d_conv, groups=count * inner, bias=conv_bias, **dd)
        self.x_proj_weight = nn.Parameter(torch.empty(count, rank + 2 * d_state, inner, **dd))
        self.add_state_space(count, inner, d_state, rank, scan_float32=True, A_init=A_init, **dd)
        self.out_proj: Any = nn.Linear(inner, dim, bias=False, **dd) if out_proj else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as Mamba does: PyTorch's way for projections, log-uniform steps, A by `A_init`."""
        for layer in (self.in_proj, self.conv, self.out_proj):
            if not isinstance(layer, nn.Identity):
                layer.reset_parameters()
        self.init_state_space(self.x_proj_weight)

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve causally and activate: (B, L, D) to (B, 1, L, K, D)."""
        x = x.unsqueeze(1)
        past = self.d_conv - 1
        weight = self.conv.weight.unsqueeze(2)
        ahead = 0
        if self.num_directions == 2:
            forwards, backwards = weight.chunk(2)
            weight = torch.cat([F.pad(forwards, [0, past]), F.pad(backwards.flip(-1), [past, 0])])
            x = torch.cat([x, x], dim=-1)
            ahead = past
        x = x.permute(0, 3, 1, 2)
        if torch.jit.is_scripting():
            x = F.conv2d(x, weight, self.conv.bias, padding=[0, past], groups=self.num_directions * self.d_inner)
        else:
            x = depthwise_conv2d(x, weight, self.conv.bias, padding=[0, past])
        if ahead == 0:
            x = x[..., : x.shape[-1] - past]
        return F.silu(x).permute(0, 2, 3, 1).unflatten(-1, (self.num_directions, self.d_inner))

    def project(self, u: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Project (B, 1, L, K, D) to the low-rank step (B, 1, L, K, R), B and C (B, 1, L, K, N)."""
        projected = [F.linear(u[:, :, :, k], self.x_proj_weight[k]) for k in range(self.num_directions)]
        return split_projection(torch.stack(projected, dim=3), self.dt_rank, self.d_state)

    def mix(self, x: Tensor, merge: bool = True, gaps: Tensor | None = None) -> Tensor:
        """Convolve and scan.

        Args:
            x: (B, L, D).
            merge: Add the directions' results.
            gaps: See `scan_kept`.

        Returns:
            (B, L, D), or (B, L, K, D) without `merge`.
        """
        u = self.convolve(x)
        dt, B, C = self.project(u)
        return self.scan_kept(u, dt, B, C, self.route_code, gaps, merge=merge).squeeze(1)

    def branches(self, x: Tensor) -> Tensor:
        """Give what each direction adds to the input of the output projection: (B, L, C) to (B, L, K, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y = self.mix(x, merge=False).to(x.dtype) * F.silu(z).unsqueeze(2)
        return y * 0.5 if self.halve else y

    def runs_at_once(self, xz: Tensor) -> bool:
        """Tell whether `gated_at_once` stands for what is between the projections; see `runs_in_one_call`."""
        return runs_in_one_call(xz)

    def gated_at_once(self, xz: Tensor) -> Tensor:
        """Give the input of the output projection, halved as the sum is, by one operator: (B, L, 2 D) to (B, L, D)."""
        A, D, bias, weight = self.state_space()
        return torch.ops.vssm.mamba_inner(
            xz,
            self.conv.weight,
            self.conv.bias,
            self.x_proj_weight,
            weight,
            bias,
            A,
            D,
            scale=0.5 if self.halve else 1.0,
        )

    def forward(self, x: Tensor, kept: KeptTokens | None = None, outputs: List[Tensor] | None = None) -> Tensor:
        """Mix (B, L, C), or a map (B, H, W, C) in raster order.

        Args:
            x: The tokens.
            kept: Which they are, where pruning has left only some; from `keep_tokens`.
            outputs: A list that is given what tells how much each token matters, (B, L, D): the gated result of the
                last direction, as ToP-ViM has it (arXiv 2409.18962).
        """
        shape = x.shape
        x = x.flatten(1, -2)
        xz = self.in_proj(x) if torch.jit.is_scripting() else run_linear(self.in_proj, x)
        gaps = kept.gaps if kept is not None else None
        if outputs is None and gaps is None and self.runs_at_once(xz):
            y = self.gated_at_once(xz)
            y = self.out_proj(y) if torch.jit.is_scripting() else run_linear(self.out_proj, y)
            return y.view(shape)
        x, z = xz.chunk(2, dim=-1)
        gate = F.silu(z)
        if outputs is None:
            y = self.mix(x, gaps=gaps)
        else:
            y = self.mix(x, merge=False, gaps=gaps)
            outputs.append((y[:, :, -1].to(gate.dtype) * gate).detach())
            y = y.sum(2)
        y = y.to(x.dtype) * gate
        y = self.out_proj(y) if torch.jit.is_scripting() else run_linear(self.out_proj, y)
        return (y * 0.5 if self.halve else y).view(shape)

    @torch.jit.ignore
    def keep_tokens(self, places: Tensor, height: int, width: int, decay: bool) -> KeptTokens:
        """Say which tokens pruning has left.

        Args:
            places: Increasing numbers on the whole sequence, (B, L), int64.
            height: Rows of the map that the sequence was.
            width: Its columns.
            decay: Let the state decay over the gaps; False: carry it.
        """
        gaps = gaps_along(places)[..., : self.num_directions] if decay else None
        return KeptTokens(places, height, width, gaps)

    @torch.jit.ignore
    def paper_flops_offset(self, x: Tensor) -> int:
        """See `vssm.profiling.count`: the zeros around the taps of the two convolutions, made one, are no work."""
        tokens = math.prod(x.shape[1:-1])
        zeros = self.d_conv - 1 if self.num_directions == 2 else 0
        return -tokens * self.num_directions * self.d_inner * zeros

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`. A sequence is a map of one row.

        Args:
            x: The input of the mixer for one image, (1, L, C) or (1, H, W, C).
        """
        x, _ = self.in_proj(x.flatten(1, -2)).chunk(2, dim=-1)
        u = self.convolve(x)
        apply = self.linear_part(*self.project(u), self.route_code)
        return [LinearScan(u, apply, route_names(self.route_code), self.d_inner)]
