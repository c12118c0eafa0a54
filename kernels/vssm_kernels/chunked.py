"""The ops in plain PyTorch without a loop over positions: any device, float64 included.

A recurrence of length L is cut into about sqrt(L) chunks that advance side by side; the chunks' ends form a recurrence
of their own, solved the same way. Only products of decays are formed, never the exponential of a positive sum, so long
sequences and strong decay are safe.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["linear_scan", "selective_scan_bwd", "selective_scan_fwd", "ssd_bwd", "ssd_fwd"]

# Largest state tensor materialised at once, in elements. Rows are independent, so larger problems run in slabs.
_SLAB = 1 << 25


def linear_scan(decay: Tensor, x: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + x_t along the last dimension, h_{-1} = 0. (R, L) each; not differentiable."""
    rows, length = x.shape
    if length == 1:
        return x.clone()
    steps = math.ceil(math.sqrt(length))
    chunks = math.ceil(length / steps)
    pad = chunks * steps - length
    if pad:  # at the end, where nothing is read any more
        decay, x = F.pad(decay, (0, pad)), F.pad(x, (0, pad))
    # Position in the chunk first: every step works on one contiguous (R, chunks) slice.
    decay = decay.view(rows, chunks, steps).permute(2, 0, 1).contiguous()
    h = x.view(rows, chunks, steps).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
    for t in range(1, steps):
        h[t].addcmul_(decay[t], h[t - 1])
    if chunks > 1:
        for t in range(1, steps):  # in place: decay becomes the decay since the chunk's start
            decay[t].mul_(decay[t - 1])
        carry = linear_scan(decay[-1], h[-1])
        h[:, :, 1:].addcmul_(decay[:, :, 1:], carry[None, :, :-1])
    return h.permute(1, 2, 0).reshape(rows, chunks * steps)[:, :length]


def _reverse_linear_scan(decay: Tensor, x: Tensor) -> Tensor:
    """g_t = x_t + decay_{t+1} g_{t+1}, g_L = 0. Both (R, L)."""
    shifted = F.pad(decay[:, 1:], (0, 1))
    return linear_scan(shifted.flip(-1), x.flip(-1)).flip(-1)


def _dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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


def _slabs(items: int, elements: int) -> list[slice]:
    """Slices over the items such that a slab holds at most `_SLAB` elements, or one item."""
    size = max(1, _SLAB // max(1, elements))
    return [slice(i, min(i + size, items)) for i in range(0, items, size)]


def _states(step: Tensor, u: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and state, both (S, m, N, L), of S items with m channels."""
    decay = torch.exp(step[:, :, None] * A[..., None])
    state = linear_scan(decay.flatten(0, 2), ((step * u)[:, :, None] * B[:, None]).flatten(0, 2))
    return decay, state.view_as(decay)


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
    dtype, (batch, channels, length), groups, states = _dtype(u), u.shape, B.shape[1], A.shape[1]
    y = u.new_empty(batch * groups, channels // groups, length, dtype=out_dtype or u.dtype)
    last = u.new_empty(batch * groups, channels // groups, states, dtype=dtype)
    u, delta, B, C = _grouped(u, groups, dtype), _grouped(delta, groups, dtype), B.flatten(0, 1), C.flatten(0, 1)
    A, D, bias = (_parameters(p, batch, groups, dtype) for p in (A, D, delta_bias))
    for s in _slabs(len(u), u[0].numel() * states):
        step = _raw_step(delta[s], None if bias is None else bias[s])
        step = F.softplus(step) if delta_softplus else step
        _, h = _states(step, u[s], A[s], B[s].to(dtype))
        out = (h * C[s].to(dtype)[:, None]).sum(2)
        y[s] = out if D is None else out + D[s][..., None] * u[s]
        last[s] = h[..., -1]
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
    dtype, (batch, channels, length), groups, states = _dtype(u), u.shape, B.shape[1], A.shape[1]
    shape = (batch * groups, channels // groups, length)
    grad_u, grad_delta = u.new_empty(shape), delta.new_empty(shape)
    grad_B, grad_C = torch.empty_like(B.flatten(0, 1)), torch.empty_like(C.flatten(0, 1))
    grad_A = u.new_empty(*shape[:2], states, dtype=dtype)
    grad_D, grad_bias = (u.new_empty(shape[:2], dtype=dtype) for _ in range(2))
    B_shape, B, C = B.shape, B.flatten(0, 1), C.flatten(0, 1)
    u, delta, grad_y = (_grouped(x, groups, dtype) for x in (u, delta, grad_y))
    last = None if grad_last_state is None else _grouped(grad_last_state, groups, dtype)
    A, D_, bias = (_parameters(p, batch, groups, dtype) for p in (A, D, delta_bias))
    for s in _slabs(len(u), u[0].numel() * states):
        raw = _raw_step(delta[s], None if bias is None else bias[s])
        step = F.softplus(raw) if delta_softplus else raw
        B_s, C_s, u_s, dy = B[s].to(dtype)[:, None], C[s].to(dtype)[:, None], u[s], grad_y[s]
        decay, h = _states(step, u_s, A[s], B[s].to(dtype))
        g = dy[:, :, None] * C_s
        if last is not None:
            g[..., -1] += last[s]
        g = _reverse_linear_scan(decay.flatten(0, 2), g.flatten(0, 2)).view_as(decay)
        grad_C[s] = (dy[:, :, None] * h).sum(1)
        grad_B[s] = (g * (step * u_s)[:, :, None]).sum(1)
        through_input = (g * B_s).sum(2)
        # Through the decay: g_t decay_t h_{t-1}, nothing at the first position.
        through_decay = decay[..., 1:].mul_(g[..., 1:]).mul_(h[..., :-1])
        grad_A[s] = (through_decay * step[:, :, None, 1:]).sum(-1)
        grad_step = through_input * u_s
        grad_step[..., 1:] += (through_decay * A[s][..., None]).sum(2)
        du = through_input * step
        if D_ is not None:
            du += D_[s][..., None] * dy
            grad_D[s] = (dy * u_s).sum(-1)
        grad_u[s] = du
        dd = grad_step * torch.sigmoid(raw) if delta_softplus else grad_step
        grad_bias[s] = dd.sum(-1)
        grad_delta[s] = dd

    def parameter(g: Tensor) -> Tensor:
        return g.unflatten(0, (batch, groups)).sum(0).flatten(0, 1)

    return (
        grad_u.view(batch, channels, length),
        grad_delta.view(batch, channels, length),
        parameter(grad_A),
        grad_B.view(B_shape),
        grad_C.view(B_shape),
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
    """What forward and backward of the SSD share: chunked inputs, in-chunk decays and the state before every chunk.

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
        self.state = torch.zeros_like(added)  # before the chunk
        for c in range(1, len(added)):
            torch.addcmul(added[c - 1], self.whole[:, c - 1, ..., None, None], self.state[c - 1], out=self.state[c])

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
    dtype = _dtype(x)
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
    dtype = _dtype(x)
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
