"""Attention on maps: queries and keys turned by their position, in windows and among all pixels (SegMAN, A2Mamba).

Letters: B batch, H x W map, L = H W pixels, C width, n heads, E channels a head.
"""

from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vssm_kernels.depthwise import DepthwiseConv2d
from vssm_kernels.passes import run_linear
from vssm_kernels.watch import is_transformed

from ._state_space import at_least_float32
from .cross import CrossScan

__all__ = ["MapAttention", "attend", "resize_pairs", "rotary_angles", "rotate"]

torch.fx.wrap("attend")
torch.fx.wrap("resize_pairs")
torch.fx.wrap("rotate")


def rotary_angles(channels: int, device=None) -> Tensor:
    """Give the angles by which a step along an axis turns half of a head's channels, (E / 2,) in float32.

    Two neighbouring channels are a pair and share an angle, 10000 ** -x with x from 0 to 1 over the pairs (RoPE, arXiv
    2104.09864; half of the channels for each axis).
    """
    frequencies = 10000.0 ** -torch.linspace(0, 1, channels // 4, device=device, dtype=torch.float32)
    return frequencies.repeat_interleave(2)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn pairs of channels by their position: the first half of a head by the row, the second by the column.

    Args:
        x: (B, H, W, m, n, E).
        angle: Of one step, (E / 2,).

    Returns:
        As x.
    """
    height, width, half = x.shape[1], x.shape[2], angle.shape[0]
    angle = at_least_float32(angle)
    rows = torch.arange(height, device=x.device, dtype=angle.dtype)[:, None, None] * angle
    columns = torch.arange(width, device=x.device, dtype=angle.dtype)[:, None] * angle
    size = (height, width, half)
    cos = torch.cat([rows.cos().expand(size), columns.cos().expand(size)], dim=-1)[:, :, None, None]
    sin = torch.cat([rows.sin().expand(size), columns.sin().expand(size)], dim=-1)[:, :, None, None]
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack([-second, first], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + across * sin.to(x.dtype)


def resize_pairs(table: Tensor, pixels: int) -> Tensor:
    """Resize a table with an entry for each pair of pixels to maps of another size, as a picture.

    As in the official codes: bicubic, whatever the shape of the map. Table and result are (n, L, L).
    """
    if table.shape[-1] == pixels:
        return table
    x = at_least_float32(table).unsqueeze(0)
    return F.interpolate(x, size=[pixels, pixels], mode="bicubic", align_corners=False)[0].to(table.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None) -> Tensor:
    """Let all pixels attend to each other.

    Args:
        q: (B, H, W, n, E).
        k: As q.
        v: As q.
        table: Added to the scores, (n, L, L).

    Returns:
        (B, H, W, n, E).
    """
    height, width = q.shape[1], q.shape[2]
    q, k, v = q.flatten(1, 2).transpose(1, 2), k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2).transpose(1, 2)
    mask = table.to(q.dtype).unsqueeze(0) if table is not None else None
    if torch.jit.is_scripting():
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    elif is_transformed():
        # The fused attention of PyTorch has no forward-mode derivative, nor one of a mask under vmap.
        with sdpa_kernel(SDPBackend.MATH):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2).unflatten(1, (height, width))


class MapAttention(nn.Module):
    """Base of the mixers that attend on maps: projections, turned queries and keys, bias tables.

    Args:
        dim: Width C.
        num_heads: Heads n; E = C / n must be divisible by 4.
        window: Side of the window, odd.
        biased_heads: Heads of the table of the windows' bias; None for no bias in the windows and among all pixels.
        pixels: Of the map of the table among all pixels; 0 for none.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: The heads do not fit the width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        biased_heads: int | None,
        pixels: int = 0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if dim % (4 * num_heads):
            raise ValueError(f"the width {dim} must be a multiple of 4 for each of the {num_heads} heads")
        self.dim = dim
        self.num_heads = num_heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = DepthwiseConv2d(dim, 5, padding=2, **dd)
        self.angle: Tensor
        self.register_buffer("angle", torch.empty(dim // num_heads // 2, **dd))
        table = None if biased_heads is None else torch.empty(biased_heads, 2 * window - 1, 2 * window - 1, **dd)
        self.rpb = None if table is None else nn.Parameter(table)
        table = None if biased_heads is None or not pixels else torch.empty(num_heads, pixels, pixels, **dd)
        self.global_rpb = None if table is None else nn.Parameter(table)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start as the official codes do."""
        self.angle.copy_(rotary_angles(2 * self.angle.shape[0], self.angle.device))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    module.bias.zero_()
        for table in (self.rpb, self.global_rpb):
            if table is not None:
                table.zero_()
        for scan in self.children():
            if isinstance(scan, CrossScan):
                scan.init_weights()

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project (B, H, W, C) to queries, keys and values (B, H, W, n, E), and convolve the values (B, H, W, C)."""
        qkv = self.qkv(x) if torch.jit.is_scripting() else run_linear(self.qkv, x)
        qkv = qkv.unflatten(-1, (3, self.num_heads, self.dim // self.num_heads))
        v = qkv[:, :, :, 2]
        q, k = rotate(qkv[:, :, :, :2], self.angle).unbind(3)
        lepe = self.lepe(v.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return q, k, v, lepe

    def attend_to_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let all pixels attend to each other, (B, H, W, n, E) to (B, H, W, C)."""
        table: Tensor | None = self.global_rpb
        if table is not None:
            table = resize_pairs(table, q.shape[1] * q.shape[2])
        return attend(q, k, v, table).flatten(3)
