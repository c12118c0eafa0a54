"""The op `selective_scan_2d`: the selective scan of a map along routes, in a plane or in a volume."""

from functools import partial

import torch
from torch import Tensor

from ..backends import choose_backend
from ..flops import selective_scan_2d_flops
from ..routes import (
    Routes,
    check_code,
    count_routes,
    count_sequences,
    encode_routes,
    map_rank,
    on_flat_maps,
    sequence_lengths,
)
from ..scan_2d import scan_2d_bwd, scan_2d_fwd
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

__all__ = ["selective_scan_2d"]


def _check_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, out_dtype) -> None:
    op = "selective_scan_2d"
    check_code(op, routes)
    rank, sequences = map_rank(routes), count_sequences(routes)
    if u.dim() not in (rank + 2, rank + 3):
        raise ValueError(
            f"{op}: routes over maps of {rank} dimensions take u with {rank + 2} dimensions, or {rank + 3} where each "
            f"sequence has channels of its own, got shape {tuple(u.shape)}"
        )
    check_tensor(op, "u", u, (None,) * (rank + 2), (None,) * (rank + 1) + (sequences, None))
    check_nonempty(op, u)
    batch, size, channels = u.shape[0], u.shape[1 : 1 + rank], u.shape[-1]
    check_tensor(op, "A", A, (sequences, channels, None))
    states = A.shape[2]
    if states == 0:
        raise ValueError(f"{op}: A must hold at least one state, got shape {tuple(A.shape)}")
    check_tensor(op, "dt_weight", dt_weight, (sequences, channels, None))
    dt_rank = channels if dt_weight is None else dt_weight.shape[2]
    if dt_rank == 0:
        raise ValueError(f"{op}: dt_weight must have a rank of at least 1, got shape {tuple(dt_weight.shape)}")
    check_tensor(op, "dt", dt, (batch, *size, sequences, dt_rank), dtype=u.dtype)
    check_tensor(op, "B", B, (batch, *size, sequences, states), dtype=u.dtype)
    check_tensor(op, "C", C, (batch, *size, sequences, states), dtype=u.dtype)
    check_tensor(op, "D", D, (sequences, channels))
    check_tensor(op, "delta_bias", delta_bias, (sequences, channels))
    check_out_dtype(op, out_dtype)
    check_devices(op, u=u, dt=dt, A=A, B=B, C=C, D=D, delta_bias=delta_bias, dt_weight=dt_weight)


def _work(u: Tensor, A: Tensor) -> int:
    return u[..., 0].numel() * A.numel()


def _kernel(u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, out_dtype, backend) -> Tensor:
    _check_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, out_dtype)
    module = choose_backend(backend, u.device, u.dtype, _work(u, A))
    # A backend without a fused 2-D scan composes it from its 1-D one.
    scan = getattr(module, "selective_scan_2d_fwd", None) or partial(scan_2d_fwd, module.selective_scan_fwd)
    return on_flat_maps(scan, ("u", "dt", "B", "C"))(
        u=u,
        dt=dt,
        A=A,
        B=B,
        C=C,
        D=D,
        delta_bias=delta_bias,
        dt_weight=dt_weight,
        code=routes,
        delta_softplus=delta_softplus,
        merge=merge,
        out_dtype=out_dtype or u.dtype,
    )


def _result_shape(u: Tensor, routes, merge: bool) -> tuple[int, ...]:
    on_map, channels = u.shape[: 1 + map_rank(routes)], u.shape[-1]
    return (*on_map, channels) if merge else (*on_map, count_routes(routes), channels)


def _fake(u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, out_dtype, backend) -> Tensor:
    _check_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, out_dtype)
    return torch.empty(_result_shape(u, routes, merge), dtype=out_dtype or u.dtype, device=u.device)


# A list without a default could not follow arguments that have one; an empty one is refused.
_op = register(
    "selective_scan_2d(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor? C=None, Tensor? D=None, "
    "Tensor? delta_bias=None, Tensor? dt_weight=None, int[] routes=[], bool delta_softplus=True, bool merge=True, "
    "ScalarType? out_dtype=None, str backend='auto') -> Tensor",
    _kernel,
    _fake,
)


def _backward_kernel(grad, u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, backend):
    _check_scan_2d(u, dt, A, B, C, D, delta_bias, dt_weight, routes, None)
    check_gradient("selective_scan_2d", grad, _result_shape(u, routes, merge), u)
    module = choose_backend(backend, u.device, u.dtype, _work(u, A))
    scan_bwd = getattr(module, "selective_scan_2d_bwd", None) or partial(scan_2d_bwd, module.selective_scan_bwd)
    gradients = on_flat_maps(scan_bwd, ("u", "dt", "B", "C", "grad"))(
        grad=grad,
        u=u,
        dt=dt,
        A=A,
        B=B,
        C=C,
        D=D,
        delta_bias=delta_bias,
        dt_weight=dt_weight,
        code=routes,
        delta_softplus=delta_softplus,
        merge=merge,
    )
    return [present(g, u) for g in gradients]


