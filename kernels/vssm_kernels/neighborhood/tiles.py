"""Neighbourhood attention in plain PyTorch, by tiles: dense attention of a few pixels to all that any of them sees.

Each group of a dilated map is a map of its own. It is cut into tiles of about `_TILE` x `_TILE` pixels. The windows of
a tile's pixels lie in one rectangle, so the tile is a small dense attention with a mask: two matrix products. Tiles
whose windows lie in the same way share one mask with the bias in it. A map not much larger than the window is one tile.

Letters: B batch, H x W map, n heads, E channels a head, T tiles that are computed at once, Q pixels of a tile, S pixels
of its rectangle.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import compute_dtype
from ..tables import keep_tables
from .rule import group_sizes, window_start

__all__ = [
    "Kind",
    "attention_bwd",
    "attention_fwd",
    "attention_in_one_graph",
    "bias_gradient",
    "cut",
    "pairs",
    "some_tiles",
    "tile_mask",
    "tile_order",
    "tile_pixels",
]

# Small tiles waste fewer products on pixels outside of the windows, large ones make larger matrices.
_TILE = 7


class Span(NamedTuple):
    """A tile on one axis: the pixels that ask and those that they see."""

    queries: range
    keys: range


class Kind(NamedTuple):
    """Tiles of one axis that differ only in where they lie.

    Attributes:
        starts: For each pixel of a tile, the first of the seen pixels that it attends to.
        seen: How many pixels the tile sees.
        attended: How many of them each of its pixels attends to.
        offset: Distance from the first pixel of the tile to the first that it sees.
        spans: Where the tiles lie.
    """

    starts: tuple[int, ...]
    seen: int
    attended: int
    offset: int
    spans: tuple[Span, ...]

    @property
    def shape(self) -> tuple[tuple[int, ...], int, int, int]:
        """What makes the kind."""
        return self[:4]


@lru_cache(maxsize=512)
def _kinds(size: int, window: int, dilation: int) -> tuple[Kind, ...]:
    """Cut one axis into tiles."""
    found: dict[tuple, list[Span]] = {}
    for first, group in enumerate(group_sizes(size, dilation)):
        length = -(-group // max(1, group // _TILE))
        if group < window + _TILE:
            length = group  # nearly all pixels see all others
        for begin in range(0, group, length):
            places = range(begin, min(begin + length, group))
            starts = [window_start(place, group, window) for place in places]
            low, high = starts[0], starts[-1] + min(window, group)
            queries, keys = (
                range(first + a * dilation, first + (b - 1) * dilation + 1, dilation)
                for a, b in ((begin, places[-1] + 1), (low, high))
            )
            shape = tuple(start - low for start in starts), high - low, min(window, group), low - begin
            found.setdefault(shape, []).append(Span(queries, keys))
    return tuple(Kind(*shape, tuple(spans)) for shape, spans in found.items())


def pairs(size: tuple[int, int], kernel_size: list[int], dilation: list[int]) -> Iterator[tuple[Kind, Kind]]:
    """The kinds of tiles of a map, by rows and columns."""
    # A symbolic size becomes a constant here: the tiles follow from it.
    rows, columns = (_kinds(*map(int, axis)) for axis in zip(size, kernel_size, dilation, strict=True))
    yield from ((row, column) for row in rows for column in columns)


@keep_tables
def _bias_rows(starts: tuple[int, ...], seen: int, attended: int, offset: int, window: int, device) -> Tensor:
    """For each pixel of a tile and each that it sees, the row of a bias table, or 2 window - 1 if it is no neighbour.

    (pixels * seen,) int64.
    """
    asking = torch.arange(len(starts), device=device)[:, None]
    place = torch.arange(seen, device=device)
    # Not from the list: that would be copied from the host. The starts rise by one for a pixel, but at a border.
    rising = next((i for i, value in enumerate(starts) if value > 0), len(starts))
    start = (asking + 1 - rising).clamp(0, starts[-1])
    row = place + offset - asking + window - 1
    return torch.where((place >= start) & (place < start + attended), row, 2 * window - 1).flatten()


def tile_mask(bias: Tensor, row: Kind, column: Kind, kernel_size: list[int]) -> Tensor:
    """What is added to the scores of tiles: the bias (n, 2 window - 1, 2 window - 1), or minus infinity.

    Returns:
        (n, Q, S).
    """
    rows, columns = (
        _bias_rows(*kind.shape, window, bias.device) for kind, window in zip((row, column), kernel_size, strict=True)
    )
    table = F.pad(bias, (0, 1, 0, 1), value=float("-inf"))
    table = table.index_select(1, rows).index_select(2, columns)
    table = table.view(-1, len(row.starts), row.seen, len(column.starts), column.seen)
    return table.transpose(2, 3).reshape(len(bias), len(row.starts) * len(column.starts), -1)


def bias_gradient(grad: Tensor, row: Kind, column: Kind, kernel_size: list[int]) -> Tensor:
    """The adjoint of `tile_mask`, by products with zeros and ones, so that the order of the sums is fixed."""
    rows, columns = (
        F.one_hot(_bias_rows(*kind.shape, window, grad.device), 2 * window).to(grad.dtype)
        for kind, window in zip((row, column), kernel_size, strict=True)
    )
    grad = grad.view(-1, len(row.starts), len(column.starts), row.seen, column.seen).transpose(2, 3)
    grad = grad.reshape(len(grad), len(rows), len(columns))
    return (rows.T @ (grad @ columns))[:, :-1, :-1]


def cut(x: Tensor, areas: list[tuple[slice, slice]]) -> Tensor:
    """Areas of one size of a map (B, H, W, n, E), as (T * B, n, pixels, E)."""
    parts = [x[:, rows, columns] for rows, columns in areas]
    return torch.stack(parts).flatten(0, 1).flatten(1, 2).transpose(1, 2)


def some_tiles(row: Kind, column: Kind, at_once: int) -> Iterator[tuple[list, list]]:
    """Where tiles of a kind and their rectangles lie, some tiles at a time."""

    def area(rows: range, columns: range) -> tuple[slice, slice]:
        return tuple(slice(axis.start, axis.stop, axis.step) for axis in (rows, columns))

    places = [(a, b) for a in row.spans for b in column.spans]
    for first in range(0, len(places), at_once):
        some = places[first : first + at_once]
        yield [area(a.queries, b.queries) for a, b in some], [area(a.keys, b.keys) for a, b in some]


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: list[int], dilation: list[int], scale: float
) -> Tensor:
    """See `rule.attention_fwd`. Besides the result it needs as much memory as about one map."""
    batch, height, width, heads = v.shape[:4]
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    if bias is None:
        bias = q.new_zeros(1, *(2 * window - 1 for window in kernel_size))
    for row, column in pairs((height, width), kernel_size, dilation):
        mask = tile_mask(bias.to(q.dtype), row, column, kernel_size)[None]
        pixels, seen = mask.shape[-2:]
        for asking, keys in some_tiles(row, column, max(1, height * width // (pixels + 2 * seen))):
            part = F.scaled_dot_product_attention(
                cut(q, asking), cut(k, keys), cut(v, keys), attn_mask=mask, scale=scale
            )
            shape = (len(asking), batch, len(row.starts), len(column.starts), heads, -1)
            for (rows, columns), result in zip(asking, part.transpose(1, 2).reshape(shape), strict=True):
                y[:, rows, columns] = result
    return y


def attention_bwd(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    dilation: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Give the gradients of q, k, v and the bias, in float32 or better; the weights are computed anew, tile by tile."""
    dtype = compute_dtype(q)
    batch, height, width, heads, channels = q.shape
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
    dbias = None if bias is None else torch.zeros(bias.shape, dtype=dtype, device=bias.device)
    table = q.new_zeros(1, *(2 * window - 1 for window in kernel_size)) if bias is None else bias
    for row, column in pairs((height, width), kernel_size, dilation):
        mask = tile_mask(table.to(dtype), row, column, kernel_size)
        pixels, seen = mask.shape[-2:]
        dmask = torch.zeros(heads, pixels, seen, dtype=dtype, device=q.device)
        at_once = max(1, height * width * channels // (4 * pixels * seen))
        for asking, keys in some_tiles(row, column, at_once):
            some_q, some_grad = (cut(x, asking).to(dtype) for x in (q, grad))
            some_k, some_v = (cut(x, keys).to(dtype) for x in (k, v))
            weights = (some_q * scale @ some_k.mT).add_(mask).softmax(-1)
            parts = [(dv, keys, weights.mT @ some_grad)]
            dweights = some_grad @ some_v.mT
            dscores = dweights.sub_((dweights * weights).sum(-1, keepdim=True)).mul_(weights)
            if dbias is not None:
                dmask += dscores.sum(0)
            dscores *= scale
            parts += [(dq, asking, dscores @ some_k), (dk, keys, dscores.mT @ some_q)]
            for total, areas, part in parts:
                part = part.transpose(1, 2).unflatten(0, (len(areas), batch))
                for (rows, columns), some in zip(areas, part, strict=True):
                    whole = total[:, rows, columns]
                    whole += some.unflatten(1, whole.shape[1:3])
        if dbias is not None:
            dbias += bias_gradient(dmask, row, column, kernel_size)
    return dq, dk, dv, dbias


# --------------------------------------------------------------------------------------------------------------------
# for exporters, and for derivatives of every order


def _numbers(areas: list[tuple[slice, slice]], height: int, width: int, device: torch.device) -> Tensor:
    """The pixels of areas, one after the other, int64."""
    rows, columns = torch.arange(height, device=device)[:, None] * width, torch.arange(width, device=device)
    return torch.cat([(rows[a] + columns[b]).flatten() for a, b in areas])


@keep_tables
def tile_pixels(row: Kind, column: Kind, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels of all tiles of a kind, and of their rectangles."""
    ((asking, keys),) = some_tiles(row, column, len(row.spans) * len(column.spans))
    return tuple(_numbers(areas, height, width, device) for areas in (asking, keys))


@keep_tables
def tile_order(height: int, width: int, kernel_size: tuple, dilation: tuple, device: torch.device) -> Tensor:
    """Where each pixel of the map stands in the results of all tiles."""
    tiles = [tile_pixels(*kinds, height, width, device)[0] for kinds in pairs((height, width), kernel_size, dilation)]
    order = torch.arange(height * width, device=device)
    return torch.zeros_like(order).scatter(0, torch.cat(tiles), order)


def attention_in_one_graph(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: list[int], dilation: list[int], scale: float
) -> Tensor:
    """See `rule.attention_fwd`; by tiles, without writing in place, with few operators whatever the size of the map."""
    height, width, dtype = q.shape[1], q.shape[2], compute_dtype(q)
    kernel_size, dilation = tuple(kernel_size), tuple(dilation)
    q, k, value = (x.to(dtype).flatten(1, 2) for x in (q * scale, k, v))
    table = q.new_zeros(1, *(2 * window - 1 for window in kernel_size)) if bias is None else bias.to(dtype)
    results = []
    for row, column in pairs((height, width), kernel_size, dilation):
        mask = tile_mask(table, row, column, kernel_size)
        asking, keys = tile_pixels(row, column, height, width, q.device)
        tiles = len(row.spans) * len(column.spans)

        def some(x: Tensor, pixels: Tensor, tiles: int = tiles) -> Tensor:
            return x.index_select(1, pixels).unflatten(1, (tiles, -1)).transpose(2, 3)  # (B, T, n, pixels, E)

        weights = (some(q, asking) @ some(k, keys).mT + mask).softmax(-1)
        results.append((weights @ some(value, keys)).transpose(2, 3).flatten(1, 2))
    y = torch.cat(results, 1).index_select(1, tile_order(height, width, kernel_size, dilation, q.device))
    return y.unflatten(1, (height, width)).to(v.dtype)
