"""The op `neighborhood_attention`: each pixel attends to a window of pixels around it."""

import torch
from torch import Tensor

from ..backends import choose_attention_backend
from ..flops import neighborhood_attention_macs
from ..neighborhood import tiles
from ..neighborhood.rule import fit_window
from .registration import (
    absent,
    cast_gradients,
    check_devices,
    check_gradient,
    check_tensor,
    fake_gradients,
    register,
    register_autocast,
    register_flops,
)

__all__ = ["check_queries", "neighborhood_attention", "scale_of", "settings_of"]

_NAME = "neighborhood_attention"


def check_queries(op: str, q, k, kernel_size, dilation, bias) -> None:
    """Refuse windows that have no middle, steps backwards, empty maps, and keys and a bias that do not fit."""
    if len(kernel_size) != 2 or any(size < 1 or size % 2 == 0 for size in kernel_size):
        raise ValueError(f"{op}: kernel_size must be two odd numbers, got {tuple(kernel_size)}")
    if len(dilation) != 2 or any(step < 1 for step in dilation):
        raise ValueError(f"{op}: dilation must be two numbers of at least 1, got {tuple(dilation)}")
    check_tensor(op, "q", q, (None,) * 5)
    if 0 in q.shape[1:]:
        raise ValueError(f"{op}: the map is empty, got shape {tuple(q.shape)}")
    check_tensor(op, "k", k, tuple(q.shape), dtype=q.dtype)
    check_tensor(op, "bias", bias, (q.shape[3], *(2 * size - 1 for size in kernel_size)))
    check_devices(op, q=q, k=k, bias=bias)


def _check(q, k, v, kernel_size, dilation, bias) -> None:
    check_queries(_NAME, q, k, kernel_size, dilation, bias)
    check_tensor(_NAME, "v", v, (*q.shape[:4], None), dtype=q.dtype)
    check_devices(_NAME, q=q, v=v)


def scale_of(q: Tensor, scale: float | None) -> float:
    """Give the scale of the products, which has a default."""
    return q.shape[-1] ** -0.5 if scale is None else scale


def settings_of(q: Tensor, kernel_size, dilation, bias: Tensor | None, scale: float | None) -> tuple:
    """Give what backends take behind the tensors: the window and dilation as this map needs them, and the scale."""
    return *fit_window(q.shape[1:3], kernel_size, dilation, bias), scale_of(q, scale)


def _kernel(q, k, v, kernel_size, dilation, bias, scale, backend) -> Tensor:
    _check(q, k, v, kernel_size, dilation, bias)
    module = choose_attention_backend(backend, q, v)
    if v.numel() == 0:
        return torch.empty_like(v, memory_format=torch.contiguous_format)
    return module.attention_fwd(q, k, v, bias, *settings_of(q, kernel_size, dilation, bias, scale))


def _fake(q, k, v, kernel_size, dilation, bias, scale, backend) -> Tensor:
    _check(q, k, v, kernel_size, dilation, bias)
    choose_attention_backend(backend, q, v)
    return torch.empty_like(v, memory_format=torch.contiguous_format)


_op = register(
    "neighborhood_attention(Tensor q, Tensor k, Tensor v, int[] kernel_size, SymInt[] dilation=[1, 1], "
    "Tensor? bias=None, float? scale=None, str backend='auto') -> Tensor",
    _kernel,
    _fake,
)


def _backward_kernel(grad, q, k, v, kernel_size, dilation, bias, scale, backend):
    _check(q, k, v, kernel_size, dilation, bias)
    check_gradient(_NAME, grad, v.shape, q)
    inputs = (q, k, v, bias)
    if v.numel() == 0:
        return [absent(q) if x is None else torch.zeros_like(x) for x in inputs]
    module = choose_attention_backend(backend, q, v)
    # The reference's gradient is made by tiles, too.
    backward = getattr(module, "attention_bwd", tiles.attention_bwd)
    gradients = backward(grad, q, k, v, bias, *settings_of(q, kernel_size, dilation, bias, scale))
    return [absent(q) if x is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)]


def _backward_fake(grad, q, k, v, kernel_size, dilation, bias, scale, backend):
    return fake_gradients((q, k, v, bias), parameters=())


register(
    "neighborhood_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, int[] kernel_size, SymInt[] dilation, "
    "Tensor? bias, float? scale, str backend) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)


def _setup(ctx, inputs, output):
    q, k, v, ctx.kernel_size, ctx.dilation, bias, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, bias)


def _backward(ctx, grad):
    q, k, v, bias = tensors = ctx.saved_tensors
    gradients = torch.ops.vssm.neighborhood_attention_backward(
        grad, q, k, v, ctx.kernel_size, ctx.dilation, bias, ctx.scale, ctx.backend
    )
    dq, dk, dv, dbias = cast_gradients(gradients, tensors)
    return dq, dk, dv, None, None, dbias, None, None


def _flops(*, q, v, kernel_size, **others) -> int:
    return 2 * neighborhood_attention_macs(q[0], q[1], q[2], q[3], q[4], v[-1], kernel_size)


_op.register_autograd(_backward, setup_context=_setup)
register_autocast(_NAME, ("q", "k", "v"))
register_flops(_NAME, _flops, gradients=1)


def neighborhood_attention(
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
    """Let each pixel attend to a window of pixels around it (arXiv 2204.07143; with dilation arXiv 2209.15001).

    At a border the window is shifted to stay on the map: each pixel has kernel_size[0] x kernel_size[1] neighbours, as
    in NATTEN 0.17. With a dilation d on an axis, the pixels i with one remainder i mod d attend to each other as if the
    others were not there. NATTEN refuses an axis of fewer than kernel_size x dilation pixels; here a pixel attends to
    all pixels of its remainder where those are fewer than kernel_size.

    Letters: B batch, H x W map, n heads, E channels a head, F channels a head of the values.

    Args:
        q: Queries (B, H, W, n, E); float32, bfloat16, float16 or float64.
        k: Keys, shape and dtype of q.
        v: Values (B, H, W, n, F), dtype of q.
        kernel_size: Height and width of the window, odd.
        dilation: Steps between two pixels of the window, by rows and columns.
        bias: Added to the scores, (n, 2 kernel_size[0] - 1, 2 kernel_size[1] - 1). Its middle belongs to the pixel
            itself, and what is a rows and b columns from there to the neighbour that is a and b steps away.
        scale: Of the products of queries and keys; None: E ** -0.5.
        backend: "torch" (by tiles, any device), "cpp" (the compiled library, on CPUs), "flex" (PyTorch's flex_attention
            on CUDA) or "reference". "auto" takes the variable VSSM_BACKEND when set. Where that names triton, or is not
            set, it is flex or cpp where one of them can run, else torch. The reference's gradient is made by tiles.

    Returns:
        (B, H, W, n, F) in the dtype of v.

    Raises:
        TypeError: A dtype is not allowed.
        ValueError: Shapes do not fit, or there is no such backend.
        RuntimeError: The backend is not available; says why.
    """
    return torch.ops.vssm.neighborhood_attention(q, k, v, kernel_size, dilation, bias, scale, backend)
