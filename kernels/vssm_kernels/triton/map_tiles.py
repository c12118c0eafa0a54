"""Shared by the kernels of maps: which tile, which pixels, and the values of a tile, on the device."""

import triton
import triton.language as tl

from .tiles import exp_of_minus_abs, softplus

__all__ = [
    "ROUTE_FIELDS",
    "SIZES",
    "dot",
    "load_B_and_C",
    "load_low_rank",
    "load_parameters",
    "load_rows",
    "load_step",
    "load_weight",
    "pixels_of_tile",
    "program",
    "store_rows",
    "tiles_of_route",
]

ROUTE_FIELDS = tl.constexpr(5)


# What depends on the size of the map, and would have kernels compiled again by its divisors. From image to image it is
# counted in pixels, whose stride does not depend on the size and tells how rows are aligned.
SIZES = ["pixels", "chunks", "tiles", "tiles_per_chunk", "u_image", "dt_image", "B_image", "C_image", "gy_image"]


@triton.jit
def program(sequences, channels, chunks, BLOCK_D: tl.constexpr):
    """Block of channels, sequence, chunk, image of this program; channels, which of them exist."""
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    block = pid % blocks
    pid = pid // blocks
    k = pid % sequences
    pid = pid // sequences
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    return block, k, pid % chunks, (pid // chunks).to(tl.int64), d, d < channels


@triton.jit
def tiles_of_route(order_ptr, route_ptr, chunk, tiles_per_chunk, RUN: tl.constexpr):
    """The tiles of a route that lie in a chunk: where its pixels are listed, the first, and the one after the last.

    The fourth result is the route's first tile in its sequence.
    """
    # The table has whole tiles, filled up with -1, so that a thread reads its run of it at once.
    order = order_ptr + tl.multiple_of(tl.load(route_ptr), RUN)
    length = tl.load(route_ptr + 1)
    start = tl.load(route_ptr + 2)
    first = tl.maximum(chunk * tiles_per_chunk - start, 0)
    last = tl.minimum((chunk + 1) * tiles_per_chunk - start, tl.cdiv(length, RUN))
    return order, first, last, start


@triton.jit
def pixels_of_tile(order, tile, RUN: tl.constexpr):
    """The pixels that a route visits in one of its tiles, -1 at places that hold none."""
    return tl.load(order + tile * RUN + tl.arange(0, RUN))


@triton.jit
def load_parameters(A_ptr, D_ptr, bias_ptr, k, channels, states, n, d, n_mask, d_mask):
    """A [N, D], D [D] and the bias [D] of a sequence, the last two zero where absent."""
    at = k * channels + d
    A = tl.load(A_ptr + at[None, :] * states + n[:, None], mask=n_mask[:, None] & d_mask[None, :], other=0.0)
    D = tl.zeros([d.shape[0]], tl.float32)
    if D_ptr is not None:
        D = tl.load(D_ptr + at, mask=d_mask, other=0.0)
    bias = tl.zeros([d.shape[0]], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + at, mask=d_mask, other=0.0)
    return A, D, bias


@triton.jit
def load_weight(weight_ptr, k, channels, rank, d, d_mask, BLOCK_R: tl.constexpr):
    """[R, D] in float32."""
    r = tl.arange(0, BLOCK_R)
    at = (k * channels + d)[None, :] * rank + r[:, None]
    return tl.load(weight_ptr + at, mask=d_mask[None, :] & (r < rank)[:, None], other=0.0)


@triton.jit
def dot(a, b):
    """A matrix product of float32 in full precision."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def load_low_rank(dt_row, pixel, stride, rank, mask, BLOCK_R: tl.constexpr):
    """[RUN, R]: the low-rank step sizes of a tile in float32, in which they are expanded."""
    r = tl.arange(0, BLOCK_R)
    at = dt_row + (pixel * stride)[:, None] + r[None, :]
    return tl.load(at, mask=mask[:, None] & (r < rank)[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_rows(row_ptr, pixel, stride, column, mask, column_mask):
    """[RUN, columns, 1]: the values of some columns at every pixel of a tile."""
    at = (pixel * stride)[:, None] + column[None, :]
    x = tl.load(row_ptr + at, mask=mask[:, None] & column_mask[None, :], other=0.0).to(tl.float32)
    return x[:, :, None]


@triton.jit
def load_B_and_C(B_row, C_row, pixel, B_stride, C_stride, n, mask, n_mask):
    """Both [RUN, N, 1], with a single load where N = 1.

    Triton takes a tile of 16 values to be free to load, and each thread would load all of it; 32 are loaded once, one a
    thread, and handed round.
    """
    if n.shape[0] == 1 and C_row is not None:
        is_B = (tl.arange(0, 2) == 0)[None, :]
        at = tl.where(is_B, B_row + (pixel * B_stride)[:, None], C_row + (pixel * C_stride)[:, None])
        B, C = tl.split(tl.load(at, mask=mask[:, None], other=0.0).to(tl.float32))
        return B[:, None, None], C[:, None, None]
    B = load_rows(B_row, pixel, B_stride, n, mask, n_mask)
    if C_row is not None:
        C = load_rows(C_row, pixel, C_stride, n, mask, n_mask)
    else:
        C = tl.where(mask[:, None, None] & n_mask[None, :, None], 1.0, 0.0)
    return B, C


@triton.jit
def load_step(
    dt_row, bias, weight, pixel, stride, rank, d, mask, d_mask, SOFTPLUS: tl.constexpr, BLOCK_R: tl.constexpr
):
    """[RUN, D, 1]: the step sizes of a tile; 0 where masked, which makes the decay 1 and the input 0."""
    if weight is not None:
        raw = dot(load_low_rank(dt_row, pixel, stride, rank, mask, BLOCK_R), weight)[:, :, None]
    else:
        raw = load_rows(dt_row, pixel, stride, d, mask, d_mask)
    step = raw + bias[None, :, None]
    if SOFTPLUS:
        step = softplus(step, exp_of_minus_abs(step))
    return tl.where(mask[:, None, None] & d_mask[None, :, None], step, 0.0)


@triton.jit
def store_rows(row_ptr, pixel, stride, column, x, mask, column_mask):
    """Write the values of some columns at every pixel of a tile."""
    at = (pixel * stride)[:, None] + column[None, :]
    x = tl.reshape(x, at.shape).to(row_ptr.dtype.element_ty)
    tl.store(row_ptr + at, x, mask=mask[:, None] & column_mask[None, :])
