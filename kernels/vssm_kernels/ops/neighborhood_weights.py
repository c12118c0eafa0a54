"""The ops `neighborhood_weights` and `neighborhood_sum`: neighbourhood attention of more than one set of values.

`neighborhood_weights` gives the weights of queries and keys, `neighborhood_sum` sums values by them. Where the weights
would take much more memory than the maps, and where a backend does not give them, the first gives an empty tensor and
the second computes them anew. Which of the two happens shows in no result beyond rounding, nor in a count of
operations.
"""

import torch
from torch import Tensor

from ..backends import choose_attention_backend
from ..flops import neighborhood_attention_macs
from ..neighborhood import compiled, tiles, weights
from ..watch import is_followed
from .neighborhood import check_queries, scale_of, settings_of
from .registration import (
    absent,
    check_devices,
    check_gradient,
    check_tensor,
    present,
    register,
    register_autocast,
    register_flops,
)

__all__ = ["are_kept", "keeps_weights", "neighborhood_sum", "neighborhood_weights"]

# The most that is kept, as a multiple of the queries.
_MOST = 8


def keeps_weights(q: Tensor, kernel_size, dilation) -> bool:
    """Tell whether the weights of these queries are worth their memory; not where sizes are symbolic.

    Only tiles in PyTorch keep them: kernels compute them anew in about the time that reading them would take. Where
    something counts or records, they are kept by the same rule on all CPUs.
    """
    height, width, heads, channels = q.shape[1:]
    if not all(isinstance(size, int) for size in (height, width, *dilation)) or torch.compiler.is_compiling():
        return False
    module = choose_attention_backend("auto", q, q)
    if module is not tiles and not (module is compiled and is_followed()):
        return False
    size = weights.weights_size(height, width, heads, list(kernel_size), list(dilation))
    return size <= _MOST * height * width * heads * channels


# --------------------------------------------------------------------------------------------------------------------
# weights


def are_kept(keep: bool, q: Tensor, backend: str) -> bool:
    """Tell whether weights that are to be kept are kept with this backend: not by kernels that never give them."""
    return keep and choose_attention_backend(backend, q, q) in (tiles, compiled)


def _weights(q, k, kernel_size, dilation, bias, scale, keep, backend) -> Tensor:
    check_queries("neighborhood_weights", q, k, kernel_size, dilation, bias)
    if not are_kept(keep, q, backend) or len(q) == 0:
        return _weights_fake(q, k, kernel_size, dilation, bias, scale, keep, backend)
    return weights.weights_fwd(q, k, bias, kernel_size, dilation, scale_of(q, scale))


def _weights_fake(q, k, kernel_size, dilation, bias, scale, keep, backend) -> Tensor:
    check_queries("neighborhood_weights", q, k, kernel_size, dilation, bias)
    height, width, heads = q.shape[1:4]
    size = weights.weights_size(height, width, heads, kernel_size, dilation) if are_kept(keep, q, backend) else 0
    dtype = torch.promote_types(q.dtype, torch.float32)
    return torch.empty(q.shape[0], size, dtype=dtype, device=q.device)


_weights_op = register(
    "neighborhood_weights(Tensor q, Tensor k, int[] kernel_size, SymInt[] dilation=[1, 1], Tensor? bias=None, "
    "float? scale=None, bool keep=False, str backend='auto') -> Tensor",
    _weights,
    _weights_fake,
)


def _weights_backward_kernel(grad, kept, q, k, kernel_size, dilation, bias, scale):
    check_queries("neighborhood_weights", q, k, kernel_size, dilation, bias)
    check_gradient("neighborhood_weights", grad, kept.shape, q)
    if kept.numel() == 0:
        return [torch.zeros_like(q), torch.zeros_like(k), absent(q) if bias is None else torch.zeros_like(bias)]
    dq, dk, dbias = weights.weights_bwd(grad, kept, q, k, bias, kernel_size, dilation, scale_of(q, scale))
    return [dq.to(q.dtype), dk.to(k.dtype), absent(q) if bias is None else dbias.to(bias.dtype)]


def _weights_backward_fake(grad, kept, q, k, kernel_size, dilation, bias, scale):
    return [torch.empty_like(q), torch.empty_like(k), absent(q) if bias is None else torch.empty_like(bias)]


