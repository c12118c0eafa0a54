"""The ops in plain PyTorch without a loop over positions: any device, float64 included.

A recurrence of length L is cut into about sqrt(L) chunks that advance side by side; the chunks' ends form a recurrence
of their own, solved the same way. Only products of decays are formed, never the exponential of a positive sum, so long
sequences and strong decay are safe.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import compute_dtype

__all__ = ["linear_scan", "selective_scan_bwd", "selective_scan_fwd", "ssd_bwd", "ssd_fwd"]

# Largest state tensor materialised at once, in elements. Channels are independent, so larger problems run in slabs: on
# a CPU in slabs that stay in the cache, elsewhere in slabs that only bound the memory.
_CPU_SLAB = 1 << 19
_SLAB = 1 << 26


def _steps(length: int) -> int:
    """Positions a chunk, for about as many chunks."""
    return math.ceil(math.sqrt(length))


def _to_chunks(x: Tensor, steps: int) -> Tensor:
    """(..., L) to (steps, ..., chunks), zeros at the end: each step of all chunks is one contiguous slice."""
    x = F.pad(x, (0, -x.shape[-1] % steps))
    return x.unflatten(-1, (-1, steps)).movedim(-1, 0).contiguous()


def _from_chunks(x: Tensor, length: int) -> Tensor:
    """The inverse of `_to_chunks`."""
    return x.movedim(0, -1).flatten(-2)[..., :length]


def _forward_(decay: Tensor, h: Tensor) -> None:
    """h_t += decay_t h_{t-1} over (steps, ..., chunks), in place; decay becomes that since the chunk's start."""
    for t in range(1, len(h)):
        h[t].addcmul_(decay[t], h[t - 1])
    if h.shape[-1] > 1:
        for t in range(1, len(h)):
            decay[t].mul_(decay[t - 1])
        ends = linear_scan(decay[-1], h[-1])
        h[..., 1:].addcmul_(decay[..., 1:], ends[..., :-1])


def _backward_(decay: Tensor, g: Tensor) -> None:
    """g_t += decay_{t+1} g_{t+1} over chunks, in place, last to first; decay is left as it is."""
    for t in range(len(g) - 2, -1, -1):
        g[t].addcmul_(decay[t + 1], g[t + 1])
    if g.shape[-1] > 1:
        reach = torch.empty_like(decay)  # the decay up to the start of the next chunk
        reach[-1] = F.pad(decay[0, ..., 1:], (0, 1))
        for t in range(len(g) - 2, -1, -1):
            torch.mul(decay[t + 1], reach[t + 1], out=reach[t])
        starts = linear_scan(reach[0].flip(-1), g[0].flip(-1)).flip(-1)
        g[..., :-1].addcmul_(reach[..., :-1], starts[..., 1:])


