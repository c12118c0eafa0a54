"""The public ops, each a `torch.library` custom op: schema, fake kernel, autograd, autocast rule, FLOP formula.

`torch.ops.vssm.selective_scan`, `selective_scan_2d` and `ssd` are what compilers, exporters, TorchScript and FLOP
counters see, whichever backend runs. The functions of this module are their documented Python faces.
"""

from functools import partial

import torch
from torch import Tensor

from . import chunked, reference
from .backends import choose_backend
from .flops import selective_scan_2d_flops, selective_scan_flops, ssd_flops
from .reference import compute_dtype
from .routes import FIELDS, Routes, encode_routes
from .scan_2d import scan_2d_bwd, scan_2d_fwd, sequence_lengths

__all__ = ["selective_scan", "selective_scan_2d", "ssd"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check_tensor(op: str, name: str, x: Tensor | None, *shapes: tuple, dtype: torch.dtype | None = None) -> None:
    """One sentence when `x` is not a real floating tensor of one of the shapes (None in a shape: any size)."""
    if x is None:
        return
    if x.is_complex():
        raise TypeError(f"{op}: {name} must be real, got {x.dtype}; complex state matrices are not supported")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{op}: {name} must have the dtype of the other inputs, {dtype}, got {x.dtype}")
    for shape in shapes:
        if len(shape) == x.dim() and all(want is None or want == got for want, got in zip(shape, x.shape, strict=True)):
            return
    allowed = " or ".join("(" + ", ".join("any" if s is None else str(s) for s in shape) + ")" for shape in shapes)
    raise ValueError(f"{op}: {name} must have shape {allowed}, got {tuple(x.shape)}")


def _check_nonempty(op: str, u: Tensor) -> None:
    if u.numel() == 0:
        raise ValueError(f"{op}: the input is empty, got shape {tuple(u.shape)}")


def _check_devices(op: str, **tensors: Tensor | None) -> None:
    given = {name: x.device for name, x in tensors.items() if x is not None}
    if len(set(given.values())) > 1:
        places = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise ValueError(f"{op}: all inputs must be on one device, got {places}")


def _check_out_dtype(op: str, out_dtype: torch.dtype | None) -> None:
    if out_dtype is not None and out_dtype not in _FLOATS:
        raise TypeError(f"{op}: out_dtype must be float32, bfloat16, float16 or float64, got {out_dtype}")


def _absent(like: Tensor) -> Tensor:
    """An operator returns tensors, not None: this one stands for a gradient nobody asked for."""
    return like.new_empty(0)


def _present(x: Tensor | None, like: Tensor) -> Tensor:
    return _absent(like) if x is None else x


def _fake_gradients(tensors: tuple[Tensor | None, ...], parameters: tuple[int, ...]) -> list[Tensor]:
    """Empty gradients in the order given: those at `parameters` in the dtype of the state, others in their own."""
    first = tensors[0]
    state = compute_dtype(first)
    return [
        _absent(first)
        if x is None
        else torch.empty(x.shape, dtype=state if i in parameters else x.dtype, device=x.device)
        for i, x in enumerate(tensors)
    ]


def _register(name: str, schema: str, kernel, fake):
    op = torch.library.custom_op(f"vssm::{name}", kernel, mutates_args=(), schema=schema)
    op.register_fake(fake)
    return op


# --------------------------------------------------------------------------------------------------------------------
# selective_scan


def _check_scan(u, delta, A, B, C, D, z, delta_bias, out_dtype) -> None:
    op = "selective_scan"
    _check_tensor(op, "u", u, (None, None, None))
    _check_nonempty(op, u)
    batch, channels, length = u.shape
    _check_tensor(op, "delta", delta, (batch, channels, length), dtype=u.dtype)
    _check_tensor(op, "A", A, (channels, None))
    states = A.shape[1]
    if states == 0:
        raise ValueError(f"{op}: A must hold at least one state, got shape {tuple(A.shape)}")
    _check_tensor(op, "B", B, (batch, None, states, length), dtype=u.dtype)
    if B.shape[1] == 0 or channels % B.shape[1]:
        raise ValueError(f"{op}: {channels} channels cannot be split into the {B.shape[1]} groups of B")
    _check_tensor(op, "C", C, tuple(B.shape), dtype=u.dtype)
    _check_tensor(op, "D", D, (channels,))
    _check_tensor(op, "z", z, (batch, channels, length), dtype=u.dtype)
    _check_tensor(op, "delta_bias", delta_bias, (channels,))
    _check_out_dtype(op, out_dtype)
    _check_devices(op, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)


def gated_scan(scan, u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype):
    """The op's two results by a backend's `selective_scan_fwd`, which knows no gate."""
    out_dtype = out_dtype or u.dtype
    if z is None:
        return scan(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype)
    y, last_state = scan(u, delta, A, B, C, D, delta_bias, delta_softplus, compute_dtype(u))
    return (y * torch.nn.functional.silu(z.to(y.dtype))).to(out_dtype), last_state


def _scan_kernel(u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype, backend):
    _check_scan(u, delta, A, B, C, D, z, delta_bias, out_dtype)
    scan = choose_backend(backend, u.device, u.dtype, u.numel() * A.shape[1]).selective_scan_fwd
    return gated_scan(scan, u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype)


def _scan_fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype, backend):
    _check_scan(u, delta, A, B, C, D, z, delta_bias, out_dtype)
    y = torch.empty(u.shape, dtype=out_dtype or u.dtype, device=u.device)
    return y, torch.empty((*u.shape[:2], A.shape[1]), dtype=compute_dtype(u), device=u.device)


