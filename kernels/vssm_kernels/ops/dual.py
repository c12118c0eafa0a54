"""The op `ssd`: the state-space dual of Mamba-2."""

import torch
from torch import Tensor

from .. import chunked, cpu
from ..backends import choose_dual_backend
from ..flops import ssd_flops
from .registration import (
    cast_gradients,
    check_devices,
    check_gradient,
    check_nonempty,
    check_tensor,
    fake_gradients,
    present,
    register,
    register_autocast,
    register_flops,
)

__all__ = ["ssd"]


def _check_ssd(x, dt, A, B, C, D, dt_bias, chunk_size) -> None:
    op = "ssd"
    check_tensor(op, "x", x, (None,) * 4)
    check_nonempty(op, x)
    batch, length, heads, head_dim = x.shape
    check_tensor(op, "dt", dt, (batch, length, heads), dtype=x.dtype)
    check_tensor(op, "A", A, (heads,))
    check_tensor(op, "B", B, (batch, length, None, None), dtype=x.dtype)
    if B.shape[2] == 0 or heads % B.shape[2]:
        raise ValueError(f"{op}: {heads} heads cannot be split into the {B.shape[2]} groups of B")
    check_tensor(op, "C", C, tuple(B.shape), dtype=x.dtype)
    check_tensor(op, "D", D, (heads,), (heads, head_dim))
    check_tensor(op, "dt_bias", dt_bias, (heads,))
    check_devices(op, x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias)
    if chunk_size < 1:
        raise ValueError(f"{op}: chunk_size must be at least 1, got {chunk_size}")


def _kernel(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, backend) -> Tensor:
    _check_ssd(x, dt, A, B, C, D, dt_bias, chunk_size)
    inputs = dict(x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus)
    module = choose_dual_backend(backend, x.device, x.dtype)
    return module.ssd_fwd(**inputs, chunk_size=chunk_size) if module is chunked else module.ssd_fwd(**inputs)


def _fake(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, backend) -> Tensor:
    _check_ssd(x, dt, A, B, C, D, dt_bias, chunk_size)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_op = register(
    "ssd(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? dt_bias=None, "
    "bool dt_softplus=False, int chunk_size=64, str backend='auto') -> Tensor",
    _kernel,
    _fake,
)


def _backward_kernel(grad, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, backend):
    _check_ssd(x, dt, A, B, C, D, dt_bias, chunk_size)
    check_gradient("ssd", grad, x.shape, x)
    inputs = dict(grad_y=grad, x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus)
    module = choose_dual_backend(backend, x.device, x.dtype)
    gradients = module.ssd_bwd(**inputs) if module is cpu else chunked.ssd_bwd(**inputs, chunk_size=chunk_size)
    return [present(g, x) for g in gradients]


def _backward_fake(grad, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, backend):
    return fake_gradients((x, dt, A, B, C, D, dt_bias), parameters=(2, 5, 6))


register(
    "ssd_backward(Tensor grad, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "bool dt_softplus, int chunk_size, str backend) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)


def _setup(ctx, inputs, output):
    *tensors, ctx.dt_softplus, ctx.chunk_size, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    x, dt, A, B, C, D, dt_bias = tensors
    gradients = torch.ops.vssm.ssd_backward(
        grad=grad,
        x=x,
        dt=dt,
        A=A,
        B=B,
        C=C,
        D=D,
        dt_bias=dt_bias,
        dt_softplus=ctx.dt_softplus,
        chunk_size=ctx.chunk_size,
        backend=ctx.backend,
    )
    return (*cast_gradients(gradients, tensors), None, None, None)


def _flops(*, x, B, D, **others) -> int:
    return ssd_flops(x[0], x[1], x[2], x[3], B[3], with_D=D is not None)


_op.register_autograd(_backward, setup_context=_setup)
register_autocast("ssd", ("x", "dt", "B", "C"))
register_flops("ssd", _flops, gradients=1)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk_size: int = 64,
    *,
    backend: str = "auto",
) -> Tensor:
    """Compute the causal state-space dual of Mamba-2 (arXiv 2405.21060): one scalar decay a head, matrix products.

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, y_t = S_t C_t + D x_t; S_{-1} = 0.

    Letters: Bt batch, L positions, H heads, P channels a head, G groups (H divisible by G), N states.

    Args:
        x: Input (Bt, L, H, P); float32, bfloat16, float16 or float64.
        dt: Step size (Bt, L, H), dtype of x.
        A: Decay (H,), real.
        B: (Bt, L, G, N), dtype of x.
        C: As B.
        D: Skip (H,) or (H, P).
        dt_bias: Added to dt, (H,).
        dt_softplus: Apply softplus (linear above 20) to dt + dt_bias.
        chunk_size: Positions a chunk of the torch backend; changes the speed, not the result. L need not be a multiple.
        backend: "cpp" (the compiled library, on CPUs; no float64), "torch" (in chunks, any device) or "reference" (one
            position at a time; the gradient is made by chunks). "auto" takes the variable VSSM_BACKEND when set. Where
            that names triton, which this op has not, or is not set, it is cpp where that can run, else torch.

    Returns:
        y (Bt, L, H, P) in the dtype of x; computed in float32 or better.

    Raises:
        TypeError: As `selective_scan`.
        ValueError: Shapes do not fit, or the backend is not one of these four.
        RuntimeError: The backend cannot run these tensors; says what to install.
    """
    return torch.ops.vssm.ssd(
        x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, chunk_size=chunk_size, backend=backend
    )