register(
    "neighborhood_weights_backward(Tensor grad, Tensor kept, Tensor q, Tensor k, int[] kernel_size, "
    "SymInt[] dilation, Tensor? bias, float? scale) -> Tensor[]",
    _weights_backward_kernel,
    _weights_backward_fake,
)


def _weights_setup(ctx, inputs, output):
    q, k, ctx.kernel_size, ctx.dilation, bias, ctx.scale, _, _ = inputs
    ctx.save_for_backward(output, q, k, bias)


def _weights_backward(ctx, grad):
    kept, q, k, bias = ctx.saved_tensors
    if kept.shape[1] == 0:
        return (None,) * 8  # the sums give the gradients
    dq, dk, dbias = torch.ops.vssm.neighborhood_weights_backward(
        grad, kept, q, k, ctx.kernel_size, ctx.dilation, bias, ctx.scale
    )
    return dq, dk, None, None, None if bias is None else dbias, None, None, None


def _weights_flops(*, q, kernel_size, **others) -> int:
    return 2 * neighborhood_attention_macs(q[0], q[1], q[2], q[3], q[4], 0, kernel_size)


_weights_op.register_autograd(_weights_backward, setup_context=_weights_setup)
register_autocast("neighborhood_weights", ("q", "k"))
register_flops("neighborhood_weights", _weights_flops, gradients=2)


