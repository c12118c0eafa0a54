"""The kernel of the forward scan of maps, which also makes what the backward and the two-pass form begin with."""

import triton
import triton.language as tl

from .map_tiles import (
    ROUTE_FIELDS,
    SIZES,
    load_B_and_C,
    load_parameters,
    load_rows,
    load_step,
    load_weight,
    pixels_of_tile,
    program,
    store_rows,
    tiles_of_route,
)
from .tiles import element, reverse_runs, scan_states

__all__ = ["scan_2d_kernel"]


@triton.jit(do_not_specialize=SIZES)
def scan_2d_kernel(
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
    AHEAD: tl.constexpr,
):
    """Write the results (y_ptr given), the state before every tile (edges_ptr) or the totals of the chunks (TOTALS).

    Not all sequences: those in `members_ptr`. With `twins_ptr`, the sum of the results of each and of its twin, which
    visits the same pixels in opposite order; the twins' edges are given. With AHEAD, the pixels of the next tile are
    looked up while a tile is scanned.
    """
    _block, slot, chunk, batch, d, d_mask = program(sequences, channels, chunks, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    n_mask = n < states
    nd_mask = n_mask[:, None] & d_mask[None, :]
    nd = n[:, None] * channels + d[None, :]
    k = slot
    if members_ptr is not None:
        k = tl.load(members_ptr + slot)
    A, D, bias = load_parameters(A_ptr, D_ptr, bias_ptr, k, channels, states, n, d, n_mask, d_mask)
    weight = None
    if weight_ptr is not None:
        weight = load_weight(weight_ptr, k, channels, rank, d, d_mask, BLOCK_R)
    A_log2 = A * 1.4426950408889634
    u_row = u_ptr + batch * u_image * u_stride_p + k * u_stride_k
    dt_row = dt_ptr + batch * dt_image * dt_stride_p + k * dt_stride_k
    B_row = B_ptr + batch * B_image * B_stride_p + k * B_stride_k
    C_row = None
    if C_ptr is not None:
        C_row = C_ptr + batch * C_image * C_stride_p + k * C_stride_k
    if twins_ptr is not None:
        twin = tl.load(twins_ptr + slot)
        twin_A, twin_D, twin_bias = load_parameters(
            A_ptr, D_ptr, bias_ptr, twin, channels, states, n, d, n_mask, d_mask
        )
        twin_weight = None
        if weight_ptr is not None:
            twin_weight = load_weight(weight_ptr, twin, channels, rank, d, d_mask, BLOCK_R)
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
        route_ptr = routes_ptr + route * ROUTE_FIELDS
        order, first, last, start = tiles_of_route(order_ptr, route_ptr, chunk, tiles_per_chunk, RUN)
        if y_ptr is not None:
            map_ = route
            if MERGE:
                map_ = tl.load(route_ptr + 3)
            y_row = y_ptr + (batch * pixels * maps + map_) * channels
        if AHEAD:  # of a tile more than there may be, which the table holds
            coming = pixels_of_tile(order, tl.maximum(tl.minimum(first, last), 0), RUN)
        for tile in range(first, last):
            if AHEAD:
                pixel = coming
                coming = pixels_of_tile(order, tile + 1, RUN)
            else:
                pixel = pixels_of_tile(order, tile, RUN)
            mask = pixel >= 0
            u = load_rows(u_row, pixel, u_stride_p, d, mask, d_mask)
            step = load_step(dt_row, bias, weight, pixel, dt_stride_p, rank, d, mask, d_mask, SOFTPLUS, BLOCK_R)
            B, C = load_B_and_C(B_row, C_row, pixel, B_stride_p, C_stride_p, n, mask, n_mask)
            if y_ptr is None and edges_ptr is not None:
                edge = ((batch * sequences + slot) * tiles + start + tile) * states * channels
                tl.store(edges_ptr + edge + nd, state, mask=nd_mask)
            decay = tl.exp2(step[:, None, :, :] * A_log2[None, :, :, None])
            inputs = (step * u)[:, None, :, :] * B[:, :, None, :]
            h, state, decays = scan_states(decay, inputs, state, RUN, 1)

            if y_ptr is not None:
                if C_ptr is not None:
                    h *= C[:, :, None, :]
                y = tl.sum(h, 1)
                if twins_ptr is not None:
                    step = load_step(
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
                    B, C = load_B_and_C(twin_B_row, twin_C_row, pixel, B_stride_p, C_stride_p, n, mask, n_mask)
                    decay = tl.exp2(step[:, None, :, :] * twin_A_log2[None, :, :, None])
                    inputs = (step * u)[:, None, :, :] * B[:, :, None, :]
                    # The twin's tiles are the same ones, the last first.
                    edge = ((batch * sequences + slot) * tiles + last - 1 - tile) * states * channels
                    before = tl.load(edges_ptr + edge + nd, mask=nd_mask, other=0.0)
                    decay = reverse_runs(decay, RUN, BLOCK_N, BLOCK_D, 1)
                    inputs = reverse_runs(inputs, RUN, BLOCK_N, BLOCK_D, 1)
                    h, _state, _decays = scan_states(decay, inputs, before, RUN, 1)
                    h = reverse_runs(h, RUN, BLOCK_N, BLOCK_D, 1)
                    if C_ptr is not None:
                        h *= C[:, :, None, :]
                    y += tl.sum(h, 1)
                if D_ptr is not None:
                    y += D[None, :, None] * u
                store_rows(y_row, pixel, maps * channels, d, y, mask, d_mask)
            if TOTALS:
                if BLOCK_N == 1:  # in the layout of the states: Triton 3.6 computes the step size again for another one
                    steps += tl.reshape(tl.sum(step[:, None, :, :], 0), [BLOCK_D])
                else:
                    steps += tl.sum(tl.reshape(step, [RUN, BLOCK_D]), 0)
                if gy_ptr is not None:
                    gy_row = gy_ptr + batch * gy_image * gy_stride_p + route * gy_stride_r
                    gh = load_rows(gy_row, pixel, gy_stride_p, d, mask, d_mask)[:, None, :, :]
                    if C_ptr is not None:
                        gh *= C[:, :, None, :]
                    gradient += passed * tl.reshape(tl.sum(decays * gh, 0), [BLOCK_N, BLOCK_D])
                    passed *= tl.reshape(element(decays, RUN - 1, 0, 4), [BLOCK_N, BLOCK_D])

    if TOTALS:
        total += chunk
        tl.store(steps_ptr + total * channels + d, steps, mask=d_mask)
        tl.store(ends_ptr + total * states * channels + nd, state, mask=nd_mask)
        if gy_ptr is not None:
            tl.store(starts_ptr + total * states * channels + nd, gradient, mask=nd_mask)