_scan_op = _register(
    "selective_scan",
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, ScalarType? out_dtype, str backend) -> (Tensor, Tensor)",
    _scan_kernel,
    _scan_fake,
)


def _scan_bwd_kernel(grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend):
    module = choose_backend(backend, u.device, u.dtype, u.numel() * A.shape[1])
    grad_z = None
    if z is not None:
        # The ungated output is computed again rather than kept: it is as large as the input.
        y, _ = module.selective_scan_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, compute_dtype(u))
        gate, grad_y = z.to(y.dtype), grad_y.to(y.dtype)
        sigmoid = torch.sigmoid(gate)
        grad_z = (grad_y * y * sigmoid * (1 + gate * (1 - sigmoid))).to(z.dtype)
        grad_y = grad_y * gate * sigmoid
    grads = module.selective_scan_bwd(grad_y, grad_state, u, delta, A, B, C, D, delta_bias, delta_softplus)
    return [_present(g, u) for g in (*grads, grad_z)]


def _scan_bwd_fake(grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend):
    return _fake_gradients((u, delta, A, B, C, D, delta_bias, z), parameters=(2, 5, 6))


_register(
    "selective_scan_backward",
    "(Tensor grad_y, Tensor? grad_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool delta_softplus, str backend) -> Tensor[]",
    _scan_bwd_kernel,
    _scan_bwd_fake,
)


def _cast(grads, inputs):
    """Gradients in their inputs' dtypes, None for the inputs that were not given."""
    return [None if x is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)]


def _scan_setup(ctx, inputs, output):
    *tensors, ctx.delta_softplus, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _scan_backward(ctx, grad_y, grad_state):
    u, delta, A, B, C, D, z, delta_bias = ctx.saved_tensors
    if grad_y is None and grad_state is None:
        return (None,) * 11
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grads = torch.ops.vssm.selective_scan_backward(
        grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, ctx.backend
    )
    du, ddelta, dA, dB, dC, dD, dbias, dz = _cast(grads, (u, delta, A, B, C, D, delta_bias, z))
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None, None, None


_scan_op.register_autograd(_scan_backward, setup_context=_scan_setup)


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
    """The selective scan of Mamba (arXiv 2312.00752, eq. 2 and 4); takes what mamba_ssm's `selective_scan_fn` takes.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t h_t + D u_t, then y SiLU(z); h_{-1} = 0.

    Letters: Bt batch, M channels, N states, G groups (M divisible by G), L positions; all at least 1.

    Args:
        u: input (Bt, M, L); float32, bfloat16 or float16 (float64 with the backends torch and reference). Any strides.
        delta: step size (Bt, M, L), dtype of u.
        A: state matrix (M, N), real.
        B, C: (Bt, N, L), or (Bt, G, N, L) with each group's shared by its M/G channels; dtype of u.
        D: skip (M,). z: gate (Bt, M, L), dtype of u. delta_bias: (M,), added to delta.
        delta_softplus: apply softplus (linear above 20) to delta + delta_bias.
        return_last_state: return the state after the last position too.
        out_dtype: dtype of y; that of u when None. `torch.float32` with half inputs avoids the overflow of long sums.
        backend: "auto", "triton", "cpp", "torch" or "reference"; the variable VSSM_BACKEND replaces "auto".

    Returns:
        y (Bt, M, L), or (y, last_state) with last_state (Bt, M, N). States, softplus, A and D are float32 inside every
        backend (float64 for float64 inputs). Under autocast the inputs are raised to their widest dtype, never lowered.

    Raises:
        TypeError: a complex or otherwise unsupported dtype, or dtypes that differ. ValueError: shapes that do not fit.
        RuntimeError: the backend asked for is not available.
    """
    if isinstance(B, Tensor) and B.dim() == 3:
        B = B.unsqueeze(1)
    if isinstance(C, Tensor) and C.dim() == 3:
        C = C.unsqueeze(1)
    y, last_state = torch.ops.vssm.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, out_dtype, backend
    )
    return (y, last_state) if return_last_state else y