def linear_scan(decay: Tensor, x: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + x_t along the last dimension, h_{-1} = 0. (..., L) each; not differentiable."""
    length = x.shape[-1]
    if length == 1:
        return x.clone()
    steps = _steps(length)
    decay, h = _to_chunks(decay, steps), _to_chunks(x, steps)
    _forward_(decay, h)
    return _from_chunks(h, length)


def _raw_step(delta: Tensor, delta_bias: Tensor | None) -> Tensor:
    return delta if delta_bias is None else delta + delta_bias.to(delta.dtype)[..., None]


def _grouped(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(Bt, M, L) to (Bt*G, M/G, L)."""
    return x.to(dtype).unflatten(1, (groups, -1)).flatten(0, 1)


def _parameters(p: Tensor | None, batch: int, groups: int, dtype: torch.dtype) -> Tensor | None:
    """(M, ...) to (Bt*G, M/G, ...)."""
    if p is None:
        return None
    p = p.to(dtype).unflatten(0, (groups, -1))
    return p.expand(batch, *p.shape).flatten(0, 1)


def _slabs(x: Tensor, states: int) -> list[tuple[slice, slice]]:
    """Pieces of (S, m, L) as slices of items and of channels, a slab of elements each at most (or one channel)."""
    items, channels, length = x.shape
    budget = max(1, (_CPU_SLAB if x.device.type == "cpu" else _SLAB) // (length * states))  # in channels
    m = min(channels, budget)
    s = max(1, budget // channels)
    return [(slice(i, i + s), slice(j, j + m)) for i in range(0, items, s) for j in range(0, channels, m)]


def _recurrence(step: Tensor, u: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and input (T, S, m, N, c) of the recurrence; step and u (T, S, m, c), A (S, m, N), B (T, S, N, c)."""
    decay = (step[:, :, :, None] * A[..., None]).exp_()
    return decay, (step * u)[:, :, :, None] * B[:, :, None]


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
) -> tuple[Tensor, Tensor]:
    """See `reference.selective_scan_fwd`."""
    dtype, (batch, channels, length), groups, states = compute_dtype(u), u.shape, B.shape[1], A.shape[1]
    y = u.new_empty(batch * groups, channels // groups, length, dtype=out_dtype or u.dtype)
    last = u.new_empty(batch * groups, channels // groups, states, dtype=dtype)
    u, delta, B, C = _grouped(u, groups, dtype), _grouped(delta, groups, dtype), B.flatten(0, 1), C.flatten(0, 1)
    A, D, bias = (_parameters(p, batch, groups, dtype) for p in (A, D, delta_bias))
    steps = _steps(length)
    for slab in _slabs(u, states):
        items = slab[0]
        step = _raw_step(delta[slab], None if bias is None else bias[slab])
        step = F.softplus(step) if delta_softplus else step
        # In chunks before the states multiply the size. The padding's step is zero: the state passes through it.
        step, u_s, B_s, C_s = (_to_chunks(x, steps) for x in (step, u[slab], B[items].to(dtype), C[items].to(dtype)))
        decay, h = _recurrence(step, u_s, A[slab], B_s)
        _forward_(decay, h)
        last[slab] = h[-1, ..., -1]
        out = h.mul_(C_s[:, :, None]).sum(3)
        y[slab] = _from_chunks(out if D is None else out + D[slab][..., None] * u_s, length)
    return y.view(batch, channels, length), last.view(batch, channels, states)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `reference.selective_scan_bwd`."""
    dtype, (batch, channels, length), groups, states = compute_dtype(u), u.shape, B.shape[1], A.shape[1]
    shape = (batch * groups, channels // groups, length)
    grad_u, grad_delta = u.new_empty(shape), delta.new_empty(shape)
    # Summed over slabs of channels, in order.
    grad_B, grad_C = (torch.zeros(x.flatten(0, 1).shape, dtype=dtype, device=x.device) for x in (B, C))
    grad_A = u.new_empty(*shape[:2], states, dtype=dtype)
    grad_D, grad_bias = (u.new_empty(shape[:2], dtype=dtype) for _ in range(2))
    B_shape, B_dtype, B, C = B.shape, B.dtype, B.flatten(0, 1), C.flatten(0, 1)
    u, delta, grad_y = (_grouped(x, groups, dtype) for x in (u, delta, grad_y))
    last = None if grad_last_state is None else _grouped(grad_last_state, groups, dtype)
    A, D_, bias = (_parameters(p, batch, groups, dtype) for p in (A, D, delta_bias))
    steps = _steps(length)
    for slab in _slabs(u, states):
        items = slab[0]
        raw = _raw_step(delta[slab], None if bias is None else bias[slab])
        flat_step = F.softplus(raw) if delta_softplus else raw
        step, u_s, B_s, C_s, dy = (
            _to_chunks(x, steps) for x in (flat_step, u[slab], B[items].to(dtype), C[items].to(dtype), grad_y[slab])
        )
        decay, h = _recurrence(step, u_s, A[slab], B_s)
        _forward_(decay.clone(), h)
        g = dy[:, :, :, None] * C_s[:, :, None]
        if last is not None:
            g[(length - 1) % steps, ..., (length - 1) // steps] += last[slab]
        _backward_(decay, g)
        grad_C[items] += _from_chunks((dy[:, :, :, None] * h).sum(2), length)
        grad_B[items] += _from_chunks((g * (step * u_s)[:, :, :, None]).sum(2), length)
        through_input = (g * B_s[:, :, None]).sum(3)
        # Through the decay: g_t decay_t h_{t-1}, where the position before a chunk's first is the last chunk's last.
        through_decay = decay.mul_(g)
        through_decay[1:].mul_(h[:-1])
        through_decay[0].mul_(F.pad(h[-1, ..., :-1], (1, 0)))
        grad_A[slab] = (through_decay * step[:, :, :, None]).sum((0, -1))
        grad_step = _from_chunks(through_input * u_s + (through_decay * A[slab][..., None]).sum(3), length)
        du = through_input * step
        if D_ is not None:
            du += D_[slab][..., None] * dy
            grad_D[slab] = (dy * u_s).sum((0, -1))
        grad_u[slab] = _from_chunks(du, length)
        dd = grad_step * torch.sigmoid(raw) if delta_softplus else grad_step
        grad_bias[slab] = dd.sum(-1)
        grad_delta[slab] = dd

    def parameter(g: Tensor) -> Tensor:
        return g.unflatten(0, (batch, groups)).sum(0).flatten(0, 1)

    return (
        grad_u.view(batch, channels, length),
        grad_delta.view(batch, channels, length),
        parameter(grad_A),
        grad_B.view(B_shape).to(B_dtype),
        grad_C.view(B_shape).to(B_dtype),
        None if D is None else parameter(grad_D),
        None if delta_bias is None else parameter(grad_bias),
    )


def _segment_sums(log_decay: Tensor) -> Tensor:
    """(..., T) to (..., T, T): entry (l, s) is the sum over s < i <= l, -inf for s > l.

    Summed directly rather than as a difference of cumulative sums, which would cancel after a strong decay.
    """
    steps = log_decay.shape[-1]
    below = torch.ones(steps, steps, dtype=torch.bool, device=log_decay.device).tril(-1)
    sums = log_decay[..., None].expand(*log_decay.shape, steps).masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(~(below | torch.eye(steps, dtype=torch.bool, device=log_decay.device)), -math.inf)


class _Chunks:
    """Shared by forward and backward of the SSD: chunked inputs, in-chunk decays and the state before every chunk.

    Letters: b batch, c chunk, l and s position in the chunk, g group, r head in the group, p channel, n state.
    """

    def __init__(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int):
        self.length, self.groups, self.chunk = x.shape[1], B.shape[2], min(chunk_size, x.shape[1])
        self.v = self.heads(dt[..., None] * x)
        log_decay = self.heads((dt * A)[..., None])[..., 0].permute(0, 1, 3, 4, 2)  # b c g r l
        self.B, self.C = self.split(B), self.split(C)
        self.decay = torch.exp(_segment_sums(log_decay))  # b c g r l s
        from_start = torch.exp(log_decay.cumsum(-1))
        self.whole = from_start[..., -1]
        self.from_start = from_start.permute(0, 1, 4, 2, 3)[..., None]  # b c l g r 1
        self.to_end = self.decay[..., -1, :].permute(0, 1, 4, 2, 3)[..., None]
        # Decays are applied to an operand first: an einsum of two becomes one batched product, of three it does not.
        added = torch.einsum("bcsgn,bcsgrp->cbgrpn", self.B, self.v * self.to_end)
        state = [torch.zeros_like(added[0])]  # before the chunk; not written in place, for exporters
        for c in range(1, len(added)):
            state.append(torch.addcmul(added[c - 1], self.whole[:, c - 1, ..., None, None], state[-1]))
        self.state = torch.stack(state)

    def split(self, x: Tensor) -> Tensor:
        """(Bt, L, ...) to (Bt, chunks, T, ...), padded with zeros at the end."""
        pad = -self.length % self.chunk
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, pad)) if pad else x
        return x.unflatten(1, (-1, self.chunk))

    def heads(self, x: Tensor) -> Tensor:
        """(Bt, L, H, P) to (Bt, chunks, T, G, H/G, P)."""
        return self.split(x).unflatten(3, (self.groups, -1))

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split` (of `heads`, but for the two head dimensions)."""
        return x.flatten(1, 2)[:, : self.length]


def _ssd_step(dt: Tensor, dt_bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)


def ssd_fwd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk_size: int = 64,
) -> Tensor:
    """See `reference.ssd_fwd`; matrix products in chunks, a recurrence between them (arXiv 2405.21060, section 6)."""
    dtype = compute_dtype(x)
    raw = _ssd_step(dt, dt_bias, dtype)
    xf = x.to(dtype)
    k = _Chunks(xf, F.softplus(raw) if dt_softplus else raw, A.to(dtype), B.to(dtype), C.to(dtype), chunk_size)
    scores = torch.einsum("bclgn,bcsgn->bcgls", k.C, k.B)[:, :, :, None] * k.decay
    y = torch.einsum("bcgrls,bcsgrp->bclgrp", scores, k.v)
    y = y + torch.einsum("bclgn,cbgrpn->bclgrp", k.C, k.state) * k.from_start
    y = k.join(y).flatten(2, 3)
    if D is not None:
        y = y + (D.to(dtype)[:, None] if D.dim() == 1 else D.to(dtype)) * xf
    return y.to(x.dtype)


def ssd_bwd(
    grad_y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, dt, A, B, C, D, dt_bias. That of the log decay is summed term by term: nothing cancels."""
    dtype = compute_dtype(x)
    raw = _ssd_step(dt, dt_bias, dtype)
    step = F.softplus(raw) if dt_softplus else raw
    xf, dy_, A_ = x.to(dtype), grad_y.to(dtype), A.to(dtype)
    k = _Chunks(xf, step, A_, B.to(dtype), C.to(dtype), chunk_size)
    dy = k.heads(dy_)

    # Gradient of the state after every chunk, from the chunks behind it.
    dy_start, v_end = dy * k.from_start, k.v * k.to_end
    from_outputs = torch.einsum("bclgrp,bclgn->cbgrpn", dy_start, k.C)
    grad_state = torch.zeros_like(from_outputs)
    for c in range(len(grad_state) - 2, -1, -1):
        whole = k.whole[:, c + 1, ..., None, None]
        torch.addcmul(from_outputs[c + 1], whole, grad_state[c + 1], out=grad_state[c])

    values = torch.einsum("bclgrp,bcsgrp->bcgrls", dy, k.v) * k.decay
    scores = torch.einsum("bclgn,bcsgn->bcgls", k.C, k.B)[:, :, :, None]
    v_state = torch.einsum("cbgrpn,bcsgn->bcsgrp", grad_state, k.B) * k.to_end
    grad_v = torch.einsum("bcgrls,bclgrp->bcsgrp", scores * k.decay, dy) + v_state
    grad_B = torch.einsum("bcgrls,bclgn->bcsgn", values, k.C)
    grad_B += torch.einsum("bcsgrp,cbgrpn->bcsgn", v_end, grad_state)
    grad_C = torch.einsum("bcgrls,bcsgn->bclgn", values, k.B)
    grad_C += torch.einsum("bclgrp,cbgrpn->bclgn", dy_start, k.state)

    # The log decay at j acts on every pair (l, s) with s < j <= l: inside the chunk, from the state before it, towards
    # the state after it, and through it.
    pairs = (values * scores).cumsum(-1)
    pairs = F.pad(pairs[..., :-1], (1, 0))  # exclusive: s < j
    grad_log = pairs.tril().sum(-2)
    entering = (torch.einsum("bclgn,cbgrpn->bclgrp", k.C, k.state) * dy_start).sum(-1).permute(0, 1, 3, 4, 2)
    grad_log += entering.flip(-1).cumsum(-1).flip(-1)
    leaving = (k.v * v_state).sum(-1).permute(0, 1, 3, 4, 2).cumsum(-1)
    grad_log += F.pad(leaving[..., :-1], (1, 0))
    grad_log += ((k.state * grad_state).sum((-1, -2)).movedim(0, 1) * k.whole)[..., None]

    grad_log = k.join(grad_log.permute(0, 1, 4, 2, 3)).flatten(2, 3)
    grad_v = k.join(grad_v).flatten(2, 3)
    grad_step = grad_log * A_ + (grad_v * xf).sum(-1)
    grad_x = grad_v * step[..., None]
    grad_D = None
    if D is not None:
        grad_x = grad_x + dy_ * (D.to(dtype)[:, None] if D.dim() == 1 else D.to(dtype))
        grad_D = (dy_ * xf).sum((0, 1, 3) if D.dim() == 1 else (0, 1))
    grad_dt = grad_step * torch.sigmoid(raw) if dt_softplus else grad_step
    return (
        grad_x.to(x.dtype),
        grad_dt.to(dt.dtype),
        (grad_log * step).sum((0, 1)),
        k.join(grad_B).to(B.dtype),
        k.join(grad_C).to(C.dtype),
        grad_D,
        None if dt_bias is None else grad_dt.sum((0, 1)),
    )
