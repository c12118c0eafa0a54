"""The arithmetic of a tile [RUN, BLOCK_N, BLOCK_D, LANES]: scans of its states and gradients, on the device.

`selective_scan.py` says how tiles lie over threads.
"""

import triton
import triton.language as tl

__all__ = ["element", "exp_of_minus_abs", "reverse_runs", "scan_states", "softplus", "tile_gradients"]


@triton.jit
def _then(a1, b1, a2, b2):
    """Compose h -> a1 h + b1 with h -> a2 h + b2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _then_last_apart(a1, b1, last_a1, last_b1, a2, b2, last_a2, last_b2):
    """As `_then`, but the last element stays apart: its prefix a, b is that of the elements before it."""
    m = a2 * last_a1
    return m * a1, a2 * (last_a1 * b1 + last_b1) + b2, last_a2, last_b2


@triton.jit
def _then_last_input_apart(a1, w1, b1, a2, w2, b2):
    """As `_then`, but the last position's own input b stays apart from w, what its state inherits.

    The backward wants w_t = a_t h_{t-1} as well as h_t = w_t + b_t; h_t - b_t would cancel where the decay is strong.
    """
    return a1 * a2, a2 * (w1 + b1) + w2, b2


@triton.jit
def _then_last_decay_apart(p1, g1, a1, p2, g2, a2):
    """As `_then`, but the last position's decay a has not been applied yet.

    For the gradients of the states, g_t = C_t gy_t + a_{t+1} g_{t+1}: a position's decay acts on the way out of it.
    """
    m = p2 * a1
    return m * p1, m * g1 + g2, a2


@triton.jit
def element(x, index: tl.constexpr, AXIS: tl.constexpr, RANK: tl.constexpr):
    """Take x at one index of an axis, by a sum over one non-zero: tensors in registers cannot be indexed.

    -0.0 is the true neutral element of addition, which lets the compiler drop the sum when the axis is in registers.
    """
    at = tl.arange(0, x.shape[AXIS]) == index
    if RANK == 4:
        at = at[:, None, None, None]
    else:
        at = at[None, None, :]
    return tl.sum(tl.where(at, x, -0.0), AXIS)


@triton.jit
def reverse_runs(x, RUN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LANES: tl.constexpr):
    """x[RUN-1-run, ...]: swaps the halves of every scale. Within a thread's registers: no data moves.

    Not `tl.flip`: triton 3.2's turns only the last axis.
    """
    first = (tl.arange(0, 2) == 0)[None, :, None, None, None, None]
    for i in tl.static_range(6):
        if 2 << i <= RUN:
            x = tl.reshape(x, [RUN >> (i + 1), 2, 1 << i, BLOCK_N, BLOCK_D, LANES])
            head = tl.sum(tl.where(first, x, -0.0), 1, keep_dims=True)
            tail = tl.sum(tl.where(first, -0.0, x), 1, keep_dims=True)
            x = tl.where(first, tail, head)
    return tl.reshape(x, [RUN, BLOCK_N, BLOCK_D, LANES])


@triton.jit
def _reverse_lanes(x, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LANES: tl.constexpr):
    """x[..., LANES-1-lane], likewise; between threads, but only a run's totals are ever reversed so."""
    first = (tl.arange(0, 2) == 0)[None, None, None, :, None]
    for i in tl.static_range(6):
        if 2 << i <= LANES:
            x = tl.reshape(x, [BLOCK_N, BLOCK_D, LANES >> (i + 1), 2, 1 << i])
            head = tl.sum(tl.where(first, x, -0.0), 3, keep_dims=True)
            tail = tl.sum(tl.where(first, -0.0, x), 3, keep_dims=True)
            x = tl.where(first, tail, head)
    return tl.reshape(x, [BLOCK_N, BLOCK_D, LANES])


@triton.jit
def _enter_runs(a, b, state, LANES: tl.constexpr):
    """The state before each run and after the last, from the state before the first; a run's total is h -> a h + b."""
    if LANES == 1:
        return state[:, :, None], tl.reshape(a, state.shape) * state + tl.reshape(b, state.shape)
    a_before, b_before, _a, _b = tl.associative_scan(
        (tl.zeros_like(a) + 1.0, tl.zeros_like(b), a, b), 2, _then_last_apart
    )
    before = a_before * state[:, :, None] + b_before
    return before, element(a * before + b, LANES - 1, 2, 3)