# --------------------------------------------------------------------------------------------------------------------
# selective_scan_2d


def _check_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, out_dtype) -> None:
    op = "selective_scan_2d"
    if not routes or len(routes) % FIELDS:
        raise ValueError(f"{op}: routes must be encoded by encode_routes, got {len(routes)} numbers")
    sequences = routes[-FIELDS] + 1
    _check_tensor(op, "u", u, (None,) * 4, (None, None, None, sequences, None))
    _check_nonempty(op, u)
    batch, height, width, channels = u.shape[0], u.shape[1], u.shape[2], u.shape[-1]
    _check_tensor(op, "A", A, (sequences, channels, None))
    states = A.shape[2]
    _check_tensor(op, "dt_weight", dt_weight, (sequences, channels, None))
    rank = channels if dt_weight is None else dt_weight.shape[2]
    if rank == 0:
        raise ValueError(f"{op}: dt_weight must have a rank of at least 1, got shape {tuple(dt_weight.shape)}")
    _check_tensor(op, "dt", dt, (batch, height, width, sequences, rank), dtype=u.dtype)
    _check_tensor(op, "B", B, (batch, height, width, sequences, states), dtype=u.dtype)
    _check_tensor(op, "C", C, (batch, height, width, sequences, states), dtype=u.dtype)
    _check_tensor(op, "D", D, (sequences, channels))
    _check_tensor(op, "delta_bias", delta_bias, (sequences, channels))
    _check_out_dtype(op, out_dtype)
    _check_devices(op, u=u, dt=dt, A=A, B=B, C=C, D=D, delta_bias=delta_bias, dt_weight=dt_weight)


def _scan_2d_work(u: Tensor, A: Tensor) -> int:
    return u[..., 0].numel() * A.numel()


def _scan_2d_kernel(
    u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, out_dtype, backend
) -> Tensor:
    _check_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, out_dtype)
    module = choose_backend(backend, u.device, u.dtype, _scan_2d_work(u, A))
    # A backend without a fused 2-D scan composes it from its 1-D one.
    scan = getattr(module, "selective_scan_2d_fwd", None) or partial(scan_2d_fwd, module.selective_scan_fwd)
    return scan(u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, out_dtype or u.dtype)


