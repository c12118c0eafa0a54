"""The op `selective_scan`: the selective scan of sequences."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends import choose_backend
from ..flops import selective_scan_flops
from ..reference import compute_dtype
from .registration import (
    cast_gradients,
    check_devices,
    check_gradient,
    check_nonempty,
    check_out_dtype,
    check_tensor,
    fake_gradients,
    present,
    register,
    register_autocast,
    register_flops,
)

__all__ = ["gated_scan", "selective_scan"]


def _check_scan(u, delta, A, B, C, D, z, delta_bias, out_dtype) -> None:
    op = "selective_scan"
    check_tensor(op, "u", u, (None, None, None))
    check_nonempty(op, u)
    batch, channels, length = u.shape
    check_tensor(op, "delta", delta, (batch, channels, length), dtype=u.dtype)
    check_tensor(op, "A", A, (channels, None))
    states = A.shape[1]
    if states == 0:
        raise ValueError(f"{op}: A must hold at least one state, got shape {tuple(A.shape)}")
    check_tensor(op, "B", B, (batch, None, states, length), dtype=u.dtype)
    if B.shape[1] == 0 or channels % B.shape[1]:
        raise ValueError(f"{op}: {channels} channels cannot be split into the {B.shape[1]} groups of B")
    check_tensor(op, "C", C, tuple(B.shape), dtype=u.dtype)
    check_tensor(op, "D", D, (channels,))
    check_tensor(op, "z", z, (batch, channels, length), dtype=u.dtype)
    check_tensor(op, "delta_bias", delta_bias, (channels,))
    check_out_dtype(op, out_dtype)
    check_devices(op, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)


def gated_scan(scan: Callable, u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype) -> tuple:
    """Make the op's two results with a backend's `selective_scan_fwd`, which knows no gate.

    Args:
        scan: The function of the backend.
        u: This and the others: as the op's.
        delta: (Bt, M, L).
        A: (M, N).
        B: (Bt, G, N, L).
        C: As B.
        D: (M,) or None.
        z: (Bt, M, L) or None.
        delta_bias: (M,) or None.
        delta_softplus: Whether softplus is applied to the step size.
        out_dtype: Dtype of y; that of u when None.

    Returns:
        y (Bt, M, L) and the last state (Bt, M, N).
    """
    out_dtype = out_dtype or u.dtype
    y, last_state = scan(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        out_dtype=out_dtype if z is None else compute_dtype(u),
    )
    return (y if z is None else (y * torch.nn.functional.silu(z.to(y.dtype))).to(out_dtype)), last_state


def _kernel(u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype, backend):
    _check_scan(u, delta, A, B, C, D, z, delta_bias, out_dtype)
    scan = choose_backend(backend, u.device, u.dtype, u.numel() * A.shape[1]).selective_scan_fwd
    return gated_scan(scan, u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype)


def _fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype, backend):
    _check_scan(u, delta, A, B, C, D, z, delta_bias, out_dtype)
    y = torch.empty(u.shape, dtype=out_dtype or u.dtype, device=u.device)
    return y, torch.empty((*u.shape[:2], A.shape[1]), dtype=compute_dtype(u), device=u.device)


_op = register(
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, "
    "Tensor? delta_bias=None, bool delta_softplus=False, ScalarType? out_dtype=None, str backend='auto') "
    "-> (Tensor, Tensor)",
    _kernel,
    _fake,
)


def _backward_kernel(grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend):
    _check_scan(u, delta, A, B, C, D, z, delta_bias, None)
    check_gradient("selective_scan", grad_y, u.shape, u)
    check_gradient("selective_scan", grad_state, (*u.shape[:2], A.shape[1]), u)
    module = choose_backend(backend, u.device, u.dtype, u.numel() * A.shape[1])
    inputs = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)
    grad_z = None
    if z is not None:
        # The ungated output is computed again rather than kept: it is as large as the input.
        y, _ = module.selective_scan_fwd(**inputs, out_dtype=compute_dtype(u))
        gate, grad_y = z.to(y.dtype), grad_y.to(y.dtype)
        sigmoid = torch.sigmoid(gate)
        grad_z = (grad_y * y * sigmoid * (1 + gate * (1 - sigmoid))).to(z.dtype)
        grad_y = grad_y * gate * sigmoid
    gradients = module.selective_scan_bwd(grad_y=grad_y, grad_last_state=grad_state, **inputs)
    return [present(g, u) for g in (*gradients, grad_z)]


def _backward_fake(grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend):
    return fake_gradients((u, delta, A, B, C, D, delta_bias, z), parameters=(2, 5, 6))


register(
    "selective_scan_backward(Tensor grad_y, Tensor? grad_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus, str backend) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)


def _setup(ctx, inputs, output):
    *tensors, ctx.delta_softplus, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_state):
    u, delta, A, B, C, D, z, delta_bias = ctx.saved_tensors
    if grad_y is None and grad_state is None:
        return (None,) * 11
    gradients = torch.ops.vssm.selective_scan_backward(
        grad_y=torch.zeros_like(u) if grad_y is None else grad_y,
        grad_state=grad_state,
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=ctx.delta_softplus,
        backend=ctx.backend,
    )
    du, ddelta, dA, dB, dC, dD, dbias, dz = cast_gradients(gradients, (u, delta, A, B, C, D, delta_bias, z))
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None, None, None


def _flops(*, u, A, D, z, **others) -> int:
    batch, channels, length = u
    return selective_scan_flops(batch, length, channels, A[1], with_D=D is not None, with_z=z is not None)


_op.register_autograd(_backward, setup_context=_setup)
register_autocast("selective_scan", ("u", "delta", "B", "C", "z"))
register_flops("selective_scan", _flops, gradients=2)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
):
    """Compute Mamba's selective scan (arXiv 2312.00752, eq. 2 and 4); takes what mamba_ssm's `selective_scan_fn` takes.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t h_t + D u_t, then y SiLU(z); h_{-1} = 0.

    Letters: Bt batch, M channels, N states, G groups (M divisible by G), L positions; all at least 1.

    Args:
        u: Input (Bt, M, L); float32, bfloat16 or float16 (float64 with the backends torch and reference). Any strides.
        delta: Step size (Bt, M, L), dtype of u.
        A: State matrix (M, N), real.
        B: (Bt, N, L), or (Bt, G, N, L) with each group's shared by its M/G channels; dtype of u.
        C: As B.
        D: Skip (M,).
        z: Gate (Bt, M, L), dtype of u.
        delta_bias: Added to delta, (M,).
        delta_softplus: Apply softplus (linear above 20) to delta + delta_bias.
        return_last_state: Return the state after the last position too.
        out_dtype: Dtype of y; that of u when None. `torch.float32` with half inputs avoids the overflow of long sums.
        backend: "auto", "triton", "cpp", "torch" or "reference"; the variable VSSM_BACKEND replaces "auto".

    Returns:
        y (Bt, M, L), or (y, last_state) with last_state (Bt, M, N). States, softplus, A and D are float32 inside every
        backend (float64 for float64 inputs). Under autocast the inputs are raised to their widest dtype, never lowered.

    Raises:
        TypeError: A dtype is complex or otherwise unsupported, or dtypes differ.
        ValueError: Shapes do not fit, or the backend is unknown.
        RuntimeError: The backend asked for is not available.
    """
    if isinstance(B, Tensor) and B.dim() == 3:
        B = B.unsqueeze(1)
    if isinstance(C, Tensor) and C.dim() == 3:
        C = C.unsqueeze(1)
    y, last_state = torch.ops.vssm.selective_scan(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        out_dtype=out_dtype,
        backend=backend,
    )
    return (y, last_state) if return_last_state else y
