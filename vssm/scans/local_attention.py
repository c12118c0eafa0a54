"""SegMAN's mixer LASS: attention in windows, then a cross-scan of what it gives (arXiv 2412.11890, section 3.1).

Letters: B batch, H x W map, C width, n heads, E channels a head.
"""

from typing import List

import torch
import torch.nn as nn
from timm.layers import ConvNormAct
from torch import Tensor

from vssm_kernels.passes import attention_pass, run_linear

from .cross import CrossScan
from .linear import LinearScan, repeat_batch
from .map_attention import MapAttention

__all__ = ["LocalAttentionSS2D"]


class LocalAttentionSS2D(MapAttention):
    """Attention in windows, on a residual branch of it a cross-scan; or attention among all pixels in place of that.

    r = window attention(x); y = r + norm(scan(SiLU(BatchNorm(convolution(r))))); projection of y + lepe, where lepe is
    a depth-wise convolution of the values. With a table among all pixels, y = attention(r) with the queries and keys of
    x once more.

    Args:
        dim: Width C.
        num_heads: Heads n; E = C / n must be divisible by 4.
        window: Side of the window, odd.
        bias: Add a learned bias for each distance to the scores.
        pixels: Of the map that the table among all pixels is made for; 0 for a scan in its place. Other maps resize it.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

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
        super().__init__(dim, num_heads, window, num_heads if bias else None, pixels, **dd)
        if pixels:
            self.ssm = None
        else:
            self.conv = ConvNormAct(dim, dim, 3, groups=dim, bias=True, act_layer=nn.SiLU, **dd)
            self.ssm = CrossScan(dim, A_init=A_init, **dd)
            self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.init_weights()

    def attend_in_windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend, (B, H, W, n, E) to the same."""
        window = [self.window, self.window]
        if not torch.jit.is_scripting():
            y = attention_pass(q, k, v, window, [1, 1], self.rpb)
            if y is not None:
                return y
        return torch.ops.vssm.neighborhood_attention(q, k, v, kernel_size=window, bias=self.rpb)

    def convolve(self, r: Tensor) -> Tensor:
        """Make the input of the scan, (B, H, W, C) to the same."""
        return self.conv(r.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C)."""
        q, k, v, lepe = self.project(x)
        r = self.attend_in_windows(q, k, v)
        if self.ssm is not None:
            r = r.flatten(3)
            y = r + self.norm(self.ssm(self.convolve(r))).to(r.dtype)
        else:
            y = self.attend_to_all(q, k, r)
        y = y + lepe
        return self.proj(y) if torch.jit.is_scripting() else run_linear(self.proj, y)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        That is its scan, or where it has none, the attention among all pixels of what the windows give.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        q, k, v, _ = self.project(x)
        r = self.attend_in_windows(q, k, v)
        if self.ssm is not None:
            return self.ssm.scans_of(self.convolve(r.flatten(3)))

        def apply(u: Tensor) -> Tensor:
            queries, keys = repeat_batch(q, len(u)), repeat_batch(k, len(u))
            return self.attend_to_all(queries, keys, u.unflatten(-1, (self.num_heads, -1))).unsqueeze(3)

        return [LinearScan(r.flatten(3), apply, ("all pixels",), self.dim)]