def neighborhood_weights(
    q: Tensor,
    k: Tensor,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    scale: float | None = None,
    keep: bool | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Compute the weights of `neighborhood_attention`, for `neighborhood_sum`.

    Letters: as for `neighborhood_attention`; N weights of a map, in an order of this package's own.

    Args:
        q: Queries (B, H, W, n, E).
        k: Keys, shape and dtype of q.
        kernel_size: Of the window.
        dilation: Of the window.
        bias: Added to the scores.
        scale: Of the products of queries and keys; None: E ** -0.5.
        keep: Keep the weights; None: where they take at most 8 times the memory of the queries, if sizes are known,
            and the backend that "auto" takes is torch.
        backend: As for `neighborhood_attention`; only torch keeps weights, also in the place of cpp.

    Returns:
        (B, N) in float32 or better; (B, 0) where they are not kept.

    Raises:
        TypeError, ValueError, RuntimeError: As `neighborhood_attention`.
    """
    if keep is None:
        keep = keeps_weights(q, kernel_size, dilation)
    return torch.ops.vssm.neighborhood_weights(q, k, kernel_size, dilation, bias, scale, keep, backend)


# --------------------------------------------------------------------------------------------------------------------
# sum


def _check_sum(kept, q, k, v, kernel_size, dilation, bias) -> None:
    op = "neighborhood_sum"
    check_queries(op, q, k, kernel_size, dilation, bias)
    check_tensor(op, "v", v, (*q.shape[:4], None))
    check_tensor(op, "weights", kept, (q.shape[0], None))
    if kept.shape[1] > 0:
        height, width, heads = q.shape[1:4]
        size = weights.weights_size(height, width, heads, kernel_size, dilation)
        check_tensor(op, "weights", kept, (q.shape[0], size))
    check_devices(op, weights=kept, q=q, v=v)


def _queries(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the widest of their dtypes."""
    dtype = torch.promote_types(q.dtype, v.dtype)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _sum(kept, q, k, v, kernel_size, dilation, bias, scale, backend) -> Tensor:
    _check_sum(kept, q, k, v, kernel_size, dilation, bias)
    if v.numel() == 0:
        return torch.empty_like(v, memory_format=torch.contiguous_format)
    if kept.shape[1] > 0:
        return weights.sum_fwd(kept, v, kernel_size, dilation)
    wide_q, wide_k, wide_v = _queries(q, k, v)
    module = choose_attention_backend(backend, wide_q, wide_v)
    settings = settings_of(q, kernel_size, dilation, bias, scale)
    return module.attention_fwd(wide_q, wide_k, wide_v, bias, *settings).to(v.dtype)


def _sum_fake(kept, q, k, v, kernel_size, dilation, bias, scale, backend) -> Tensor:
    _check_sum(kept, q, k, v, kernel_size, dilation, bias)
    return torch.empty_like(v, memory_format=torch.contiguous_format)


_sum_op = register(
    "neighborhood_sum(Tensor weights, Tensor q, Tensor k, Tensor v, int[] kernel_size, SymInt[] dilation=[1, 1], "
    "Tensor? bias=None, float? scale=None, str backend='auto') -> Tensor",
    _sum,
    _sum_fake,
)


def _sum_backward_kernel(grad, kept, q, k, v, kernel_size, dilation, bias, scale, backend):
    _check_sum(kept, q, k, v, kernel_size, dilation, bias)
    check_gradient("neighborhood_sum", grad, v.shape, q)
    if kept.shape[1] > 0 and v.numel() > 0:
        dkept, dv = weights.sum_bwd(grad, kept, v, kernel_size, dilation)
        return [dkept, absent(q), absent(q), dv.to(v.dtype), absent(q)]
    if v.numel() == 0:
        zeros = (present(None if x is None else torch.zeros_like(x), q) for x in (q, k, v, bias))
        return [torch.zeros_like(kept) if kept.shape[1] > 0 else absent(kept), *zeros]
    wide_q, wide_k, wide_v = _queries(q, k, v)
    module = choose_attention_backend(backend, wide_q, wide_v)
    backward = getattr(module, "attention_bwd", tiles.attention_bwd)
    given = (wide_q, wide_k, wide_v, bias, *settings_of(q, kernel_size, dilation, bias, scale))
    gradients = zip(backward(grad.to(wide_v.dtype), *given), (q, k, v, bias), strict=True)
    return [absent(kept), *(absent(q) if x is None else g.to(x.dtype) for g, x in gradients)]


def _sum_backward_fake(grad, kept, q, k, v, kernel_size, dilation, bias, scale, backend):
    if kept.shape[1] > 0:
        return [torch.empty_like(kept), absent(q), absent(q), torch.empty_like(v), absent(q)]
    return [absent(kept), *(absent(q) if x is None else torch.empty_like(x) for x in (q, k, v, bias))]


register(
    "neighborhood_sum_backward(Tensor grad, Tensor weights, Tensor q, Tensor k, Tensor v, int[] kernel_size, "
    "SymInt[] dilation, Tensor? bias, float? scale, str backend) -> Tensor[]",
    _sum_backward_kernel,
    _sum_backward_fake,
)


def _sum_setup(ctx, inputs, output):
    kept, q, k, v, ctx.kernel_size, ctx.dilation, bias, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(kept, q, k, v, bias)


def _sum_backward(ctx, grad):
    kept, q, k, v, bias = ctx.saved_tensors
    dkept, dq, dk, dv, dbias = torch.ops.vssm.neighborhood_sum_backward(
        grad, kept, q, k, v, ctx.kernel_size, ctx.dilation, bias, ctx.scale, ctx.backend
    )
    if kept.shape[1] > 0:
        return dkept, None, None, dv, None, None, None, None, None
    return None, dq, dk, dv, None, None, None if bias is None else dbias, None, None


def _sum_flops(*, v, kernel_size, **others) -> int:
    return 2 * neighborhood_attention_macs(v[0], v[1], v[2], v[3], v[4], 0, kernel_size)


_sum_op.register_autograd(_sum_backward, setup_context=_sum_setup)
register_autocast("neighborhood_sum", ("q", "k"))
register_flops("neighborhood_sum", _sum_flops, gradients=1)


def neighborhood_sum(
    weights: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Sum values by the weights of `neighborhood_weights`: with it, `neighborhood_attention` of several sets of values.

    Args:
        weights: What `neighborhood_weights` gave for the same further arguments; where it kept nothing the weights are
            computed anew.
        q: Queries (B, H, W, n, E).
        k: Keys, shape and dtype of q.
        v: Values (B, H, W, n, F), of any dtype allowed.
        kernel_size: Of the window.
        dilation: Of the window.
        bias: Added to the scores.
        scale: Of the products of queries and keys; None: E ** -0.5.
        backend: As for `neighborhood_attention`.

    Returns:
        (B, H, W, n, F) in the dtype of v, summed in float32 or better, or in that of v where they are computed anew.

    Raises:
        TypeError, ValueError, RuntimeError: As `neighborhood_attention`.
    """
    return torch.ops.vssm.neighborhood_sum(weights, q, k, v, kernel_size, dilation, bias, scale, backend)
