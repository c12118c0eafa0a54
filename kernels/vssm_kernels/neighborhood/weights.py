"""The weights of neighbourhood attention by themselves, for a second set of values: the first half, and the second.

They are kept as the tiles have them (see `tiles.py`): for each kind of tiles T x n x Q x S numbers, one kind after the
other, the batch first. Pixels of the rectangle that are no neighbours have weight zero.

Letters: as in `tiles.py`; N weights of a map.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..reference import compute_dtype
from .tiles import Kind, bias_gradient, cut, pairs, some_tiles, tile_mask, tile_order, tile_pixels

__all__ = [
    "sum_bwd",
    "sum_fwd",
    "sum_in_one_graph",
    "weights_bwd",
    "weights_fwd",
    "weights_in_one_graph",
    "weights_size",
]

Part = tuple[Kind, Kind, slice, tuple[int, int, int, int]]


def _parts(size: tuple[int, int], heads: int, kernel_size: list[int], dilation: list[int]) -> Iterator[Part]:
    """For each kind of tiles where its weights are, and their shape (T, n, Q, S)."""
    first = 0
    for row, column in pairs(size, kernel_size, dilation):
        pixels, seen = len(row.starts) * len(column.starts), row.seen * column.seen
        shape = len(row.spans) * len(column.spans), heads, pixels, seen
        last = first + math.prod(shape)
        yield row, column, slice(first, last), shape
        first = last


def weights_size(height: int, width: int, heads: int, kernel_size: list[int], dilation: list[int]) -> int:
    """Count the weights N that are kept of a map."""
    return max(part.stop for _, _, part, _ in _parts((height, width), heads, kernel_size, dilation))


def _chunks(row: Kind, column: Kind, of: Tensor, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, list, list]]:
    """Some tiles at a time: their weights, a view (T, B, n, Q, S) of `of` (B, T, n, Q, S), and where they lie."""
    at_once, done = max(1, 64 // shape[1]), 0
    for asking, keys in some_tiles(row, column, at_once):
        yield of[:, done : done + len(asking)].transpose(0, 1), asking, keys
        done += len(asking)


def _cut(x: Tensor, areas: list, dtype: torch.dtype) -> Tensor:
    """Areas of a map (B, H, W, n, E), as (T, B, n, pixels, E)."""
    return cut(x, areas).to(dtype).unflatten(0, (len(areas), len(x)))


def _add(total: Tensor, areas: list, parts: Tensor) -> None:
    """Add areas (T, B, n, pixels, E) to a map; one after the other, so that the order of the sums is fixed."""
    for (rows, columns), part in zip(areas, parts.transpose(2, 3), strict=True):
        whole = total[:, rows, columns]
        whole += part.unflatten(1, whole.shape[1:3])


def _zeros(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(x.shape, dtype=dtype, device=x.device)


def weights_fwd(
    q: Tensor, k: Tensor, bias: Tensor | None, kernel_size: list[int], dilation: list[int], scale: float
) -> Tensor:
    """Compute the weights (B, N), in float32 or better; arguments as those of `rule.attention_fwd`."""
    batch, height, width, heads = q.shape[:4]
    dtype = compute_dtype(q)
    size = weights_size(height, width, heads, kernel_size, dilation)
    weights = torch.empty(batch, size, dtype=dtype, device=q.device)
    table = q.new_zeros(1, *(2 * window - 1 for window in kernel_size)) if bias is None else bias
    for row, column, part, shape in _parts((height, width), heads, kernel_size, dilation):
        mask = tile_mask(table.to(dtype), row, column, kernel_size)
        for some, asking, keys in _chunks(row, column, weights[:, part].view(batch, *shape), shape):
            scores = _cut(q, asking, dtype) * scale @ _cut(k, keys, dtype).mT
            some.copy_(scores.add_(mask).softmax(-1))
    return weights


def weights_bwd(
    grad: Tensor,
    weights: Tensor,
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    dilation: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give the gradients of q, k and the bias, in float32 or better."""
    batch, height, width, heads = q.shape[:4]
    dtype = weights.dtype
    dq, dk = _zeros(q, dtype), _zeros(k, dtype)
    dbias = None if bias is None else _zeros(bias, dtype)
    for row, column, part, shape in _parts((height, width), heads, kernel_size, dilation):
        dmask = torch.zeros(shape[1:], dtype=dtype, device=q.device)
        here, change = (x[:, part].view(batch, *shape) for x in (weights, grad))
        chunks = zip(_chunks(row, column, here, shape), _chunks(row, column, change, shape), strict=True)
        for (some, asking, keys), (dsome, _, _) in chunks:
            dscores = (dsome - (dsome * some).sum(-1, keepdim=True)) * some
            if dbias is not None:
                dmask += dscores.sum((0, 1))
            dscores = dscores * scale
            _add(dq, asking, dscores @ _cut(k, keys, dtype))
            _add(dk, keys, dscores.mT @ _cut(q, asking, dtype))
        if dbias is not None:
            dbias += bias_gradient(dmask, row, column, kernel_size)
    return dq, dk, dbias


