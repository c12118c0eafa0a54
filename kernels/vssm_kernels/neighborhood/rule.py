"""Which pixels a pixel attends to, and the attention over them written to be read.

The rule is that of NATTEN 0.17 (arXiv 2204.07143, arXiv 2209.15001). On an axis of n pixels with a window k (odd) and a
dilation d, pixel i belongs to group i mod d and has place i div d there. It attends to the k pixels of its group that
stand around it. At a border the window is shifted, never cut or padded. The axes are independent of each other.

A group with fewer than k pixels is outside of NATTEN's rule: here each of its pixels attends to all of them. A bias
belongs to the distance of two pixels, in steps of d, in every case.

Letters: B batch, H x W map, n heads, E channels a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import compute_dtype

__all__ = ["attention_fwd", "fit_window", "group_sizes", "window_start", "windows"]


def group_sizes(size: int, dilation: int) -> list[int]:
    """Count the pixels of each group of an axis."""
    return [len(range(first, size, dilation)) for first in range(min(size, dilation))]


def window_start(place: int, group: int, window: int) -> int:
    """Give the place of the first pixel that a pixel attends to.

    Args:
        place: Of the pixel in its group.
        group: Pixels of the group.
        window: Pixels that one attends to.
    """
    return min(max(place - window // 2, 0), max(group - window, 0))


def fit_window(
    size: Sequence[int], kernel_size: Sequence[int], dilation: Sequence[int], bias: Tensor | None
) -> tuple[list[int], list[int]]:
    """Give the smallest window and dilation by which each pixel attends to the same pixels of a map of this size.

    Backends lay out memory for the window, and count in 64 bits. The window of a bias is as large as the bias.
    """
    steps = [min(step, length) for step, length in zip(dilation, size, strict=True)]
    if bias is not None:
        return list(kernel_size), steps
    groups = [-(-length // step) for step, length in zip(steps, size, strict=True)]
    return [min(window, group | 1) for window, group in zip(kernel_size, groups, strict=True)], steps


def windows(size: int, window: int, dilation: int) -> tuple[list[list[int]], list[list[int]]]:
    """List for each pixel of an axis the pixels that it attends to, and the rows of a bias table that belong to them.

    Args:
        size: Pixels of the axis.
        window: Pixels that one attends to.
        dilation: Step from one to the next.

    Returns:
        Pixels and rows. Where two groups differ in size and both are smaller than the window, so do the lists.
    """
    groups = group_sizes(size, dilation)
    pixels, rows = [], []
    for i in range(size):
        place, first = divmod(i, dilation)
        start = window_start(place, groups[first], window)
        places = range(start, start + min(window, groups[first]))
        pixels.append([p * dilation + first for p in places])
        rows.append([p - place + window - 1 for p in places])
    return pixels, rows


def _tables(size: int, window: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`windows` as tensors (size, longest list), and which of their entries are real."""
    pixels, rows = windows(size, window, dilation)
    longest = max(map(len, pixels))
    real = [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
    pixels, rows = ([row + [0] * (longest - len(row)) for row in table] for table in (pixels, rows))
    return tuple(torch.tensor(table, device=device) for table in (pixels, rows, real))


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: list[int], dilation: list[int], scale: float
) -> Tensor:
    """Attend to neighbours; arguments and result as those of `vssm_kernels.neighborhood_attention`.

    The keys and values of each pixel are laid side by side, which takes kernel_size[0] * kernel_size[1] times the
    memory of a map.
    """
    axes = zip(q.shape[1:3], kernel_size, dilation, strict=True)
    (row, row_bias, row_real), (column, column_bias, column_real) = (_tables(*axis, q.device) for axis in axes)
    dtype = compute_dtype(q)

    def neighbours(x: Tensor) -> Tensor:
        """(B, H, W, n, E) to (B, H, window, W, window, n, E)."""
        return x.to(dtype)[:, row][:, :, :, column]

    scores = torch.einsum("bhwne,bhiwjne->bnhwij", q.to(dtype) * scale, neighbours(k))
    if bias is not None:
        scores = scores + bias.to(dtype)[:, row_bias[:, None, :, None], column_bias[None, :, None, :]]
    real = row_real[:, None, :, None] & column_real[None, :, None, :]
    weights = scores.masked_fill(~real, float("-inf")).flatten(-2).softmax(-1).unflatten(-1, scores.shape[-2:])
    return torch.einsum("bnhwij,bhiwjne->bhwne", weights, neighbours(v)).to(v.dtype)