def _backward_fake(grad, u, dt, A, B, C, D, delta_bias, dt_weight, routes, delta_softplus, merge, backend):
    return fake_gradients((u, dt, A, B, C, D, delta_bias, dt_weight), parameters=(2, 5, 6, 7))


register(
    "selective_scan_2d_backward(Tensor grad, Tensor u, Tensor dt, Tensor A, Tensor B, Tensor? C, Tensor? D, "
    "Tensor? delta_bias, Tensor? dt_weight, int[] routes, bool delta_softplus, bool merge, str backend) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)


def _setup(ctx, inputs, output):
    *tensors, ctx.routes, ctx.delta_softplus, ctx.merge, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    u, dt, A, B, C, D, delta_bias, dt_weight = tensors
    gradients = torch.ops.vssm.selective_scan_2d_backward(
        grad=grad,
        u=u,
        dt=dt,
        A=A,
        B=B,
        C=C,
        D=D,
        delta_bias=delta_bias,
        dt_weight=dt_weight,
        routes=ctx.routes,
        delta_softplus=ctx.delta_softplus,
        merge=ctx.merge,
        backend=ctx.backend,
    )
    return (*cast_gradients(gradients, tensors), None, None, None, None, None)


def _flops(*, u, A, C, D, dt_weight, routes, **others) -> int:
    lengths = sequence_lengths(routes, *u[1 : 1 + map_rank(routes)])
    rank = 0 if dt_weight is None else dt_weight[2]
    scanned = selective_scan_2d_flops(u[0], lengths, u[-1], A[2], None, C is not None, D is not None)
    return scanned + 2 * u[0] * sum(lengths) * u[-1] * rank  # torch counts two per multiply-add


_op.register_autograd(_backward, setup_context=_setup)
register_autocast("selective_scan_2d", ("u", "dt", "B", "C"))
register_flops("selective_scan_2d", _flops, gradients=1)


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
    """Compute the selective scan of a channels-last map along several routes (VMamba, arXiv 2401.10166, section 4.2).

    The projections are point-wise, so they are computed once on the map and read along the routes; the results are put
    back on the map and summed.

    Letters: Bt batch, H x W map, D channels, K sequences (entries of `routes`), N states, R rank of the step size.
    Where the routes have axes, the map has as many dimensions: (Bt, H, W, ...) below is (Bt, depth, H, W, ...) for
    routes of three axes. The kernels are the same, and nothing is laid out in sequences there either.

    Args:
        u: Input (Bt, H, W, D) read by all sequences, or (Bt, H, W, K, D) with channels of its own for each. float32,
            bfloat16 or float16 (float64 with the backends torch and reference). Any strides.
        dt: Low-rank step size (Bt, H, W, K, R) expanded by `dt_weight`, or the full one (Bt, H, W, K, D) without it;
            dtype of u.
        A: State matrix (K, D, N), real.
        B: (Bt, H, W, K, N), dtype of u.
        C: As B. Without it the states are summed over N: with N = 1 the result is the state itself (Spatial-Mamba).
        D: Skip (K, D).
        delta_bias: Added to the step size, (K, D).
        dt_weight: (K, D, R).
        routes: One entry a sequence: a `Route`, or several routes joined into one sequence without a reset of the
            state.
        delta_softplus: Apply softplus (linear above 20) to the step size plus `delta_bias`.
        merge: Sum the routes' results on the map; False keeps them apart.
        out_dtype: Dtype of the result, that of u when None. The sum is made in float32 or better.
        backend: See `selective_scan`.

    Returns:
        (Bt, H, W, D), or (Bt, H, W, routes, D) with merge=False (joined routes counted one by one). Pixels that no
        route visits are zero.

    Raises:
        TypeError: As `selective_scan`.
        ValueError: As `selective_scan`, routes that cannot be encoded, or maps of another rank than theirs.
        RuntimeError: As `selective_scan`.
    """
    return torch.ops.vssm.selective_scan_2d(
        u=u,
        dt=dt,
        A=A,
        B=B,
        C=C,
        D=D,
        delta_bias=delta_bias,
        dt_weight=dt_weight,
        routes=encode_routes(routes),
        delta_softplus=delta_softplus,
        merge=merge,
        out_dtype=out_dtype,
        backend=backend,
    )
