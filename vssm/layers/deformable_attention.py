"""Attention to a few points around each query, of several maps (Deformable DETR, arXiv 2010.04159), by `grid_sample`.

Shapes: B images, Q queries, L tokens, M maps, P points, C channels of a head.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DeformableAttention", "deformable_attention", "raster_points"]

Sizes = Sequence[tuple[int, int]]


def raster_points(sizes: Sizes, device: torch.device | str | None = None) -> Tensor:
    """Where the pixels of maps lie on the image.

    Args:
        sizes: (rows, columns) of each map.
        device: of the result.

    Returns:
        (L, 2) in float32: x and y of the pixels' centres, each from 0 to 1; maps one after the other, by rows.
    """
    found = []
    for height, width in sizes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        found.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(found)


def deformable_attention(values: Tensor, sizes: Sizes, points: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Sum what maps hold at some points around each query.

    Between four pixels a value is interpolated from them; outside of a map all values are 0.

    Args:
        values: (B, L, heads, C): the pixels of all maps, one map after the other, by rows.
        sizes: (rows, columns) of each of the M maps.
        points: (Q, 2): x and y of each query; 0 and 1 are the borders of every map.
        offsets: (B, Q, heads, M, P, 2): x and y from there to the points, in pixels of the map.
        weights: (B, Q, heads, M, P): of the points.

    Returns:
        (B, Q, heads * C) in the dtype of `values`; sampled in that of `offsets`, or in float32 if this is half.
    """
    batch, _, heads, width = values.shape
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    # Heads are images of their own to `grid_sample`, to which -1 and 1 are a map's borders.
    centres = 2 * points.to(dtype).view(1, -1, 1, 2) - 1
    offsets = offsets.to(dtype).transpose(1, 2).flatten(0, 1)
    sampled = []
    for i, part in enumerate(values.split([rows * columns for rows, columns in sizes], dim=1)):
        rows, columns = sizes[i]
        part = part.permute(0, 2, 3, 1).reshape(batch * heads, width, rows, columns).to(dtype)
        x, y = offsets[:, :, i].unbind(-1)
        grid = centres + torch.stack([x * (2 / columns), y * (2 / rows)], dim=-1)
        sampled.append(F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).flatten(0, 1).flatten(2).unsqueeze(1)
    found = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    return found.view(batch, heads * width, -1).transpose(1, 2).to(values.dtype)


class DeformableAttention(nn.Module):
    """Attention of queries to `num_points` points of each map, whose places and weights the query says itself.

    Args:
        dim: width of queries, tokens and result.
        num_heads: heads.
        num_maps: maps.
        num_points: points a head looks at in each map.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int = 8, num_maps: int = 1, num_points: int = 4, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"DeformableAttention: num_heads must divide the width {dim}, got {num_heads}")
        self.shape = (num_heads, num_maps, num_points)
        self.sampling_offsets = nn.Linear(dim, 2 * math.prod(self.shape), **dd)
        self.attention_weights = nn.Linear(dim, math.prod(self.shape), **dd)
        self.value_proj = nn.Linear(dim, dim, **dd)
        self.output_proj = nn.Linear(dim, dim, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Each head starts in a direction of its own, its points one pixel from one another, all of one weight."""
        heads, maps, points = self.shape
        for layer in (self.sampling_offsets, self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)
        angles = torch.arange(heads, dtype=torch.float32, device="cpu") * (2 * math.pi / heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ring = ring / ring.abs().amax(-1, keepdim=True)  # on a square, so that the points are pixels
        steps = torch.arange(1, points + 1, device="cpu").view(1, 1, -1, 1)
        offsets = (ring.view(heads, 1, 1, 2) * steps).expand(-1, maps, -1, -1)
        if not self.sampling_offsets.bias.is_meta:
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, queries: Tensor, points: Tensor, tokens: Tensor, sizes: Sizes) -> Tensor:
        """Look at maps.

        Args:
            queries: (B, Q, dim).
            points: (Q, 2), see `deformable_attention`.
            tokens: (B, L, dim): the pixels of all maps.
            sizes: (rows, columns) of each map.

        Returns:
            (B, Q, dim).
        """
        heads, maps, count = self.shape
        values = self.value_proj(tokens).unflatten(-1, (heads, -1))
        offsets = self.sampling_offsets(queries).unflatten(-1, (*self.shape, 2))
        weights = self.attention_weights(queries).unflatten(-1, (heads, maps * count)).softmax(-1)
        weights = weights.unflatten(-1, (maps, count))
        return self.output_proj(deformable_attention(values, sizes, points, offsets, weights))
