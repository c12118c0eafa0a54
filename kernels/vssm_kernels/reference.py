"""Every op in plain PyTorch, one position at a time, written to be read.

This is the truth that the fast backends are tested against: no chunking, no fusion, any floating dtype (float64 for the
tests). The forward functions are ordinary differentiable PyTorch; the `*_bwd` functions write the adjoint out.

Letters: Bt batch, M channels, N states, L positions, G groups of channels that share B and C (M divisible by G).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Give the dtype that every backend computes in, states included: float32, or float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _step_size(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return F.softplus(delta) if delta_softplus else delta


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """(Bt, G, N, L) of the groups to (Bt, M, N, L) of the channels."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


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
    """Compute the selective scan of Mamba (arXiv 2312.00752, eq. 2 and 4).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t h_t + D u_t.

    Args:
        u: Input (Bt, M, L).
        delta: Step size before bias and softplus (Bt, M, L).
        A: (M, N).
        B: (Bt, G, N, L).
        C: (Bt, G, N, L).
        D: (M,).
        delta_bias: (M,).
        delta_softplus: Apply softplus (linear above 20) to delta + delta_bias.
        out_dtype: Dtype of y; that of `u` when None.

    Returns:
        y (Bt, M, L) and the last state (Bt, M, N), the latter in float32 (float64 for float64 inputs).
    """
    out_dtype = out_dtype or u.dtype
    dtype = compute_dtype(u)
    channels = u.shape[1]
    u, A = u.to(dtype), A.to(dtype)
    B, C = _per_channel(B.to(dtype), channels), _per_channel(C.to(dtype), channels)
    delta = _step_size(delta.to(dtype), None if delta_bias is None else delta_bias.to(dtype), delta_softplus)

    state = torch.zeros(*u.shape[:2], A.shape[1], dtype=dtype, device=u.device)
    outputs = []
    # unbind, not x[..., t]: the backward of a slice writes a full-size gradient for every position.
    for u_t, delta_t, B_t, C_t in zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * B_t
        outputs.append((state * C_t).sum(-1))
    y = torch.stack(outputs, dim=-1)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    return y.to(out_dtype), state


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
    """Compute the adjoint of `selective_scan_fwd`, walking from the last position to the first.

    With g_t the gradient of the state h_t: g_t = C_t grad_y_t + exp(delta_{t+1} A) g_{t+1}.

    Args:
        grad_y: (Bt, M, L).
        grad_last_state: (Bt, M, N), or None.
        u: This and the others: as given to the forward.
        delta: (Bt, M, L).
        A: (M, N).
        B: (Bt, G, N, L).
        C: (Bt, G, N, L).
        D: (M,).
        delta_bias: (M,).
        delta_softplus: As in the forward.

    Returns:
        Gradients of u, delta, A, B, C, D, delta_bias; None for an absent D or delta_bias. Those of u, delta, B and C
        have the inputs' dtype, those of the parameters float32 (float64 for float64 inputs).
    """
    dtype = compute_dtype(u)
    batch, channels, length = u.shape
    groups = B.shape[1]
    u_in, delta_in, B_in = u.dtype, delta.dtype, B.dtype
    u, A, grad_y = u.to(dtype), A.to(dtype), grad_y.to(dtype)
    B, C = _per_channel(B.to(dtype), channels), _per_channel(C.to(dtype), channels)
    raw = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)[:, None]
    step = F.softplus(raw) if delta_softplus else raw

    states = [torch.zeros(batch, channels, A.shape[1], dtype=dtype, device=u.device)]
    for t in range(length):
        decay = torch.exp(step[..., t, None] * A)
        states.append(decay * states[-1] + (step[..., t] * u[..., t])[..., None] * B[..., t])

    g = torch.zeros_like(states[0]) if grad_last_state is None else grad_last_state.to(dtype)
    grad_A = torch.zeros_like(A)
    grad_u, grad_step = torch.empty_like(u), torch.empty_like(u)
    grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
    for t in reversed(range(length)):
        g = g + grad_y[..., t, None] * C[..., t]
        grad_C[..., t] = grad_y[..., t, None] * states[t + 1]
        grad_B[..., t] = g * (step[..., t] * u[..., t])[..., None]
        through_input = (g * B[..., t]).sum(-1)
        grad_u[..., t] = through_input * step[..., t]
        decay = torch.exp(step[..., t, None] * A)
        through_decay = g * states[t] * decay
        grad_step[..., t] = through_input * u[..., t] + (through_decay * A).sum(-1)
        grad_A += (through_decay * step[..., t, None]).sum(0)
        g = g * decay

    grad_D = None
    if D is not None:
        grad_u = grad_u + grad_y * D.to(dtype)[:, None]
        grad_D = (grad_y * u).sum((0, 2))
    grad_delta = grad_step * torch.sigmoid(raw) if delta_softplus else grad_step
    grad_bias = None if delta_bias is None else grad_delta.sum((0, 2))

    def per_group(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, channels // groups)).sum(2).to(B_in)

    return grad_u.to(u_in), grad_delta.to(delta_in), grad_A, per_group(grad_B), per_group(grad_C), grad_D, grad_bias


def ssd_fwd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Compute the state-space dual of Mamba-2 (arXiv 2405.21060, section 3 and 6).

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T;  y_t = S_t C_t + D x_t.

    Args:
        x: (Bt, L, H, P) for H heads of P channels.
        dt: (Bt, L, H).
        A: (H,), one scalar a head.
        B: (Bt, L, G, N), heads of a group in order.
        C: (Bt, L, G, N).
        D: (H,) or (H, P).
        dt_bias: (H,).
        dt_softplus: Apply softplus (linear above 20) to dt + dt_bias.

    Returns:
        y (Bt, L, H, P) in the dtype of x.
    """
    dtype = compute_dtype(x)
    out_dtype = x.dtype
    heads = x.shape[2]
    x, A = x.to(dtype), A.to(dtype)
    B, C = (t.to(dtype).repeat_interleave(heads // t.shape[2], dim=2) for t in (B, C))
    dt = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
    dt = F.softplus(dt) if dt_softplus else dt

    state = torch.zeros(x.shape[0], heads, x.shape[3], B.shape[3], dtype=dtype, device=x.device)
    outputs = []
    for x_t, dt_t, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        decay = torch.exp(dt_t * A)[..., None, None]
        state = decay * state + (dt_t[..., None] * x_t)[..., None] * B_t[..., None, :]
        outputs.append((state * C_t[..., None, :]).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        D = D.to(dtype)
        y = y + (D[:, None] if D.dim() == 1 else D) * x
    return y.to(out_dtype)
