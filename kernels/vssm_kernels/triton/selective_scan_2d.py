"""The selective scan of channels-last maps in Triton, forward and backward: nothing is laid out in sequences.

One program owns one image, one sequence and BLOCK_D channels, and walks it in tiles of RUN positions. The tile is that
of `selective_scan.py` with LANES = 1: channels lie side by side over the threads, which is how they lie in memory, and
each thread holds a run of positions in its registers, so the scan needs no exchange between threads at all.

Which pixels a route visits is a table on the device, four bytes a position beside the hundreds that are read there; any
path will do, and kernels are not compiled again for other routes or sizes of map.

Results that are summed over routes (the merged map, the gradient of a shared input) go to one map for each set of
routes that visit no pixel twice, and the maps are summed afterwards: deterministic, without atomics. The four routes of
a cross scan make four such maps, the disjoint strided routes of an atrous scan only one, which is the result itself.

In the forward a program can own a route and its twin, which visits the same pixels in opposite order, and write the
sum of the two: u is read and a result written once a pair. The twin enters a tile from the other side, so a pass before
finds its states between tiles. That is arithmetic for bytes; `tune.py` finds out which a device has to spare.

Where there are too few programs to fill a GPU (small batches of large maps), sequences are cut into chunks of tiles. A
first pass makes the chunks' totals (the sum of the step sizes, which gives the decay; the state at the end; for the
backward the gradient at the start); every program of the passes after it starts from the totals of the chunks before
its own.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..routes import Route, decode_routes, keep_tables, route_table
from ..scan_2d import scan_2d_bwd, scan_2d_fwd
from .selective_scan import (
    Blocks,
    _check_dtypes,
    _element,
    _exp_of_minus_abs,
    _on_device_of,
    _parameter,
    _reverse_runs,
    _scan_states,
    _softplus,
    _tile_gradients,
    selective_scan_bwd,
    selective_scan_fwd,
)
from .tune import choose_form

__all__ = ["selective_scan_2d_bwd", "selective_scan_2d_fwd", "selective_scan_bwd", "selective_scan_fwd"]

# Above this rank the step size is expanded by a matrix product before the scan.
MAX_RANK = 32
# The two-pass form is for fewer programs than this; it then makes about as many.
FEW_PROGRAMS = 1024
# Chunks shorter than this many tiles are not worth a pass of their own.
TILES_PER_CHUNK = 4
_ROUTE_FIELDS = tl.constexpr(5)


# What depends on the size of the map, and would have kernels compiled again by its divisors. From image to image it is
# counted in pixels, whose stride does not depend on the size and tells how rows are aligned.
_SIZES = ["pixels", "chunks", "tiles", "tiles_per_chunk", "u_image", "dt_image", "B_image", "C_image", "gy_image"]


@triton.jit
def _program(sequences, channels, chunks, BLOCK_D: tl.constexpr):
    """Block of channels, sequence, chunk, image of this program; channels, which of them exist."""
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    block = pid % blocks
    pid = pid // blocks
    k = pid % sequences
    pid = pid // sequences
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    return block, k, pid % chunks, (pid // chunks).to(tl.int64), d, d < channels


_INTERPRETED = tl.constexpr(not isinstance(_program, triton.JITFunction))


@triton.jit
def _tiles_of_route(route_ptr, chunk, tiles_per_chunk, RUN: tl.constexpr):
    """The first tile and the one after the last of those of a route that lie in a chunk, and the route's first tile in
    its sequence."""
    length = tl.load(route_ptr + 1)
    start = tl.load(route_ptr + 2)
    first = tl.maximum(chunk * tiles_per_chunk - start, 0)
    last = tl.minimum((chunk + 1) * tiles_per_chunk - start, tl.cdiv(length, RUN))
    return first, last, start


@triton.jit
def _pixels(order_ptr, route_ptr, tile, RUN: tl.constexpr):
    """The pixels that a route visits in one of its tiles, and which of the places hold one."""
    s = tile * RUN + tl.arange(0, RUN)
    # The table has whole tiles, filled up with -1, so that a thread reads its run of it at once.
    pixel = tl.load(order_ptr + tl.multiple_of(tl.load(route_ptr), RUN) + s)
    return pixel, pixel >= 0


@triton.jit
def _load_parameters(A_ptr, D_ptr, bias_ptr, k, channels, states, n, d, n_mask, d_mask):
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
def _load_weight(weight_ptr, dt_ptr, k, channels, rank, d, d_mask, BLOCK_R: tl.constexpr):
    """[R, D] in the dtype of dt."""
    r = tl.arange(0, BLOCK_R)
    at = (k * channels + d)[None, :] * rank + r[:, None]
    weight = tl.load(weight_ptr + at, mask=d_mask[None, :] & (r < rank)[:, None], other=0.0)
    return weight.to(dt_ptr.dtype.element_ty)


@triton.jit
def _dot(a, b):
    if _INTERPRETED:  # the interpreter multiplies the bits of bfloat16 as if they were integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _load_low_rank(dt_row, pixel, stride, rank, mask, BLOCK_R: tl.constexpr):
    r = tl.arange(0, BLOCK_R)
    return tl.load(dt_row + (pixel * stride)[:, None] + r[None, :], mask=mask[:, None] & (r < rank)[None, :], other=0.0)


@triton.jit
def _load_rows(row_ptr, pixel, stride, column, mask, column_mask):
    """[RUN, columns, 1]: the values of some columns at every pixel of a tile."""
    at = (pixel * stride)[:, None] + column[None, :]
    x = tl.load(row_ptr + at, mask=mask[:, None] & column_mask[None, :], other=0.0).to(tl.float32)
    return x[:, :, None]


@triton.jit
def _load_B_and_C(B_row, C_row, pixel, B_stride, C_stride, n, mask, n_mask):
    """Both [RUN, N, 1], with a single load where N = 1. A tile of 16 values counts as free to load for Triton, and each
    thread would load all of it; 32 are loaded once, one a thread, and handed round."""
    if n.shape[0] == 1 and C_row is not None:
        is_B = (tl.arange(0, 2) == 0)[None, :]
        at = tl.where(is_B, B_row + (pixel * B_stride)[:, None], C_row + (pixel * C_stride)[:, None])
        B, C = tl.split(tl.load(at, mask=mask[:, None], other=0.0).to(tl.float32))
        return B[:, None, None], C[:, None, None]
    B = _load_rows(B_row, pixel, B_stride, n, mask, n_mask)
    if C_row is not None:
        C = _load_rows(C_row, pixel, C_stride, n, mask, n_mask)
    else:
        C = tl.where(mask[:, None, None] & n_mask[None, :, None], 1.0, 0.0)
    return B, C


@triton.jit
def _load_step(
    dt_row, bias, weight, pixel, stride, rank, d, mask, d_mask, SOFTPLUS: tl.constexpr, BLOCK_R: tl.constexpr
):
    """[RUN, D, 1]: the step sizes of a tile; 0 where masked, which makes the decay 1 and the input 0."""
    if weight is not None:
        raw = _dot(_load_low_rank(dt_row, pixel, stride, rank, mask, BLOCK_R), weight)[:, :, None]
    else:
        raw = _load_rows(dt_row, pixel, stride, d, mask, d_mask)
    step = raw + bias[None, :, None]
    if SOFTPLUS:
        step = _softplus(step, _exp_of_minus_abs(step))
    return tl.where(mask[:, None, None] & d_mask[None, :, None], step, 0.0)


@triton.jit
def _store_rows(row_ptr, pixel, stride, column, x, mask, column_mask):
    at = (pixel * stride)[:, None] + column[None, :]
    x = tl.reshape(x, at.shape).to(row_ptr.dtype.element_ty)
    tl.store(row_ptr + at, x, mask=mask[:, None] & column_mask[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _scan_2d_kernel(
    u_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    bias_ptr,
    weight_ptr,
    gy_ptr,
    y_ptr,
    edges_ptr,
    steps_ptr,
    ends_ptr,
    starts_ptr,
    order_ptr,
    routes_ptr,
    first_route_ptr,
    members_ptr,
    twins_ptr,
    sequences,
    channels,
    states,
    rank,
    maps,
    pixels,
    chunks,
    tiles,
    tiles_per_chunk,
    u_image,
    u_stride_p,
    u_stride_k,
    dt_image,
    dt_stride_p,
    dt_stride_k,
    B_image,
    B_stride_p,
    B_stride_k,
    C_image,
    C_stride_p,
    C_stride_k,
    gy_image,
    gy_stride_p,
    gy_stride_r,
    MERGE: tl.constexpr,
    TOTALS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    RUN: tl.constexpr,
):
    """Write the results (y_ptr given), the state before every tile (edges_ptr) or the totals of the chunks (TOTALS).

    Not all sequences: those in `members_ptr`. With `twins_ptr`, the sum of the results of each and of its twin, which
    visits the same pixels in opposite order; the twins' edges are given.
    """
    _block, slot, chunk, batch, d, d_mask = _program(sequences, channels, chunks, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    n_mask = n < states
    nd_mask = n_mask[:, None] & d_mask[None, :]
    nd = n[:, None] * channels + d[None, :]
    k = slot
    if members_ptr is not None:
        k = tl.load(members_ptr + slot)
    A, D, bias = _load_parameters(A_ptr, D_ptr, bias_ptr, k, channels, states, n, d, n_mask, d_mask)
    weight = None
    if weight_ptr is not None:
        weight = _load_weight(weight_ptr, dt_ptr, k, channels, rank, d, d_mask, BLOCK_R)
    A_log2 = A * 1.4426950408889634
    u_row = u_ptr + batch * u_image * u_stride_p + k * u_stride_k
    dt_row = dt_ptr + batch * dt_image * dt_stride_p + k * dt_stride_k
    B_row = B_ptr + batch * B_image * B_stride_p + k * B_stride_k
    C_row = None
    if C_ptr is not None:
        C_row = C_ptr + batch * C_image * C_stride_p + k * C_stride_k
    if twins_ptr is not None:
        twin = tl.load(twins_ptr + slot)
        twin_A, twin_D, twin_bias = _load_parameters(
            A_ptr, D_ptr, bias_ptr, twin, channels, states, n, d, n_mask, d_mask
        )
        twin_weight = None
        if weight_ptr is not None:
            twin_weight = _load_weight(weight_ptr, dt_ptr, twin, channels, rank, d, d_mask, BLOCK_R)
        twin_A_log2 = twin_A * 1.4426950408889634
        D += twin_D
        twin_dt_row = dt_ptr + batch * dt_image * dt_stride_p + twin * dt_stride_k
        twin_B_row = B_ptr + batch * B_image * B_stride_p + twin * B_stride_k
        twin_C_row = None
        if C_ptr is not None:
            twin_C_row = C_ptr + batch * C_image * C_stride_p + twin * C_stride_k

    total = (batch * sequences + slot) * chunks  # the place of the first chunk
    state = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if TOTALS:
        steps = tl.zeros([BLOCK_D], tl.float32)
        gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        passed = tl.zeros([BLOCK_N, BLOCK_D], tl.float32) + 1.0
    elif ends_ptr is not None:
        for c in range(0, chunk):
            step_sum = tl.load(steps_ptr + (total + c) * channels + d, mask=d_mask, other=0.0)
            end = tl.load(ends_ptr + (total + c) * states * channels + nd, mask=nd_mask, other=0.0)
            state = tl.exp2(step_sum[None, :] * A_log2) * state + end

    for route in range(tl.load(first_route_ptr + k), tl.load(first_route_ptr + k + 1)):
        route_ptr = routes_ptr + route * _ROUTE_FIELDS
        first, last, start = _tiles_of_route(route_ptr, chunk, tiles_per_chunk, RUN)
        if y_ptr is not None:
            map_ = route
            if MERGE:
                map_ = tl.load(route_ptr + 3)
            y_row = y_ptr + (batch * pixels * maps + map_) * channels
        for tile in range(first, last):
            pixel, mask = _pixels(order_ptr, route_ptr, tile, RUN)
            u = _load_rows(u_row, pixel, u_stride_p, d, mask, d_mask)
            step = _load_step(dt_row, bias, weight, pixel, dt_stride_p, rank, d, mask, d_mask, SOFTPLUS, BLOCK_R)
            B, C = _load_B_and_C(B_row, C_row, pixel, B_stride_p, C_stride_p, n, mask, n_mask)
            if y_ptr is None and edges_ptr is not None:
                edge = ((batch * sequences + slot) * tiles + start + tile) * states * channels
                tl.store(edges_ptr + edge + nd, state, mask=nd_mask)
            decay = tl.exp2(step[:, None, :, :] * A_log2[None, :, :, None])
            inputs = (step * u)[:, None, :, :] * B[:, :, None, :]
            h, state, decays = _scan_states(decay, inputs, state, RUN, 1)

            if y_ptr is not None:
                if C_ptr is not None:
                    h *= C[:, :, None, :]
                y = tl.sum(h, 1)
                if twins_ptr is not None:
                    step = _load_step(
                        twin_dt_row,
                        twin_bias,
                        twin_weight,
                        pixel,
                        dt_stride_p,
                        rank,
                        d,
                        mask,
                        d_mask,
                        SOFTPLUS,
                        BLOCK_R,
                    )
                    B, C = _load_B_and_C(twin_B_row, twin_C_row, pixel, B_stride_p, C_stride_p, n, mask, n_mask)
                    decay = tl.exp2(step[:, None, :, :] * twin_A_log2[None, :, :, None])
                    inputs = (step * u)[:, None, :, :] * B[:, :, None, :]
                    # The twin's tiles are the same ones, the last first.
                    edge = ((batch * sequences + slot) * tiles + last - 1 - tile) * states * channels
                    before = tl.load(edges_ptr + edge + nd, mask=nd_mask, other=0.0)
                    decay = _reverse_runs(decay, RUN, BLOCK_N, BLOCK_D, 1)
                    inputs = _reverse_runs(inputs, RUN, BLOCK_N, BLOCK_D, 1)
                    h, _state, _decays = _scan_states(decay, inputs, before, RUN, 1)
                    h = _reverse_runs(h, RUN, BLOCK_N, BLOCK_D, 1)
                    if C_ptr is not None:
                        h *= C[:, :, None, :]
                    y += tl.sum(h, 1)
                if D_ptr is not None:
                    y += D[None, :, None] * u
                _store_rows(y_row, pixel, maps * channels, d, y, mask, d_mask)
            if TOTALS:
                steps += tl.sum(tl.reshape(step, [RUN, BLOCK_D]), 0)
                if gy_ptr is not None:
                    gy_row = gy_ptr + batch * gy_image * gy_stride_p + route * gy_stride_r
                    gh = _load_rows(gy_row, pixel, gy_stride_p, d, mask, d_mask)[:, None, :, :]
                    if C_ptr is not None:
                        gh *= C[:, :, None, :]
                    gradient += passed * tl.reshape(tl.sum(decays * gh, 0), [BLOCK_N, BLOCK_D])
                    passed *= tl.reshape(_element(decays, RUN - 1, 0, 4), [BLOCK_N, BLOCK_D])

    if TOTALS:
        total += chunk
        tl.store(steps_ptr + total * channels + d, steps, mask=d_mask)
        tl.store(ends_ptr + total * states * channels + nd, state, mask=nd_mask)
        if gy_ptr is not None:
            tl.store(starts_ptr + total * states * channels + nd, gradient, mask=nd_mask)


@triton.jit(do_not_specialize=_SIZES)
def _scan_2d_bwd_kernel(
    gy_ptr,
    u_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    bias_ptr,
    weight_ptr,
    edges_ptr,
    steps_ptr,
    starts_ptr,
    gu_ptr,
    gdt_ptr,
    gA_ptr,
    gB_ptr,
    gC_ptr,
    gD_ptr,
    gbias_ptr,
    gweight_ptr,
    order_ptr,
    routes_ptr,
    first_route_ptr,
    sequences,
    channels,
    states,
    rank,
    maps,
    columns,
    pixels,
    chunks,
    tiles,
    tiles_per_chunk,
    gy_image,
    gy_stride_p,
    gy_stride_r,
    u_image,
    u_stride_p,
    u_stride_k,
    dt_image,
    dt_stride_p,
    dt_stride_k,
    B_image,
    B_stride_p,
    B_stride_k,
    C_image,
    C_stride_p,
    C_stride_k,
    OWN_INPUT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    RUN: tl.constexpr,
):
    """Gradients of u and of a full dt; partial sums of those of B, C and a low-rank dt for every block of channels, of
    those of A, D, bias and weight for every image and chunk."""
    block, k, chunk, batch, d, d_mask = _program(sequences, channels, chunks, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    n_mask = n < states
    nd_mask = n_mask[:, None] & d_mask[None, :]
    nd = n[:, None] * channels + d[None, :]
    A, D, bias = _load_parameters(A_ptr, D_ptr, bias_ptr, k, channels, states, n, d, n_mask, d_mask)
    r = tl.arange(0, BLOCK_R)
    if weight_ptr is not None:
        weight = _load_weight(weight_ptr, dt_ptr, k, channels, rank, d, d_mask, BLOCK_R)
        gweight = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)

    u_row = u_ptr + batch * u_image * u_stride_p + k * u_stride_k
    dt_row = dt_ptr + batch * dt_image * dt_stride_p + k * dt_stride_k
    B_row = B_ptr + batch * B_image * B_stride_p + k * B_stride_k
    C_row = None
    if C_ptr is not None:
        C_row = C_ptr + batch * C_image * C_stride_p + k * C_stride_k
    images = tl.num_programs(0) // (tl.cdiv(channels, BLOCK_D) * sequences * chunks)
    partial = (block * images.to(tl.int64) + batch) * pixels * columns

    from_right = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if starts_ptr is not None:
        total = (batch * sequences + k) * chunks
        for i in range(0, chunks - 1 - chunk):
            c = chunks - 1 - i
            step_sum = tl.load(steps_ptr + (total + c) * channels + d, mask=d_mask, other=0.0)
            first_gradient = tl.load(starts_ptr + (total + c) * states * channels + nd, mask=nd_mask, other=0.0)
            from_right = tl.exp2(step_sum[None, :] * (A * 1.4426950408889634)) * from_right + first_gradient
    gA = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    gD = tl.zeros([BLOCK_D], tl.float32)
    gbias = tl.zeros([BLOCK_D], tl.float32)

    first_route = tl.load(first_route_ptr + k)
    last_route = tl.load(first_route_ptr + k + 1)
    for i in range(first_route, last_route):
        route = first_route + last_route - 1 - i
        route_ptr = routes_ptr + route * _ROUTE_FIELDS
        first, last, start = _tiles_of_route(route_ptr, chunk, tiles_per_chunk, RUN)
        column = tl.load(route_ptr + 4)
        map_ = column
        if not OWN_INPUT:
            map_ = tl.load(route_ptr + 3)
        gu_row = gu_ptr + (batch * pixels * maps + map_) * channels
        gy_row = gy_ptr + batch * gy_image * gy_stride_p + route * gy_stride_r
        for j in range(first, last):
            tile = first + last - 1 - j
            pixel, mask = _pixels(order_ptr, route_ptr, tile, RUN)
            td_mask = mask[:, None, None] & d_mask[None, :, None]
            if weight_ptr is not None:
                low_rank = _load_low_rank(dt_row, pixel, dt_stride_p, rank, mask, BLOCK_R)
                raw = _dot(low_rank, weight)[:, :, None]
            else:
                raw = _load_rows(dt_row, pixel, dt_stride_p, d, mask, d_mask)
            raw += bias[None, :, None]
            step = raw
            e = _exp_of_minus_abs(raw)
            if SOFTPLUS:
                step = _softplus(raw, e)
            step = tl.where(td_mask, step, 0.0)
            u = _load_rows(u_row, pixel, u_stride_p, d, mask, d_mask)
            gy = _load_rows(gy_row, pixel, gy_stride_p, d, mask, d_mask)
            B, C = _load_B_and_C(B_row, C_row, pixel, B_stride_p, C_stride_p, n, mask, n_mask)
            edge = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            if edges_ptr is not None:  # absent when there is but one tile
                at = ((batch * sequences + k) * tiles + start + tile) * states * channels
                edge = tl.load(edges_ptr + at + nd, mask=nd_mask, other=0.0)
            gu, gdelta, gA_tile, gB, gC, from_right = _tile_gradients(
                gy, u, raw, e, step, A, B, C, edge, from_right, SOFTPLUS, RUN, BLOCK_N, BLOCK_D, 1
            )
            gA += tl.reshape(gA_tile, [BLOCK_N, BLOCK_D])
            _store_rows(gB_ptr + (partial + column) * states, pixel, columns * states, n, gB, mask, n_mask)
            if C_ptr is not None:
                _store_rows(gC_ptr + (partial + column) * states, pixel, columns * states, n, gC, mask, n_mask)
            if D_ptr is not None:
                gu += gy * D[None, :, None]
                gD += tl.sum(tl.reshape(gy * u, [RUN, BLOCK_D]), 0)
            gdelta = tl.where(td_mask, gdelta, 0.0)
            gdelta = tl.reshape(gdelta, [RUN, BLOCK_D])
            gbias += tl.sum(gdelta, 0)
            _store_rows(gu_row, pixel, maps * channels, d, gu, mask, d_mask)
            if weight_ptr is not None:
                gdelta = gdelta.to(dt_ptr.dtype.element_ty)
                gdt = _dot(gdelta, tl.trans(weight))
                _store_rows(gdt_ptr + (partial + column) * rank, pixel, columns * rank, r, gdt, mask, r < rank)
                gweight += _dot(tl.trans(low_rank), gdelta)
            else:
                gdt_row = gdt_ptr + (batch * pixels * columns + column) * channels
                _store_rows(gdt_row, pixel, columns * channels, d, gdelta, mask, d_mask)

    parameter = (batch * chunks + chunk) * sequences + k
    tl.store(gA_ptr + parameter * states * channels + nd, gA, mask=nd_mask)
    if D_ptr is not None:
        tl.store(gD_ptr + parameter * channels + d, gD, mask=d_mask)
    if bias_ptr is not None:
        tl.store(gbias_ptr + parameter * channels + d, gbias, mask=d_mask)
    if weight_ptr is not None:
        at = parameter * rank * channels + r[:, None] * channels + d[None, :]
        tl.store(gweight_ptr + at, gweight, mask=d_mask[None, :] & (r < rank)[:, None])


# --------------------------------------------------------------------------------------------------------------------
# routes as tables


class _Walk(NamedTuple):
    """The sequences on one size of map.

    Routes with the same map visit no pixel twice, nor do those with the same column, which belong to one sequence.
    """

    order: Tensor  # the pixels in the order visited, route after route, each filled up with -1 to whole tiles
    table: Tensor  # (routes, 5): where the route starts in `order`, length, first tile in its sequence, map, column
    first_route: Tensor  # (K + 1,): the first route of each sequence
    routes: list[tuple[int, int]]  # the same, with the one after the last
    tiles: int
    maps: int
    columns: int
    # Whether all maps, columns, routes visit every pixel
    maps_covered: bool
    columns_covered: bool
    routes_covered: bool
    pairs: Tensor | None  # (2, K / 2): the sequences and their twins, which visit the same pixels in opposite order


def _are_disjoint(a: Route, b: Route) -> bool:
    """Whether two routes share no pixel of any map."""
    return any((a.offset[i] - b.offset[i]) % gcd(a.stride[i], b.stride[i]) for i in range(2))


def _sets_of_disjoint(routes: list[Route]) -> list[int]:
    """The number of the set that each route is in; no two routes of a set share a pixel."""
    numbers: list[int] = []
    for i, route in enumerate(routes):
        taken = {numbers[j] for j in range(i) if not _are_disjoint(route, routes[j])}
        numbers.append(next(number for number in range(i + 1) if number not in taken))
    return numbers


def _pairs(orders: list[list[Tensor]]) -> list[tuple[int, int]]:
    """Sequences of one route that visit the same pixels in opposite order, if every one has such a twin; else none."""
    pairs, left = [], list(range(len(orders)))
    while left:
        k = left.pop(0)
        twins = [i for i in left if len(orders[k]) == len(orders[i]) == 1 and orders[k][0].equal(orders[i][0].flip(0))]
        if not twins:
            return []
        left.remove(twins[0])
        pairs.append((k, twins[0]))
    return pairs


@keep_tables
def _walk(code: tuple[int, ...], height: int, width: int, run: int, paired: bool, device: torch.device) -> _Walk:
    """`paired`: a pair's results, if there are pairs, go to one map."""
    sequences = decode_routes(code)
    visited = route_table(code, height, width)
    visits = [[visited.route(i) for i in range(*ends)] for ends in pairwise(visited.first_route)]
    pairs = _pairs(visits)
    twins = [twin for _, twin in pairs]
    maps = _sets_of_disjoint([route for sequence in sequences for route in sequence])
    if paired and pairs:
        for pair, number in zip(pairs, _sets_of_disjoint([sequences[k][0] for k, _ in pairs]), strict=True):
            for k in pair:
                maps[k] = number
    one_each = all(max(_sets_of_disjoint(sequence)) == 0 for sequence in sequences)
    orders, table = [], []
    first_route, tiles = [0], [0] * len(sequences)
    places = 0
    for k in range(len(sequences)):
        for order in visits[k]:
            number, length, needed = len(table), len(order), triton.cdiv(len(order), run)
            filling = order.new_full((needed * run - length,), -1)
            orders += [filling, order] if k in twins else [order, filling]  # the tiles of twins are the same
            table.append([places, length, tiles[k], maps[number], k if one_each else number])
            places += needed * run
            tiles[k] += needed
        first_route.append(len(table))

    def covered(field: int, without: Sequence[int] = ()) -> bool:
        visited = [0] * (1 + max(row[field] for row in table))
        for number, row in enumerate(table):
            visited[row[field]] += 0 if number in without else row[1]
        return min(visited) == height * width

    return _Walk(
        torch.cat(orders).to(device),
        torch.tensor(table, dtype=torch.int32, device=device),
        torch.tensor(first_route, dtype=torch.int32, device=device),
        list(zip(first_route[:-1], first_route[1:], strict=True)),
        max(tiles),
        max(maps) + 1,
        len(sequences) if one_each else len(table),
        covered(3, twins if paired else ()),
        covered(4),
        all(row[1] == height * width for row in table),
        torch.tensor(pairs, dtype=torch.int32, device=device).mT.contiguous() if pairs else None,
    )