def sum_fwd(weights: Tensor, v: Tensor, kernel_size: list[int], dilation: list[int]) -> Tensor:
    """Sum values (B, H, W, n, F) by weights (B, N): (B, H, W, n, F) in the dtype of v."""
    batch, height, width, heads = v.shape[:4]
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    for row, column, part, shape in _parts((height, width), heads, kernel_size, dilation):
        for some, asking, keys in _chunks(row, column, weights[:, part].view(batch, *shape), shape):
            results = (some @ _cut(v, keys, weights.dtype)).transpose(2, 3)
            for (rows, columns), result in zip(asking, results, strict=True):
                y[:, rows, columns] = result.unflatten(1, (len(row.starts), len(column.starts)))
    return y


def sum_bwd(
    grad: Tensor, weights: Tensor, v: Tensor, kernel_size: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor]:
    """Give the gradients of weights and values, in float32 or better."""
    batch, height, width, heads = v.shape[:4]
    dtype = weights.dtype
    dweights, dv = torch.empty_like(weights), _zeros(v, dtype)
    for row, column, part, shape in _parts((height, width), heads, kernel_size, dilation):
        here, change = (x[:, part].view(batch, *shape) for x in (weights, dweights))
        chunks = zip(_chunks(row, column, here, shape), _chunks(row, column, change, shape), strict=True)
        for (some, asking, keys), (dsome, _, _) in chunks:
            dy = _cut(grad, asking, dtype)
            dsome.copy_(dy @ _cut(v, keys, dtype).mT)
            _add(dv, keys, some.mT @ dy)
    return dweights, dv


# --------------------------------------------------------------------------------------------------------------------
# for derivatives of every order


def _some(x: Tensor, pixels: Tensor, tiles: int) -> Tensor:
    """(B, H, W, n, E) to (B, T, n, pixels, E)."""
    return x.flatten(1, 2).index_select(1, pixels).unflatten(1, (tiles, -1)).transpose(2, 3)


def weights_in_one_graph(
    q: Tensor, k: Tensor, bias: Tensor | None, kernel_size: list[int], dilation: list[int], scale: float
) -> Tensor:
    """See `weights_fwd`; without writing in place."""
    height, width, heads = q.shape[1:4]
    dtype = compute_dtype(q)
    q, k = (q * scale).to(dtype), k.to(dtype)
    table = q.new_zeros(1, *(2 * window - 1 for window in kernel_size)) if bias is None else bias.to(dtype)
    results = []
    for row, column, _, shape in _parts((height, width), heads, kernel_size, dilation):
        asking, keys = tile_pixels(row, column, height, width, q.device)
        scores = _some(q, asking, shape[0]) @ _some(k, keys, shape[0]).mT + tile_mask(table, row, column, kernel_size)
        results.append(scores.softmax(-1).flatten(1))
    return torch.cat(results, 1)


def sum_in_one_graph(weights: Tensor, v: Tensor, kernel_size: list[int], dilation: list[int]) -> Tensor:
    """See `sum_fwd`; without writing in place."""
    height, width, heads = v.shape[1:4]
    results = []
    for row, column, part, shape in _parts((height, width), heads, kernel_size, dilation):
        _, keys = tile_pixels(row, column, height, width, v.device)
        some = weights[:, part].unflatten(1, shape) @ _some(v.to(weights.dtype), keys, shape[0])
        results.append(some.transpose(2, 3).flatten(1, 2))
    order = tile_order(height, width, tuple(kernel_size), tuple(dilation), v.device)
    return torch.cat(results, 1).index_select(1, order).unflatten(1, (height, width)).to(v.dtype)
