"""The kernel of the backward scan of maps."""

import triton
import triton.language as tl

from .map_tiles import (
    ROUTE_FIELDS,
    SIZES,
    dot,
    load_B_and_C,
    load_low_rank,
    load_parameters,
    load_rows,
    load_weight,
    pixels_of_tile,
    program,
    store_rows,
    tiles_of_route,
)
from .tiles import exp_of_minus_abs, softplus, tile_gradients

__all__ = ["scan_2d_bwd_kernel"]


@triton.jit(do_not_specialize=SIZES)
def scan_2d_bwd_kernel(
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
    """Write the gradients of u and of a full dt, and partial sums of the others.

    Those of B, C and a low-rank dt are sums over a block of channels, those of A, D, bias and weight over a chunk of an
    image.
    """
    block, k, chunk, batch, d, d_mask = program(sequences, channels, chunks, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    n_mask = n < states
    nd_mask = n_mask[:, None] & d_mask[None, :]
    nd = n[:, None] * channels + d[None, :]
    A, D, bias = load_parameters(A_ptr, D_ptr, bias_ptr, k, channels, states, n, d, n_mask, d_mask)
    r = tl.arange(0, BLOCK_R)
    if weight_ptr is not None:
        weight = load_weight(weight_ptr, k, channels, rank, d, d_mask, BLOCK_R)
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
        route_ptr = routes_ptr + route * ROUTE_FIELDS
        order, first, last, start = tiles_of_route(order_ptr, route_ptr, chunk, tiles_per_chunk, RUN)
        column = tl.load(route_ptr + 4)
        map_ = column
        if not OWN_INPUT:
            map_ = tl.load(route_ptr + 3)
        gu_row = gu_ptr + (batch * pixels * maps + map_) * channels
        gy_row = gy_ptr + batch * gy_image * gy_stride_p + route * gy_stride_r
        for j in range(first, last):
            tile = first + last - 1 - j
            pixel = pixels_of_tile(order, tile, RUN)
            mask = pixel >= 0
            td_mask = mask[:, None, None] & d_mask[None, :, None]
            if weight_ptr is not None:
                low_rank = load_low_rank(dt_row, pixel, dt_stride_p, rank, mask, BLOCK_R)
                raw = dot(low_rank, weight)[:, :, None]
            else:
                raw = load_rows(dt_row, pixel, dt_stride_p, d, mask, d_mask)
            raw += bias[None, :, None]
            step = raw
            e = exp_of_minus_abs(raw)
            if SOFTPLUS:
                step = softplus(raw, e)
            step = tl.where(td_mask, step, 0.0)
            u = load_rows(u_row, pixel, u_stride_p, d, mask, d_mask)
            gy = load_rows(gy_row, pixel, gy_stride_p, d, mask, d_mask)
            B, C = load_B_and_C(B_row, C_row, pixel, B_stride_p, C_stride_p, n, mask, n_mask)
            edge = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            if edges_ptr is not None:  # absent when there is but one tile
                at = ((batch * sequences + k) * tiles + start + tile) * states * channels
                edge = tl.load(edges_ptr + at + nd, mask=nd_mask, other=0.0)
            gu, gdelta, gA_tile, gB, gC, from_right = tile_gradients(
                gy, u, raw, e, step, A, B, C, edge, from_right, SOFTPLUS, RUN, BLOCK_N, BLOCK_D, 1
            )
            gA += tl.reshape(gA_tile, [BLOCK_N, BLOCK_D])
            store_rows(gB_ptr + (partial + column) * states, pixel, columns * states, n, gB, mask, n_mask)
            if C_ptr is not None:
                store_rows(gC_ptr + (partial + column) * states, pixel, columns * states, n, gC, mask, n_mask)
            if D_ptr is not None:
                gu += gy * D[None, :, None]
                gD += tl.sum(tl.reshape(gy * u, [RUN, BLOCK_D]), 0)
            gdelta = tl.where(td_mask, gdelta, 0.0)
            gdelta = tl.reshape(gdelta, [RUN, BLOCK_D])
            gbias += tl.sum(gdelta, 0)
            store_rows(gu_row, pixel, maps * channels, d, gu, mask, d_mask)
            if weight_ptr is not None:
                gdt = dot(gdelta, tl.trans(weight))
                store_rows(gdt_ptr + (partial + column) * rank, pixel, columns * rank, r, gdt, mask, r < rank)
                gweight += dot(tl.trans(low_rank), gdelta)
            else:
                gdt_row = gdt_ptr + (batch * pixels * columns + column) * channels
                store_rows(gdt_row, pixel, columns * channels, d, gdelta, mask, d_mask)

    parameter = (batch * chunks + chunk) * sequences + k
    tl.store(gA_ptr + parameter * states * channels + nd, gA, mask=nd_mask)
    if D_ptr is not None:
        tl.store(gD_ptr + parameter * channels + d, gD, mask=d_mask)
    if bias_ptr is not None:
        tl.store(gbias_ptr + parameter * channels + d, gbias, mask=d_mask)
    if weight_ptr is not None:
        at = parameter * rank * channels + r[:, None] * channels + d[None, :]
        tl.store(gweight_ptr + at, gweight, mask=d_mask[None, :] & (r < rank)[:, None])