# --------------------------------------------------------------------------------------------------------------------
# launchers


def choose_blocks_2d(channels: int, states: int, backward: bool = False) -> Blocks:
    """Blocks read off the code compiled for sm_90 (registers, spills, instructions), not timed on a device.

    16 positions are the least that a matrix product takes, with which a low-rank step size is expanded. Threads hold 16
    values of a tile for few states, 32 for many; all the positions of a run stay in one thread.
    """
    block_n = triton.next_power_of_2(states)
    block_d = 16 if backward and block_n >= 8 else min(32, max(16, triton.next_power_of_2(channels)))
    run = 16 if block_n <= 32 else max(2, 512 // block_n)
    few = backward and block_n < 8
    num_warps = min(16, max(1, block_n * block_d // (32 if few else 64)))
    return Blocks(block_d, block_n, run, 1, num_warps)


class _Form(NamedTuple):
    """How a scan of maps is cut up, and whether the sum of a pair of sequences is made in one program."""

    blocks: Blocks
    paired: bool = False


def _forms(channels: int, states: int, backward: bool, can_pair: bool) -> tuple[_Form, ...]:
    """What is worth timing, the default first: blocks of twice and half as many channels, as many values a thread; the
    sum of a pair in one program. More states or other runs took more instructions in every case compiled."""
    blocks = choose_blocks_2d(channels, states, backward)
    forms = [_Form(blocks)]
    if blocks.block_d < channels and blocks.num_warps < 16:
        forms.append(_Form(blocks._replace(block_d=2 * blocks.block_d, num_warps=2 * blocks.num_warps)))
    if blocks.num_warps > 1:
        forms.append(_Form(blocks._replace(block_d=blocks.block_d // 2, num_warps=blocks.num_warps // 2)))
    if can_pair and blocks.block_n <= 2:
        forms.append(_Form(blocks, paired=True))
    return tuple(forms)


def _choose(inputs: Sequence[Tensor | None], code: Sequence[int], kind: tuple, can_pair: bool, call: Callable) -> _Form:
    """The form in which to `call` a scan of these eight inputs; `kind`: the op, its dtypes, whether results are merged.

    It depends on that, on buckets of N, C and R and on whether a program a sequence fills a GPU; not on the batch and
    the size of the map beyond that, so that no other size is timed again.
    """
    u, dt, A, *_, weight = inputs
    channels, (sequences, _, states) = u.shape[-1], A.shape
    backward = kind[0] == "backward"
    blocks = choose_blocks_2d(channels, states, backward)
    fills = u.shape[0] * sequences * triton.cdiv(channels, blocks.block_d) >= FEW_PROGRAMS
    can_pair = can_pair and fills and u.dim() == 4
    if can_pair:
        can_pair = _walk(tuple(code), *u.shape[1:3], blocks.run, True, u.device).pairs is not None
    rank = 0 if weight is None or weight.shape[2] > MAX_RANK else max(16, triton.next_power_of_2(weight.shape[2]))
    kind = (*kind, u.dtype, dt.dtype, u.dim(), rank, fills)
    forms = _forms(channels, states, backward, can_pair)
    return choose_form((_scan_2d_kernel, _scan_2d_bwd_kernel), kind, forms, call, u)


def _as_map(x: Tensor | None) -> tuple[Tensor | None, tuple[int, int, int]]:
    """`x` (Bt, H, W, [K,] C), copied where its rows, columns and images are no one stride apart; the pixels from an
    image to the next, the strides of pixel and sequence."""
    if x is None:
        return None, (0, 0, 0)
    images, height, width = x.shape[:3]
    image, down, right, *_ = x.stride()
    pixel = right if width > 1 else down
    rows_apart = height > 1 and width > 1 and down != width * right
    if (x.shape[-1] > 1 and x.stride(-1) != 1) or rows_apart or (images > 1 and (pixel == 0 or image % pixel)):
        return _as_map(x.clone(memory_format=torch.contiguous_format))
    return x, (image // pixel if images > 1 else 0, pixel, x.stride(3) if x.dim() == 5 else 0)


def _fits(code: Sequence[int], u: Tensor, *maps: Tensor | None) -> bool:
    """Whether offsets within an image stay below 32 bits, which spares the kernels half of their integer arithmetic."""
    maps = (u, *(x for x in maps if x is not None))
    routes = sum(map(len, decode_routes(code)))
    written = u.shape[1] * u.shape[2] * routes * max(x.shape[-1] for x in maps)
    # A view's pixels may lie further apart than a copy's.
    furthest = [sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in maps]
    return max(written, *furthest) < 2**31


class _Launch:
    """What the passes of one scan have in common: inputs as the kernels take them, blocks, chunks."""

    def __init__(self, u, dt, A, B, C, D, bias, weight, code, softplus, backward, blocks, chunks, paired=False):
        self.batch, self.height, self.width = u.shape[:3]
        self.channels, self.states, self.sequences = u.shape[-1], A.shape[2], A.shape[0]
        self.blocks = blocks or choose_blocks_2d(self.channels, self.states, backward)
        self.dt_is_low_rank = weight is not None and weight.shape[2] <= MAX_RANK and self.blocks.run >= 16
        if weight is not None and not self.dt_is_low_rank:
            dt, weight = _expand(dt, weight), None
        self.rank = 0 if weight is None else weight.shape[2]
        (u, u_stride), (dt, dt_stride), (B, B_stride), (C, C_stride) = map(_as_map, (u, dt, B, C))
        self.maps = (u, dt, _parameter(A), B, C, _parameter(D), _parameter(bias), _parameter(weight))
        self.strides = (*u_stride, *dt_stride, *B_stride, *C_stride)
        self.own_input, self.device = u.dim() == 5, u.device
        self.walk = _walk(tuple(code), self.height, self.width, self.blocks.run, paired, u.device)
        self.pixels = self.height * self.width
        self.d_blocks = triton.cdiv(self.channels, self.blocks.block_d)
        self.slots = self.sequences
        if paired:
            if self.walk.pairs is None or self.own_input:
                raise ValueError("only sequences that visit the same pixels of one map in opposite order can be paired")
            self.slots, chunks = self.sequences // 2, 1
        programs = self.batch * self.slots * self.d_blocks
        if chunks is None:
            chunks = min(triton.cdiv(FEW_PROGRAMS, programs), self.walk.tiles // TILES_PER_CHUNK)
        self.tiles_per_chunk = max(1, triton.cdiv(self.walk.tiles, max(1, chunks)))
        self.chunks = max(1, triton.cdiv(self.walk.tiles, self.tiles_per_chunk))
        self.grid = (programs * self.chunks,)
        self.constants = {
            "SOFTPLUS": softplus,
            "BLOCK_D": self.blocks.block_d,
            "BLOCK_N": self.blocks.block_n,
            "BLOCK_R": max(16, triton.next_power_of_2(self.rank)),
            "RUN": self.blocks.run,
            "num_warps": self.blocks.num_warps,
            "num_stages": 1,
        }

    def scratch(self, *shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
        return (torch.zeros if zeros else torch.empty)(shape, dtype=dtype, device=self.device)

    def sizes(self) -> tuple[int, ...]:
        return self.pixels, self.chunks, self.walk.tiles, self.tiles_per_chunk

    def totals(self, grad: Tensor | None = None, grad_stride: tuple[int, ...] = (0, 0, 0)) -> tuple[Tensor | None, ...]:
        """For each chunk the sum of the step sizes, the state at its end and, for `grad`, what `starts` needs."""
        if self.chunks == 1:
            return None, None, None
        shape = (self.batch, self.sequences, self.chunks)
        steps = self.scratch(*shape, self.channels)
        ends = self.scratch(*shape, self.states, self.channels)
        starts = None if grad is None else self.scratch(*shape, self.states, self.channels)
        self.scan(steps=steps, ends=ends, starts=starts, grad=grad, grad_stride=grad_stride, totals=True)
        return steps, ends, starts

    def scan(
        self,
        y=None,
        edges=None,
        steps=None,
        ends=None,
        starts=None,
        grad=None,
        grad_stride=(0, 0, 0),
        maps=0,
        merge=False,
        totals=False,
        members=None,
        twins=None,
    ) -> None:
        _scan_2d_kernel[self.grid](
            *self.maps,
            grad,
            y,
            edges,
            steps,
            ends,
            starts,
            self.walk.order,
            self.walk.table,
            self.walk.first_route,
            members,
            twins,
            self.slots,
            self.channels,
            self.states,
            self.rank,
            maps,
            *self.sizes(),
            *self.strides,
            *grad_stride,
            MERGE=merge,
            TOTALS=totals,
            **self.constants,
        )


def _expand(dt: Tensor, weight: Tensor) -> Tensor:
    """The step size (Bt, H, W, K, D) of the low-rank one (Bt, H, W, K, R) in its dtype; K lies outermost in memory."""
    low_rank = dt.flatten(0, 2).transpose(0, 1)
    return torch.bmm(low_rank, weight.to(dt.dtype).mT).unflatten(1, dt.shape[:3]).permute(1, 2, 3, 0, 4)


def _sum_maps(maps: Tensor) -> Tensor:
    """(Bt, H, W, maps, D) summed over the maps; PyTorch sums halves in float32 and rounds once."""
    return maps.squeeze(3) if maps.shape[3] == 1 else maps.sum(3)


def selective_scan_2d_fwd(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    code: Sequence[int],
    delta_softplus: bool,
    merge: bool,
    out_dtype: torch.dtype,
    blocks: Blocks | None = None,
    chunks: int | None = None,
    paired: bool = False,
) -> Tensor:
    """See `scan_2d.scan_2d_fwd`. `blocks` and `chunks` override the choice of tiles and of the two-pass form.

    A result that several routes are summed into is rounded to `out_dtype` once a route, before a sum in float32; once
    a pair of routes where they are `paired`.
    """
    tensors = (u, dt, A, B, C, D, delta_bias, dt_weight)
    if paired and not merge:
        raise ValueError("results that are kept apart cannot be paired")
    if not _fits(code, u, dt, B, C):
        return scan_2d_fwd(selective_scan_fwd, *tensors, code, delta_softplus, merge, out_dtype)
    _check_dtypes(**{name: x for name, x in (("u", u), ("dt", dt), ("B", B), ("C", C)) if x is not None})
    if blocks is None and chunks is None and not paired:

        def call(form: _Form) -> Tensor:
            return selective_scan_2d_fwd(
                *tensors, code, delta_softplus, merge, out_dtype, form.blocks, None, form.paired
            )

        blocks, paired = _choose(tensors, code, ("forward", out_dtype, merge), merge, call)
    launch = _Launch(*tensors, code, delta_softplus, False, blocks, chunks, paired)
    walk = launch.walk
    maps, covered = (walk.maps, walk.maps_covered) if merge else (len(walk.table), walk.routes_covered)
    y = launch.scratch(*u.shape[:3], maps, launch.channels, dtype=out_dtype, zeros=not covered)
    with _on_device_of(u):
        if paired:
            members, twins = walk.pairs
            edges = launch.scratch(launch.batch, launch.slots, walk.tiles, launch.states, launch.channels)
            launch.scan(edges=edges, members=twins)
            launch.scan(y=y, edges=edges, maps=maps, merge=merge, members=members, twins=twins)
        else:
            steps, ends, _ = launch.totals()
            launch.scan(y=y, steps=steps, ends=ends, maps=maps, merge=merge)
    return _sum_maps(y) if merge else y


def _sum_columns(x: Tensor, walk: _Walk, sequences: int, dtype: torch.dtype) -> Tensor:
    """(Bt, H, W, columns, C), a column a sequence or a route, to (Bt, H, W, K, C)."""
    if walk.columns != sequences:
        x = torch.stack([x[:, :, :, a:b].sum(3) for a, b in walk.routes], 3)
    return x.to(dtype)


def selective_scan_2d_bwd(
    grad: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    code: Sequence[int],
    delta_softplus: bool,
    merge: bool,
    blocks: Blocks | None = None,
    chunks: int | None = None,
) -> tuple[Tensor | None, ...]:
    """See `scan_2d.scan_2d_bwd`. The same bits in every run. `blocks` and `chunks` as in the forward."""
    tensors = (u, dt, A, B, C, D, delta_bias, dt_weight)
    if not _fits(code, u, dt, B, C):
        return scan_2d_bwd(selective_scan_bwd, grad, *tensors, code, delta_softplus, merge)
    _check_dtypes(grad=grad, **{name: x for name, x in (("u", u), ("dt", dt), ("B", B), ("C", C)) if x is not None})
    if blocks is None and chunks is None:

        def call(form: _Form) -> tuple[Tensor | None, ...]:
            return selective_scan_2d_bwd(grad, *tensors, code, delta_softplus, merge, form.blocks)

        blocks = _choose(tensors, code, ("backward", grad.dtype, merge), False, call).blocks
    launch = _Launch(*tensors, code, delta_softplus, True, blocks, chunks)
    walk, shape, sequences = launch.walk, u.shape[:3], launch.sequences
    channels, states, rank = launch.channels, launch.states, launch.rank
    grad, grad_stride = _as_map(grad)
    edges = None
    if walk.tiles > 1:
        edges = launch.scratch(launch.batch, sequences, walk.tiles, states, channels)

    def columns(*outer: int, last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return launch.scratch(*outer, *shape, walk.columns, last, dtype=dtype, zeros=not walk.columns_covered)

    def parameter(like: Tensor | None, *last: int) -> Tensor | None:
        return None if like is None else launch.scratch(launch.batch, launch.chunks, sequences, *last, channels)

    if launch.own_input:
        grad_u = columns(last=channels, dtype=u.dtype)
    else:
        grad_u = launch.scratch(*shape, walk.maps, channels, dtype=u.dtype, zeros=not walk.maps_covered)
    low_rank = launch.dt_is_low_rank
    grad_dt = columns(launch.d_blocks, last=rank) if low_rank else columns(last=channels, dtype=dt.dtype)
    grad_B = columns(launch.d_blocks, last=states)
    grad_C = None if C is None else columns(launch.d_blocks, last=states)
    grad_A, grad_D, grad_bias = parameter(A, states), parameter(D), parameter(delta_bias)
    grad_weight = parameter(dt_weight, rank) if low_rank else None
    with _on_device_of(u):
        steps, ends, starts = launch.totals(grad, grad_stride)
        if edges is not None:
            launch.scan(edges=edges, steps=steps, ends=ends)
        _scan_2d_bwd_kernel[launch.grid](
            grad,
            *launch.maps,
            edges,
            steps,
            starts,
            grad_u,
            grad_dt,
            grad_A,
            grad_B,
            grad_C,
            grad_D,
            grad_bias,
            grad_weight,
            walk.order,
            walk.table,
            walk.first_route,
            sequences,
            channels,
            states,
            rank,
            walk.columns if launch.own_input else walk.maps,
            walk.columns,
            *launch.sizes(),
            *grad_stride,
            *launch.strides,
            OWN_INPUT=launch.own_input,
            **launch.constants,
        )

    def of_blocks(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else _sum_columns(x.sum(0), walk, sequences, dtype)

    def of_images(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.sum((0, 1))

    if low_rank:
        grad_dt, grad_weight = of_blocks(grad_dt, dt.dtype), of_images(grad_weight).mT.contiguous()
    else:
        grad_dt = _sum_columns(grad_dt, walk, sequences, dt.dtype)
        if dt_weight is not None:
            grad_dt, grad_weight = _unexpand(grad_dt, dt, dt_weight)
    if launch.own_input:
        grad_u = _sum_columns(grad_u, walk, sequences, u.dtype)
    else:
        grad_u = _sum_maps(grad_u)
    return (
        grad_u,
        grad_dt,
        of_images(grad_A).mT.contiguous(),
        of_blocks(grad_B, B.dtype),
        of_blocks(grad_C, B.dtype),
        of_images(grad_D),
        of_images(grad_bias),
        grad_weight,
    )


def _unexpand(grad: Tensor, dt: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the two arguments of `_expand`."""
    shape = grad.shape[:3]
    grad = grad.flatten(0, 2).transpose(0, 1)  # (K, Bt H W, D)
    low_rank = dt.flatten(0, 2).transpose(0, 1)
    grad_dt = torch.bmm(grad, weight.to(grad.dtype)).transpose(0, 1).unflatten(0, shape).contiguous()
    return grad_dt, torch.bmm(grad.mT, low_rank).to(torch.float32)
