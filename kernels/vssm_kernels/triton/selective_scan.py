"""The selective scan in Triton, forward and backward, for (Bt, M, L) tensors.

One program owns one batch item and BLOCK_D channels of one group, and walks the sequence in tiles of RUN * LANES
positions; between tiles only the state is carried. A tile is [RUN, BLOCK_N, BLOCK_D, LANES], position lane * RUN + run.
Why two axes for the position: Triton lays a tensor out over threads from its last axis on, so here each thread holds
runs of neighbouring positions in its registers, and LANES threads side by side hold neighbouring runs. The scan within
a run needs no exchange between threads, and only the totals of the runs are scanned across threads: about an eighth of
the shuffles of a plain scan over positions. The layout follows only from the shapes, so L = 49 has it as well.

Every position that is masked (beyond L, beyond the group's channels, beyond N) is made the identity of the recurrence
(decay 1, input 0), so the carried state passes through it unharmed and no tail needs code of its own.

The backward needs states and their gradients at the same positions, and they run in opposite directions. The states at
the left edges of the tiles come from a first pass. The second walks the tiles from the last to the first and scans both
directions of a tile forward, reversing what the scan of the gradients takes and gives: `associative_scan` with
reverse=True has given wrong values (triton issues 4362, 8412).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Blocks, check_dtypes, in_float32, on_device_of
from .tiles import exp_of_minus_abs, scan_states, softplus, tile_gradients

__all__ = ["choose_blocks", "selective_scan_bwd", "selective_scan_fwd"]


@triton.jit
def _position_in_grid(M, G, BLOCK_D: tl.constexpr):
    """Batch item, group, block within the group, channels, which of them exist; int64 all that multiplies a stride."""
    per_group = M // G
    blocks = tl.cdiv(per_group, BLOCK_D)
    pid = tl.program_id(0)
    block = pid % blocks
    group = ((pid // blocks) % G).to(tl.int64)
    batch = (pid // (blocks * G)).to(tl.int64)
    in_group = block * BLOCK_D + tl.arange(0, BLOCK_D)
    return batch, group, block, group * per_group + in_group, in_group < per_group


@triton.jit
def _scan_kernel(
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    bias_ptr,
    y_ptr,
    last_ptr,
    edges_ptr,
    M,
    N,
    L,
    G,
    u_stride_b,
    u_stride_m,
    delta_stride_b,
    delta_stride_m,
    B_stride_b,
    B_stride_g,
    B_stride_n,
    C_stride_b,
    C_stride_g,
    C_stride_n,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUN: tl.constexpr,
    LANES: tl.constexpr,
):
    """Write y and the last state, or (edges_ptr given) only the state before every tile: (Bt, M, tiles, N)."""
    batch, group, _block, d, d_mask = _position_in_grid(M, G, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    n_mask = n < N
    nd_mask = n_mask[:, None] & d_mask[None, :]
    channel = batch * M + d
    nd_offset = channel[None, :] * N + n[:, None]

    A = tl.load(A_ptr + d[None, :] * N + n[:, None], mask=nd_mask, other=0.0)
    A_log2 = A * 1.4426950408889634  # exp2 is the machine's own; the factor is paid once, not at every position
    bias = tl.zeros([BLOCK_D], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + d, mask=d_mask, other=0.0)
    if D_ptr is not None:
        D = tl.load(D_ptr + d, mask=d_mask, other=0.0)

    u_row = u_ptr + (batch * u_stride_b + d * u_stride_m)[None, :, None]
    delta_row = delta_ptr + (batch * delta_stride_b + d * delta_stride_m)[None, :, None]
    n_wide = n.to(tl.int64)
    B_row = B_ptr + (batch * B_stride_b + group * B_stride_g + n_wide * B_stride_n)[None, :, None]
    if edges_ptr is None:
        C_row = C_ptr + (batch * C_stride_b + group * C_stride_g + n_wide * C_stride_n)[None, :, None]
        y_row = y_ptr + (channel * L)[None, :, None]
    else:
        edge = edges_ptr + channel[None, :] * tl.cdiv(L, RUN * LANES) * N + n[:, None]

    in_tile = tl.arange(0, RUN)[:, None, None] + (tl.arange(0, LANES) * RUN)[None, None, :]
    state = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, L, RUN * LANES):
        t = start + in_tile
        dt_mask = d_mask[None, :, None] & (t < L)
        nt_mask = n_mask[None, :, None] & (t < L)
        step = tl.load(delta_row + t, mask=dt_mask, other=0.0).to(tl.float32) + bias[None, :, None]
        if SOFTPLUS:
            step = softplus(step, exp_of_minus_abs(step))
        step = tl.where(dt_mask, step, 0.0)  # makes the decay 1 and the input 0
        u = tl.load(u_row + t, mask=dt_mask, other=0.0).to(tl.float32)
        B = tl.load(B_row + t, mask=nt_mask, other=0.0).to(tl.float32)

        if edges_ptr is not None:
            tl.store(edge, state, mask=nd_mask)
            edge += N
        decay = tl.exp2(step[:, None, :, :] * A_log2[None, :, :, None])
        inputs = (step * u)[:, None, :, :] * B[:, :, None, :]
        h, state, _decays = scan_states(decay, inputs, state, RUN, LANES)

        if edges_ptr is None:
            C = tl.load(C_row + t, mask=nt_mask, other=0.0).to(tl.float32)
            y = tl.sum(h * C[:, :, None, :], 1)
            if D_ptr is not None:
                y += D[None, :, None] * u
            tl.store(y_row + t, y.to(y_ptr.dtype.element_ty), mask=dt_mask)

    if edges_ptr is None:
        tl.store(last_ptr + nd_offset, state, mask=nd_mask)


@triton.jit
def _scan_bwd_kernel(
    gy_ptr,
    glast_ptr,
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    bias_ptr,
    edges_ptr,
    gu_ptr,
    gdelta_ptr,
    gA_ptr,
    gB_ptr,
    gC_ptr,
    gD_ptr,
    gbias_ptr,
    M,
    N,
    L,
    G,
    gy_stride_b,
    gy_stride_m,
    u_stride_b,
    u_stride_m,
    delta_stride_b,
    delta_stride_m,
    B_stride_b,
    B_stride_g,
    B_stride_n,
    C_stride_b,
    C_stride_g,
    C_stride_n,
    SOFTPLUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUN: tl.constexpr,
    LANES: tl.constexpr,
):
    """Gradients of u and delta; partial sums of gA, gD, gbias for every batch item, of gB, gC for every block."""
    batch, group, block, d, d_mask = _position_in_grid(M, G, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    n_mask = n < N
    nd_mask = n_mask[:, None] & d_mask[None, :]
    channel = batch * M + d
    nd_offset = channel[None, :] * N + n[:, None]

    A = tl.load(A_ptr + d[None, :] * N + n[:, None], mask=nd_mask, other=0.0)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + d, mask=d_mask, other=0.0)
    if D_ptr is not None:
        D = tl.load(D_ptr + d, mask=d_mask, other=0.0)

    gy_row = gy_ptr + (batch * gy_stride_b + d * gy_stride_m)[None, :, None]
    u_row = u_ptr + (batch * u_stride_b + d * u_stride_m)[None, :, None]
    delta_row = delta_ptr + (batch * delta_stride_b + d * delta_stride_m)[None, :, None]
    gu_row = gu_ptr + (channel * L)[None, :, None]
    gdelta_row = gdelta_ptr + (channel * L)[None, :, None]
    n_wide = n.to(tl.int64)
    B_row = B_ptr + (batch * B_stride_b + group * B_stride_g + n_wide * B_stride_n)[None, :, None]
    C_row = C_ptr + (batch * C_stride_b + group * C_stride_g + n_wide * C_stride_n)[None, :, None]
    # Partial sums (Bt, G, blocks, N, L): each program writes its own slice once, so the result is deterministic.
    partial = ((batch * G + group) * tl.cdiv(M // G, BLOCK_D) + block) * N * L + n_wide * L
    gB_row = gB_ptr + partial[None, :, None]
    gC_row = gC_ptr + partial[None, :, None]

    # a_t g_t at the first position right of the tile; right of the last position the decay counts as 1.
    from_right = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if glast_ptr is not None:
        from_right = tl.load(glast_ptr + nd_offset, mask=nd_mask, other=0.0)
    # Sums over positions keep the lanes apart until the end.
    gA = tl.zeros([BLOCK_N, BLOCK_D, LANES], tl.float32)
    gD = tl.zeros([BLOCK_D, LANES], tl.float32)
    gbias = tl.zeros([BLOCK_D, LANES], tl.float32)

    in_tile = tl.arange(0, RUN)[:, None, None] + (tl.arange(0, LANES) * RUN)[None, None, :]
    tiles = tl.cdiv(L, RUN * LANES)
    for i in range(0, tiles):
        tile = tiles - 1 - i
        t = tile * (RUN * LANES) + in_tile
        dt_mask = d_mask[None, :, None] & (t < L)
        nt_mask = n_mask[None, :, None] & (t < L)
        raw = tl.load(delta_row + t, mask=dt_mask, other=0.0).to(tl.float32) + bias[None, :, None]
        step = raw
        e = exp_of_minus_abs(raw)
        if SOFTPLUS:
            step = softplus(raw, e)
        step = tl.where(dt_mask, step, 0.0)  # makes the decay 1 and the input 0
        u = tl.load(u_row + t, mask=dt_mask, other=0.0).to(tl.float32)
        gy = tl.load(gy_row + t, mask=dt_mask, other=0.0).to(tl.float32)
        B = tl.load(B_row + t, mask=nt_mask, other=0.0).to(tl.float32)
        C = tl.load(C_row + t, mask=nt_mask, other=0.0).to(tl.float32)
        edge = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        if edges_ptr is not None:  # absent when there is but one tile
            edge = tl.load(edges_ptr + (channel[None, :] * tiles + tile) * N + n[:, None], mask=nd_mask, other=0.0)
        gu, gdelta, gA_tile, gB, gC, from_right = tile_gradients(
            gy, u, raw, e, step, A, B, C, edge, from_right, SOFTPLUS, RUN, BLOCK_N, BLOCK_D, LANES
        )
        gA += gA_tile
        tl.store(gC_row + t, gC, mask=nt_mask)
        tl.store(gB_row + t, gB, mask=nt_mask)
        if D_ptr is not None:
            gu += gy * D[None, :, None]
            gD += tl.sum(gy * u, 0)
        gdelta = tl.where(dt_mask, gdelta, 0.0)  # right of L, g and the state are those of the end, not zero
        gbias += tl.sum(gdelta, 0)
        tl.store(gu_row + t, gu.to(gu_ptr.dtype.element_ty), mask=dt_mask)
        tl.store(gdelta_row + t, gdelta.to(gdelta_ptr.dtype.element_ty), mask=dt_mask)

    tl.store(gA_ptr + nd_offset, tl.sum(gA, 2), mask=nd_mask)
    if D_ptr is not None:
        tl.store(gD_ptr + channel, tl.sum(gD, 1), mask=d_mask)
    if bias_ptr is not None:
        tl.store(gbias_ptr + channel, tl.sum(gbias, 1), mask=d_mask)


def choose_blocks(length: int, channels_per_group: int, states: int, backward: bool = False) -> Blocks:
    """Blocks read off the code compiled for sm_90 (registers, spills, instructions), not timed on a device.

    16 to 32 elements a thread amortise what a run pays once; the backward, with four times the live tiles, would spill
    and gets fewer. There a wide block_d saves memory too: the partial sums of B's and C's gradients are
    channels_per_group / block_d times as large as B and C.
    """
    block_n = triton.next_power_of_2(states)
    lanes = 8
    if not backward:
        block_d = 16 if block_n <= 2 else 8 if block_n <= 8 else 4
        run = 8 if block_n <= 64 else 2
        per_thread = 16 if block_n <= 2 else 32
    else:
        block_d = min(16, max(1, 256 // block_n))
        run = 8 if block_n <= 2 else 4
        per_thread = 8 if block_n == 1 else 16 if block_n <= 8 else 32
    block_d = min(block_d, triton.next_power_of_2(channels_per_group))
    run = min(run, max(2, triton.next_power_of_2(triton.cdiv(length, lanes))))
    num_warps = min(16, max(1, block_d * block_n * run * lanes // (32 * per_thread)))
    return Blocks(block_d, block_n, run, lanes, num_warps)


def _rows(x: Tensor) -> Tensor:
    """The kernels take any strides but want positions side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def selective_scan_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    out_dtype: torch.dtype | None = None,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """See `vssm_kernels.reference.selective_scan_fwd`; B and C must be 4-D. `blocks` overrides the choice of tiles."""
    check_dtypes(u=u, delta=delta, B=B, C=C)
    batch, M, L = u.shape
    G, N = B.shape[1], B.shape[2]
    u, delta, B, C = _rows(u), _rows(delta), _rows(B), _rows(C)
    A, D, delta_bias = in_float32(A), in_float32(D), in_float32(delta_bias)
    y = torch.empty(batch, M, L, dtype=out_dtype or u.dtype, device=u.device)
    last_state = torch.empty(batch, M, N, dtype=torch.float32, device=u.device)
    blocks = blocks or choose_blocks(L, M // G, N)
    with on_device_of(u):
        _launch_scan(u, delta, A, B, C, D, delta_bias, y, last_state, None, delta_softplus, blocks)
    return y, last_state


def _launch_scan(u, delta, A, B, C, D, delta_bias, y, last_state, edges, delta_softplus, blocks):
    batch, M, L = u.shape
    G, N = B.shape[1], B.shape[2]
    _scan_kernel[(batch * G * triton.cdiv(M // G, blocks.block_d),)](
        u,
        delta,
        A,
        B,
        C,
        D,
        delta_bias,
        y,
        last_state,
        edges,
        M,
        N,
        L,
        G,
        *u.stride()[:2],
        *delta.stride()[:2],
        *B.stride()[:3],
        *C.stride()[:3],
        SOFTPLUS=delta_softplus,
        BLOCK_D=blocks.block_d,
        BLOCK_N=blocks.block_n,
        RUN=blocks.run,
        LANES=blocks.lanes,
        num_warps=blocks.num_warps,
    )


def selective_scan_bwd(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `vssm_kernels.reference.selective_scan_bwd`; B and C must be 4-D. `blocks` overrides the choice of tiles."""
    check_dtypes(grad_y=grad_y, u=u, delta=delta, B=B, C=C)
    batch, M, L = u.shape
    G, N = B.shape[1], B.shape[2]
    grad_y, u, delta, B, C = _rows(grad_y), _rows(u), _rows(delta), _rows(B), _rows(C)
    A, D, delta_bias = in_float32(A), in_float32(D), in_float32(delta_bias)
    grad_last_state = in_float32(grad_last_state)
    blocks = blocks or choose_blocks(L, M // G, N, backward=True)
    tiles, d_blocks = triton.cdiv(L, blocks.tile), triton.cdiv(M // G, blocks.block_d)

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    grad_u = torch.empty(batch, M, L, dtype=u.dtype, device=u.device)
    grad_delta = torch.empty(batch, M, L, dtype=delta.dtype, device=u.device)
    grad_A = scratch(batch, M, N)
    grad_B, grad_C = scratch(batch, G, d_blocks, N, L), scratch(batch, G, d_blocks, N, L)
    grad_D = None if D is None else scratch(batch, M)
    grad_bias = None if delta_bias is None else scratch(batch, M)
    edges = scratch(batch, M, tiles, N) if tiles > 1 else None
    with on_device_of(u):
        if edges is not None:
            _launch_scan(u, delta, A, B, C, None, delta_bias, None, None, edges, delta_softplus, blocks)
        _scan_bwd_kernel[(batch * G * d_blocks,)](
            grad_y,
            grad_last_state,
            u,
            delta,
            A,
            B,
            C,
            D,
            delta_bias,
            edges,
            grad_u,
            grad_delta,
            grad_A,
            grad_B,
            grad_C,
            grad_D,
            grad_bias,
            M,
            N,
            L,
            G,
            *grad_y.stride()[:2],
            *u.stride()[:2],
            *delta.stride()[:2],
            *B.stride()[:3],
            *C.stride()[:3],
            SOFTPLUS=delta_softplus,
            BLOCK_D=blocks.block_d,
            BLOCK_N=blocks.block_n,
            RUN=blocks.run,
            LANES=blocks.lanes,
            num_warps=blocks.num_warps,
        )
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0),
        grad_B.sum(2).to(B.dtype),
        grad_C.sum(2).to(C.dtype),
        None if grad_D is None else grad_D.sum(0),
        None if grad_bias is None else grad_bias.sum(0),
    )