@triton.jit
def scan_states(decay, inputs, state, RUN: tl.constexpr, LANES: tl.constexpr):
    """States h_t = decay_t h_{t-1} + inputs_t of a tile [RUN, N, D, LANES], from the state before it.

    Also the state after it, and the products of the decays within each run.
    """
    decays, h = tl.associative_scan((decay, inputs), 0, _then)
    before, state = _enter_runs(element(decays, RUN - 1, 0, 4), element(h, RUN - 1, 0, 4), state, LANES)
    return h + decays * before[None, :, :, :], state, decays


@triton.jit
def tile_gradients(
    gy,
    u,
    raw,
    e,
    step,
    A,
    B,
    C,
    edge,
    from_right,
    SOFTPLUS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LANES: tl.constexpr,
):
    """Gradients of a tile's u (without D's share), step before the softplus, A (lanes apart), B and C.

    `edge` is the state before the tile. `from_right` is a_t g_t at the first position right of it; the last value
    returned is the same for the tile to the left. Where `step` is 0 the gradients of u and of the step have no meaning.
    """
    step_u = step * u
    decay = tl.exp2(step[:, None, :, :] * (A * 1.4426950408889634)[None, :, :, None])

    # The gradients of the states, from right to left: g_t = C_t gy_t + a_{t+1} g_{t+1}.
    direct = reverse_runs(gy[:, None, :, :] * C[:, :, None, :], RUN, BLOCK_N, BLOCK_D, LANES)
    decay_rev = reverse_runs(decay, RUN, BLOCK_N, BLOCK_D, LANES)
    decays, g, _last = tl.associative_scan((tl.zeros_like(direct) + 1.0, direct, decay_rev), 0, _then_last_decay_apart)
    leftmost = element(decay_rev, RUN - 1, 0, 4)
    a = _reverse_lanes(leftmost * element(decays, RUN - 1, 0, 4), BLOCK_N, BLOCK_D, LANES)
    b = _reverse_lanes(leftmost * element(g, RUN - 1, 0, 4), BLOCK_N, BLOCK_D, LANES)
    after, from_right = _enter_runs(a, b, from_right, LANES)
    g += decays * _reverse_lanes(after, BLOCK_N, BLOCK_D, LANES)[None, :, :, :]
    g = reverse_runs(g, RUN, BLOCK_N, BLOCK_D, LANES)

    # The states: h_t = inherited_t + inputs_t, where inherited_t = a_t h_{t-1}.
    inputs = step_u[:, None, :, :] * B[:, :, None, :]
    decays, inherited, _last = tl.associative_scan((decay, tl.zeros_like(inputs), inputs), 0, _then_last_input_apart)
    a = element(decays, RUN - 1, 0, 4)
    b = element(inherited + inputs, RUN - 1, 0, 4)
    before, _end = _enter_runs(a, b, edge, LANES)
    inherited += decays * before[None, :, :, :]

    gC = tl.sum(gy[:, None, :, :] * (inherited + inputs), 2)
    gB = tl.sum(g * step_u[:, None, :, :], 2)
    through_decay = g * inherited
    gA = tl.sum(through_decay * step[:, None, :, :], 0)
    through_input = tl.sum(g * B[:, :, None, :], 1)
    gdelta = through_input * u + tl.sum(through_decay * A[None, :, :, None], 1)
    if SOFTPLUS:  # times sigmoid(raw)
        gdelta *= tl.where(raw >= 0.0, 1.0, e) / (1.0 + e)
    return through_input * step, gdelta, gA, gB, gC, from_right


@triton.jit
def exp_of_minus_abs(x):
    """exp(-|x|), which is never above 1: softplus and sigmoid are made of it."""
    return tl.exp(-tl.abs(x))


@triton.jit
def softplus(x, e):
    """log(1 + exp(x)) = max(x, 0) + log1p(e) with e = exp(-|x|).

    log(1 + e) would lose the digits of a small e. A polynomial of degree 9 in [0, 1] keeps them (1.5e-7, relative) and
    needs no division. Above 20 the second summand is lost in the rounding of the first: linear, as specified.
    """
    p = -0.00446621158
    p = p * e + 0.0252240543
    p = p * e - 0.0667577249
    p = p * e + 0.115618454
    p = p * e - 0.158475657
    p = p * e + 0.198541062
    p = p * e - 0.249865262
    p = p * e + 0.333328419
    p = p * e - 0.49999997
    p = p * e + 1.0
    return tl.maximum(x, 0.0) + e * p
