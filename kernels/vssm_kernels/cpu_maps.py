"""What the compiled CPU library does on channels-last maps besides scans, see `cpu_library`."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .cpu_library import DTYPES, as_float32, call, get_library, pointers
from .cpu_structs import Deform, Depthwise, DepthwiseGrad, Neighborhood, Norm

__all__ = [
    "deform",
    "deform_grad",
    "depthwise",
    "depthwise_grad",
    "neighborhood_attention",
    "neighborhood_attention_grad",
    "norm",
]


def _columns(x: Tensor) -> Tensor:
    """`x` with its last dimension side by side in memory."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@lru_cache(maxsize=64)
def _places(offsets: tuple[tuple[int, int], ...]) -> tuple[Tensor, bool]:
    """The offsets as a table, and whether they are those of a 3 x 3 kernel around the pixel, row by row."""
    return torch.tensor(offsets, dtype=torch.int32), offsets == tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[tuple[int, int]],
    size: tuple[int, int],
    out_dtype: torch.dtype,
    *,
    stride: int = 1,
    replicate: bool = False,
    silu: bool = False,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """Convolve a channels-last map depth-wise: scale silu(bias + sum over taps of weight x) + skip other.

    Args:
        x: (B, H, W, D), not empty; float32 or a half dtype.
        weight: (T, D), one row for each tap.
        bias: (D,).
        offsets: Rows and columns from the pixel at the output's place to what a tap reads, T of them.
        size: Height and width of the result.
        out_dtype: Of the result.
        stride: Pixels between what neighbours of the result read.
        replicate: Pixels outside the map repeat its edge; else they are zero.
        silu: Apply SiLU.
        scale: One number for each pixel of the result, (B, H', W').
        skip: (D,); None: nothing is added.
        other: What is added, (B, H', W', D).

    Returns:
        (B, H', W', D), contiguous. Summed in float32.
    """
    library = get_library()
    batch, height, width, channels = x.shape
    x = _columns(x)
    weight, bias, scale, skip = as_float32(weight), as_float32(bias), as_float32(scale), as_float32(skip)
    if other is not None:
        other = _columns(other.to(out_dtype))
    y = torch.empty((batch, *size, channels), dtype=out_dtype)
    places, dense = _places(tuple(offsets))
    struct = Depthwise(
        *(batch, height, width, *size, channels, stride, len(offsets)),
        *(dense, replicate, silu, DTYPES[x.dtype], DTYPES[out_dtype]),
        *pointers(places, weight, bias, x),
        *x.stride()[:3],
        *pointers(scale, skip, other),
        *((0, 0, 0) if other is None else other.stride()[:3]),
        y.data_ptr(),
    )
    call(library.vssm_depthwise, struct)
    return y


# Parts of the rows whose sums are made apart: more than the threads of most machines; the sum does not depend on these.
_PARTS = 32


def depthwise_grad(x: Tensor, grad: Tensor, offsets: Sequence[tuple[int, int]], stride: int) -> Tensor:
    """Give the gradient of a depth-wise convolution's weight.

    Args:
        x: What was convolved, (B, H, W, D), not empty; float32 or a half dtype. Pixels outside it are zero.
        grad: Of the result, (B, H', W', D); float32 or a half dtype.
        offsets: As in `depthwise`.
        stride: As in `depthwise`.

    Returns:
        (T, D), float32.
    """
    library = get_library()
    batch, height, width, channels = x.shape
    x, grad = _columns(x), _columns(grad)
    rows = batch * grad.shape[1]
    sums = torch.zeros(min(_PARTS, rows), len(offsets), channels, dtype=torch.float32)
    struct = DepthwiseGrad(
        *(batch, height, width, *grad.shape[1:3], channels, stride, len(offsets), len(sums)),
        *(DTYPES[x.dtype], DTYPES[grad.dtype]),
        *pointers(_places(tuple(offsets))[0], x),
        *x.stride()[:3],
        grad.data_ptr(),
        *grad.stride()[:3],
        sums.data_ptr(),
    )
    call(library.vssm_depthwise_grad, struct)
    return sums.sum(0)