def _scan_2d_fake(u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, out_dtype, backend):
    _check_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, out_dtype)
    batch, height, width, channels = u.shape[0], u.shape[1], u.shape[2], u.shape[-1]
    shape = (batch, height, width, channels) if merge else (batch, height, width, len(routes) // FIELDS, channels)
    return torch.empty(shape, dtype=out_dtype or u.dtype, device=u.device)


_scan_2d_op = _register(
    "selective_scan_2d",
    "(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor? C, Tensor? D, Tensor? delta_bias, Tensor? dt_weight, "
    "int[] routes, bool delta_softplus, bool merge, ScalarType? out_dtype, str backend) -> Tensor",
    _scan_2d_kernel,
    _scan_2d_fake,
)


def _scan_2d_bwd_kernel(grad, u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, backend):
    module = choose_backend(backend, u.device, u.dtype, _scan_2d_work(u, A))
    scan_bwd = getattr(module, "selective_scan_2d_bwd", None) or partial(scan_2d_bwd, module.selective_scan_bwd)
    grads = scan_bwd(grad, u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge)
    return [_present(g, u) for g in grads]


def _scan_2d_bwd_fake(grad, u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, backend):
    return _fake_gradients((u, dt, A, B, C, D, delta_bias, dt_weight), parameters=(2, 5, 6, 7))


_register(
    "selective_scan_2d_backward",
    "(Tensor grad, Tensor u, Tensor dt, Tensor A, Tensor B, Tensor? C, Tensor? D, Tensor? delta_bias, "
    "Tensor? dt_weight, int[] routes, bool delta_softplus, bool merge, str backend) -> Tensor[]",
    _scan_2d_bwd_kernel,
    _scan_2d_bwd_fake,
)


def _scan_2d_setup(ctx, inputs, output):
    *tensors, ctx.routes, ctx.delta_softplus, ctx.merge, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _scan_2d_backward(ctx, grad):
    tensors = ctx.saved_tensors
    grads = torch.ops.vssm.selective_scan_2d_backward(
        grad, *tensors, ctx.routes, ctx.delta_softplus, ctx.merge, ctx.backend
    )
    return (*_cast(grads, tensors), None, None, None, None, None)


_scan_2d_op.register_autograd(_scan_2d_backward, setup_context=_scan_2d_setup)


def selective_scan_2d(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    dt_weight: Tensor | None = None,
    *,
    routes: Routes,
    delta_softplus: bool = True,
    merge: bool = True,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """The selective scan of a channels-last map along several routes (VMamba, arXiv 2401.10166, section 4.2).

    The projections are point-wise, so they are computed once on the map and read along the routes; the results are put
    back on the map and summed.

    Letters: Bt batch, H x W map, D channels, K sequences (entries of `routes`), N states, R rank of the step size.

    Args:
        u: input (Bt, H, W, D) read by all sequences, or (Bt, H, W, K, D) with channels of its own for each. float32,
            bfloat16 or float16 (float64 with the backends torch and reference). Any strides.
        dt: low-rank step size (Bt, H, W, K, R) expanded by `dt_weight`, or the full one (Bt, H, W, K, D) without it.
        A: (K, D, N), real. B, C: (Bt, H, W, K, N), dtype of u. Without C the states are summed over N: with N = 1 the
            result is the state itself (Spatial-Mamba).
        D, delta_bias: (K, D). dt_weight: (K, D, R).
        routes: one entry a sequence: a `Route`, or several routes joined into one sequence without a reset of the
            state.
        delta_softplus: apply softplus (linear above 20) to the step size plus `delta_bias`.
        merge: sum the routes' results on the map; False keeps them apart.
        out_dtype: dtype of the result, that of u when None. The sum is made in float32 or better.
        backend: see `selective_scan`.

    Returns:
        (Bt, H, W, D), or (Bt, H, W, routes, D) with merge=False (joined routes counted one by one). Pixels that no
        route visits are zero.

    Raises:
        TypeError, ValueError, RuntimeError: as `selective_scan`.
    """
    return torch.ops.vssm.selective_scan_2d(
        u, dt, A, B, C, D, delta_bias, dt_weight, encode_routes(routes), delta_softplus, merge, out_dtype, backend
    )


# --------------------------------------------------------------------------------------------------------------------
# ssd


def _check_ssd(x, dt, A, B, C, D, dt_bias, chunk_size, backend) -> None:
    op = "ssd"
    _check_tensor(op, "x", x, (None,) * 4)
    _check_nonempty(op, x)
    batch, length, heads, head_dim = x.shape
    _check_tensor(op, "dt", dt, (batch, length, heads), dtype=x.dtype)
    _check_tensor(op, "A", A, (heads,))
    _check_tensor(op, "B", B, (batch, length, None, None), dtype=x.dtype)
    if B.shape[2] == 0 or heads % B.shape[2]:
        raise ValueError(f"{op}: {heads} heads cannot be split into the {B.shape[2]} groups of B")
    _check_tensor(op, "C", C, tuple(B.shape), dtype=x.dtype)
    _check_tensor(op, "D", D, (heads,), (heads, head_dim))
    _check_tensor(op, "dt_bias", dt_bias, (heads,))
    _check_devices(op, x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias)
    if chunk_size < 1:
        raise ValueError(f"{op}: chunk_size must be at least 1, got {chunk_size}")
    if backend not in ("auto", "torch", "reference"):
        raise ValueError(f"{op}: backend must be auto, torch or reference, got '{backend}'")


def _ssd_kernel(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, backend) -> Tensor:
    _check_ssd(x, dt, A, B, C, D, dt_bias, chunk_size, backend)
    if backend == "reference":
        return reference.ssd_fwd(x, dt, A, B, C, D, dt_bias, dt_softplus)
    return chunked.ssd_fwd(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size)


def _ssd_fake(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, backend) -> Tensor:
    _check_ssd(x, dt, A, B, C, D, dt_bias, chunk_size, backend)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_ssd_op = _register(
    "ssd",
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, bool dt_softplus, int chunk_size, "
    "str backend) -> Tensor",
    _ssd_kernel,
    _ssd_fake,
)


def _ssd_bwd_kernel(grad, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size):
    grads = chunked.ssd_bwd(grad, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size)
    return [_present(g, x) for g in grads]


def _ssd_bwd_fake(grad, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size):
    return _fake_gradients((x, dt, A, B, C, D, dt_bias), parameters=(2, 5, 6))


_register(
    "ssd_backward",
    "(Tensor grad, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, bool dt_softplus, "
    "int chunk_size) -> Tensor[]",
    _ssd_bwd_kernel,
    _ssd_bwd_fake,
)


def _ssd_setup(ctx, inputs, output):
    *tensors, ctx.dt_softplus, ctx.chunk_size, _ = inputs
    ctx.save_for_backward(*tensors)


def _ssd_backward(ctx, grad):
    tensors = ctx.saved_tensors
    grads = torch.ops.vssm.ssd_backward(grad, *tensors, ctx.dt_softplus, ctx.chunk_size)
    return (*_cast(grads, tensors), None, None, None)


_ssd_op.register_autograd(_ssd_backward, setup_context=_ssd_setup)


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
    """The causal state-space dual of Mamba-2 (arXiv 2405.21060), one scalar decay a head, as chunked matrix products.

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, y_t = S_t C_t + D x_t; S_{-1} = 0.

    Letters: Bt batch, L positions, H heads, P channels a head, G groups (H divisible by G), N states.

    Args:
        x: (Bt, L, H, P); float32, bfloat16, float16 or float64.
        dt: step size (Bt, L, H), dtype of x. A: (H,). B, C: (Bt, L, G, N), dtype of x.
        D: skip (H,) or (H, P). dt_bias: (H,), added to dt.
        dt_softplus: apply softplus (linear above 20) to dt + dt_bias.
        chunk_size: positions a chunk; changes the speed, not the result. L need not be a multiple.
        backend: "auto", "torch" (chunked, any device) or "reference" (one position at a time).

    Returns:
        y (Bt, L, H, P) in the dtype of x; computed in float32 or better.

    Raises:
        TypeError, ValueError: as `selective_scan`.
    """
    return torch.ops.vssm.ssd(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, backend)


# --------------------------------------------------------------------------------------------------------------------
# autocast: raise the streaming inputs to their widest dtype. Autocast lowers linear layers and convolutions, so u, dt,
# B and C usually arrive in one half dtype; where one was kept in float32 on purpose, the others follow it.


def _autocast_rule(op, streaming: tuple[int, ...], device_type: str):
    def rule(*args):
        dtypes = [args[i].dtype for i in streaming if args[i] is not None]
        widest = dtypes[0]
        for dtype in dtypes[1:]:
            widest = torch.promote_types(widest, dtype)
        args = [x.to(widest) if i in streaming and x is not None else x for i, x in enumerate(args)]
        with torch.autocast(device_type, enabled=False):
            return op(*args)

    return rule


_autocast_library = torch.library.Library("vssm", "FRAGMENT")
for _name, _streaming in (
    ("selective_scan", (0, 1, 3, 4, 6)),
    ("selective_scan_2d", (0, 1, 3, 4)),
    ("ssd", (0, 1, 3, 4)),
):
    for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"), ("xpu", "AutocastXPU")):
        _op = getattr(torch.ops.vssm, _name).default
        _autocast_library.impl(_name, _autocast_rule(_op, _streaming, _device), _key)


# --------------------------------------------------------------------------------------------------------------------
# FLOP formulas for torch.utils.flop_counter. The backward counts twice the forward, as torch does for matrix products.


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    def scan(u, delta, A, B, C, D, z, *rest, out_shape=None, **kwargs) -> int:
        batch, channels, length = u
        return selective_scan_flops(batch, length, channels, A[1], with_D=D is not None, with_z=z is not None)

    def scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, *rest, out_shape=None, **kwargs) -> int:
        lengths = sequence_lengths(routes, u[1], u[2])
        rank = None if dt_weight is None else dt_weight[2]
        scanned = selective_scan_2d_flops(u[0], lengths, u[-1], A[2], None, C is not None, D is not None)
        return scanned + 2 * u[0] * sum(lengths) * u[-1] * (rank or 0)  # torch counts two per multiply-add

    def ssd_(x, dt, A, B, C, D, *rest, out_shape=None, **kwargs) -> int:
        return ssd_flops(*x, B[3], with_D=D is not None)

    ops = torch.ops.vssm
    register_flop_formula(ops.selective_scan)(scan)
    register_flop_formula(ops.selective_scan_2d)(scan_2d)
    register_flop_formula(ops.ssd)(ssd_)
    register_flop_formula(ops.selective_scan_backward)(lambda gy, gs, *a, **k: 2 * scan(*a[:7], **k))
    register_flop_formula(ops.selective_scan_2d_backward)(lambda g, *a, **k: 2 * scan_2d(*a, **k))
    register_flop_formula(ops.ssd_backward)(lambda g, *a, **k: 2 * ssd_(*a, **k))


_register_flops()
