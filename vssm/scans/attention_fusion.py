"""A2Mamba's mixer MASS: attention in windows of two dilations, whose weights also fuse the states of a scan.

arXiv 2507.16624, section 3. Letters: B batch, H x W map, C width, n heads, E channels a head.
"""

from typing import Any, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor

from vssm_kernels import keeps_weights
from vssm_kernels.depthwise import DepthwiseConv2d
from vssm_kernels.passes import attention_pass, run_linear
from vssm_kernels.watch import unwatched

from ._state_space import at_least_float32, outside_autocast
from .cross import CrossScan
from .linear import LinearScan, repeat_batch
from .map_attention import MapAttention
from .routes import Route

__all__ = ["AttentionFusionSS2D", "largest_dilation"]

torch.fx.wrap("at_least_float32")
torch.fx.wrap("across_heads")
torch.fx.wrap("largest_dilation")
torch.fx.wrap("worth_keeping")


def largest_dilation(height: int, width: int, window: int) -> List[int]:
    """Give the dilation of the second half of the heads: the largest that keeps the window on the map, up to `window`.

    On an axis shorter than the window it is 1; the official code has no answer there.
    """
    if torch.jit.is_scripting():
        return [max(1, min(height // window, window)), max(1, min(width // window, window))]
    else:  # TorchScript compiles one of the two
        # The tracer of TorchScript has tensors for sizes.
        sizes: List[Any] = [size if isinstance(size, torch.SymInt) else int(size) for size in (height, width)]
        return [torch.sym_max(1, torch.sym_min(size // window, window)) for size in sizes]


def worth_keeping(q: Tensor, window: List[int], dilation: List[int]) -> bool:
    """Tell whether the weights are kept for the states; a compiled, exported or scripted model computes them anew."""
    if torch.jit.is_scripting():
        return False
    else:
        return keeps_weights(q, window, dilation)


def no_weights(q: Any, keep: bool) -> Tensor | None:
    """Give what the op gives where no weights are kept, without calling it; None where something watches."""
    if type(q) is not Tensor or keep or not unwatched():
        return None
    return q.new_empty(q.shape[0], 0, dtype=at_least_float32(q[:0]).dtype)


def across_heads(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mix the heads of (B, H, W, n, E), all channels alike, by a matrix (n, n); autocast does not lower it.

    TorchScript cannot leave autocast: a scripted model should not run under a float16 one.
    """
    weight, bias = weight.to(states.dtype), bias.to(states.dtype)
    if torch.jit.is_scripting():
        return F.linear(states.transpose(-1, -2), weight, bias).transpose(-1, -2)
    else:
        with outside_autocast(states):
            return F.linear(states.transpose(-1, -2), weight, bias).transpose(-1, -2)


class FusedStates(CrossScan):
    """The scan of A2Mamba: along the rows, one state a channel, with what mixes the states of the heads.

    Args:
        dim: Channels C.
        num_heads: Heads n.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, num_heads: int, A_init: str | float = -1.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, routes=(Route(),), A_init=A_init, **dd)
        self.conv = DepthwiseConv2d(dim, 5, padding=2, **dd)
        self.act = nn.SiLU()
        self.fusion = nn.Linear(num_heads, num_heads, **dd)

    def convolve(self, x: Tensor) -> Tensor:
        """Make the input of the scan, (B, H, W, C) to the same."""
        return self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def states(self, u: Tensor) -> Tuple[Tensor, Tensor]:
        """Scan (B, H, W, C): the states (B, H, W, C), in float32 or better, and what reads them, (B, H, W, 1)."""
        dt, B, C = self.project(u)
        # They are not normalised, and are summed before they are read.
        out_dtype = at_least_float32(self.Ds).dtype
        return self.scan(u, dt, B, None, self.route_code, skip=False, out_dtype=out_dtype), C[:, :, :, 0]


class AttentionFusionSS2D(MapAttention):
    """Attention in windows, then a scan whose states are summed by the same weights; gated.

    The first half of the heads has windows without dilation, o1 = attention(v1); the second half has a dilation that
    follows from the size of the map, o2 = attention(o1 + v2). Of u = SiLU(convolution(o1 | o2)) a scan along the rows
    gives the states; the weights of both halves sum them over their windows, and a matrix mixes the heads. With a table
    among all pixels, y = attention(o1 | o2) with the same queries and keys stands in the place of the scan. The result
    is the projection of norm((norm(y) + lepe) * gate), where lepe is a depth-wise convolution of the values.

    Args:
        dim: Width C.
        num_heads: Heads n, an even number; E = C / n must be divisible by 4.
        window: Side of the window, odd.
        bias: Add a learned bias for each distance to the scores; both halves share one table.
        pixels: Of the map that the table among all pixels is made for; 0 for a scan in its place. Other maps resize it.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: The heads do not fit the width, or are an odd number.

    (B, H, W, C) to the same, of any size; see `vssm_kernels.neighborhood_attention` for maps smaller than the window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        bias: bool = True,
        pixels: int = 0,
        A_init: str | float = -1.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if num_heads % 2:
            raise ValueError(f"the heads come in two halves, so their number must be even, got {num_heads}")
        super().__init__(dim, num_heads, window, num_heads // 2 if bias else None, pixels if bias else 0, **dd)
        self.gate = nn.Linear(dim, dim, **dd)
        self.gate_norm = BatchNormAct2d(dim, act_layer=nn.SiLU, **dd)
        self.ssm = None if pixels else FusedStates(dim, num_heads, A_init, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.out_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.init_weights()

    def weigh(self, q: Tensor, k: Tensor, dilation: List[int]) -> Tensor:
        """Give the weights of half of the heads, for `apply_weights`."""
        keep = self.ssm is not None and worth_keeping(q, [self.window, self.window], dilation)
        window = [self.window, self.window]
        if not torch.jit.is_scripting():
            none = no_weights(q, keep)
            if none is not None:
                return none
        return torch.ops.vssm.neighborhood_weights(q, k, window, dilation, bias=self.rpb, keep=keep)

    def apply_weights(self, weights: Tensor, q: Tensor, k: Tensor, v: Tensor, dilation: List[int]) -> Tensor:
        """Sum (B, H, W, n / 2, E) over the windows."""
        window = [self.window, self.window]
        if not torch.jit.is_scripting():
            y = attention_pass(q, k, v, window, dilation, self.rpb, weights)
            if y is not None:
                return y
        return torch.ops.vssm.neighborhood_sum(weights, q, k, v, window, dilation, bias=self.rpb)

    def attend_in_windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Attend with both halves of the heads, (B, H, W, n, E) to the same; and the weights of both."""
        (q1, q2), (k1, k2), (v1, v2) = q.chunk(2, dim=3), k.chunk(2, dim=3), v.chunk(2, dim=3)
        dilation = largest_dilation(q.shape[1], q.shape[2], self.window)
        weights1, weights2 = self.weigh(q1, k1, [1, 1]), self.weigh(q2, k2, dilation)
        o1 = self.apply_weights(weights1, q1, k1, v1, [1, 1])
        o2 = self.apply_weights(weights2, q2, k2, o1 + v2, dilation)
        return torch.cat([o1, o2], dim=3), weights1, weights2

    def fuse_states(self, states: Tensor, q: Tensor, k: Tensor, weights1: Tensor, weights2: Tensor) -> Tensor:
        """Sum the states (B, H, W, C) over the windows, half of the heads each."""
        (q1, q2), (k1, k2) = q.chunk(2, dim=3), k.chunk(2, dim=3)
        first, second = states.unflatten(-1, (self.num_heads, -1)).chunk(2, dim=3)
        dilation = largest_dilation(q.shape[1], q.shape[2], self.window)
        first = self.apply_weights(weights1, q1, k1, first, [1, 1])
        second = self.apply_weights(weights2, q2, k2, second, dilation)
        return torch.cat([first, second], dim=3)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C)."""
        gate = self.gate(x) if torch.jit.is_scripting() else run_linear(self.gate, x)
        gate = self.gate_norm(gate.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        q, k, v, lepe = self.project(x)
        o, weights1, weights2 = self.attend_in_windows(q, k, v)
        if self.ssm is not None:
            u = self.ssm.convolve(o.flatten(3))
            states, reader = self.ssm.states(u)
            states = self.fuse_states(states, q, k, weights1, weights2)
            states = across_heads(states, self.ssm.fusion.weight, self.ssm.fusion.bias)
            y = states.flatten(3) * reader + at_least_float32(self.ssm.Ds) * u
        else:
            y = self.attend_to_all(q, k, o)
        y = (self.norm(y.to(self.norm.weight.dtype)) + lepe) * gate
        y = self.out_norm(y.to(self.out_norm.weight.dtype))
        return self.proj(y) if torch.jit.is_scripting() else run_linear(self.proj, y)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        That is its scan, to which the sums of its states over the windows and their reading by C belong, but not the
        mixing of heads, which is alike at all pixels; or where it has none, the attention among all pixels of what the
        windows give.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        q, k, v, _ = self.project(x)
        o, weights1, weights2 = self.attend_in_windows(q, k, v)
        held = (q, k, weights1, weights2)
        if self.ssm is None:

            def attend(u: Tensor) -> Tensor:
                q, k = (repeat_batch(x, len(u)) for x in held[:2])
                return self.attend_to_all(q, k, u.unflatten(-1, (self.num_heads, -1))).unsqueeze(3)

            return [LinearScan(o.flatten(3), attend, ("all pixels",), self.dim)]
        u = self.ssm.convolve(o.flatten(3))
        dt, B, C = self.ssm.project(u)
        states = self.ssm.linear_part(dt, B, None, self.ssm.route_code)

        def apply(u: Tensor) -> Tensor:
            fused = self.fuse_states(states(u)[:, :, :, 0], *(repeat_batch(x, len(u)) for x in held))
            return (fused.flatten(3) * C[:, :, :, 0]).unsqueeze(3)

        return [LinearScan(u, apply, ("rows, fused by attention",), self.dim)]