def deform(x: Tensor, numbers: Tensor) -> Tensor:
    """Sum what groups of channels find at nine moved points, see `vssm_kernels.deform`.

    Args:
        x: (B, H, W, D), not empty; float32, contiguous.
        numbers: (B, H, W, G, 27), float32, contiguous; G divides D.

    Returns:
        As x.
    """
    y = torch.empty_like(x)
    struct = Deform(*x.shape[:3], numbers.shape[3], x.shape[3] // numbers.shape[3], *pointers(x, numbers, y))
    call(get_library().vssm_deform, struct)
    return y


def deform_grad(grad: Tensor, x: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Give the gradients of `deform`, of x and of the numbers. The same bits for every number of threads.

    Args:
        grad: Of the result; as x.
        x: See `deform`.
        numbers: See `deform`.
    """
    grad_x, grad_numbers = torch.zeros_like(x), torch.empty_like(numbers)
    sizes = (*x.shape[:3], numbers.shape[3], x.shape[3] // numbers.shape[3])
    struct = Deform(*sizes, *pointers(x, numbers, None, grad, grad_x, grad_numbers))
    call(get_library().vssm_deform, struct)
    return grad_x, grad_numbers


# Rows that a unit of work takes: keys and values of more are packed in vain around fewer.
_ROWS = 8


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
) -> Tensor:
    """See `neighborhood.rule.attention_fwd`; computed in float32.

    Args:
        q: (B, H, W, n, E), not empty; float32 or a half dtype.
        k: As q.
        v: (B, H, W, n, F), dtype of q.
        bias: (n, 2 kernel_size[0] - 1, 2 kernel_size[1] - 1).
        kernel_size: See there.
        dilation: See there.
        scale: See there.

    Returns:
        As v, contiguous.
    """
    y = torch.empty(v.shape, dtype=v.dtype)
    _attend(q, k, v, bias, kernel_size, dilation, scale, _ROWS, (y,))
    return y


def neighborhood_attention_grad(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Give the gradients of `neighborhood_attention`, of q, k, v and the bias, in float32.

    Args:
        grad: Of the result; as v.
        q: See `neighborhood_attention`, as all others.
        k: See there.
        v: See there.
        bias: See there.
        kernel_size: See there.
        dilation: See there.
        scale: See there.

    Returns:
        The same bits for every number of threads.
    """
    dq, dk, dv = (torch.empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    batch, height, _, heads, _ = q.shape
    # One table for each remainder of the rows: nothing else adds to it.
    tables = (
        None
        if bias is None
        else torch.empty(batch, heads, min(dilation[0], height), *bias.shape[1:], dtype=torch.float32)
    )
    _attend(q, k, v, bias, kernel_size, dilation, scale, height, (None, as_float32(grad), dq, dk, dv, tables))
    return dq, dk, dv, None if tables is None else tables.sum((0, 2))


def _attend(q, k, v, bias, kernel_size, dilation, scale, rows, results) -> None:
    """Call the library; `results` are what the structure has from y on, as far as they are wanted."""
    q, k, v, bias = _columns(q), _columns(k), _columns(v), as_float32(bias)
    struct = Neighborhood(
        *(*q.shape, v.shape[4], *kernel_size, *dilation, rows, DTYPES[q.dtype], scale),
        *pointers(q, k, v),
        *(x.stride()[:4] for x in (q, k, v)),
        *pointers(bias, *results),
    )
    call(get_library().vssm_neighborhood, struct)


def _row_strides(x: Tensor, groups: int) -> tuple[Tensor, int, int]:
    """`x` (..., [G,] D) with the strides of its rows and of its groups, copied where the rows have no one stride."""
    x = _columns(x)
    rows = list(zip(x.shape, x.stride(), strict=True))[: -2 if groups > 1 else -1]
    rows = [(n, s) for n, s in rows if n > 1] or [(1, x.shape[-1] * groups)]
    if any(s != n * inner for (_, s), (n, inner) in zip(rows, rows[1:], strict=False)):
        x = x.contiguous()
        return x, x.shape[-1] * groups, x.shape[-1]
    return x, rows[-1][1], x.stride(-2) if groups > 1 else 0


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    *,
    groups: int = 1,
    gate: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Normalise rows, LayerNorm's way, and gate them.

    Args:
        x: (..., D), or (..., G, D) with `groups` G above 1; not empty; float32 or a half dtype.
        weight: (D,) or (G D,).
        bias: As weight.
        eps: Added to the variance.
        out_dtype: Of the result.
        groups: Rows that have weights of their own.
        gate: Multiplies the result; as x.
        silu: Apply SiLU to the gate.

    Returns:
        As x, contiguous. Computed in float32.
    """
    library = get_library()
    x, row, group = _row_strides(x, groups)
    weight, bias = as_float32(weight), as_float32(bias)
    gate, *gate_strides = (None, 0, 0) if gate is None else _row_strides(gate.to(out_dtype), groups)
    y = torch.empty(x.shape, dtype=out_dtype)
    channels = x.shape[-1]
    struct = Norm(
        *(x.numel() // channels, groups, channels, silu, DTYPES[x.dtype], DTYPES[out_dtype]),
        *(x.data_ptr(), row, group),
        *pointers(weight, bias, gate),
        *(*gate_strides, y.data_ptr(), eps),
    )
    call(library.vssm_norm, struct)
    return y
