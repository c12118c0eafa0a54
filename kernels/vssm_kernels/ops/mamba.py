"""The op `mamba_inner`: what a Mamba mixer does between its projections in and out."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import choose_backend
from ..flops import selective_scan_2d_flops
from ..mamba import mamba_inner_fwd
from .registration import (
    check_devices,
    check_nonempty,
    check_tensor,
    register,
    register_autocast,
)

__all__ = ["mamba_inner"]


def _check(xz, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D) -> None:
    op = "mamba_inner"
    check_tensor(op, "A", A, (None,) * 3)
    sequences, channels, states = A.shape
    if sequences not in (1, 2):
        raise ValueError(f"{op}: A must be of one direction or two, got shape {tuple(A.shape)}")
    check_tensor(op, "xz", xz, (None, None, 2 * channels))
    check_nonempty(op, xz)
    check_tensor(op, "conv_weight", conv_weight, (sequences * channels, 1, None), dtype=xz.dtype)
    check_tensor(op, "conv_bias", conv_bias, (sequences * channels,), dtype=xz.dtype)
    check_tensor(op, "dt_weight", dt_weight, (sequences, channels, None))
    check_tensor(op, "x_proj", x_proj, (sequences, dt_weight.shape[2] + 2 * states, channels), dtype=xz.dtype)
    for name, count, shape in (
        ("A must hold at least one state", states, A.shape),
        ("dt_weight must have a rank of at least 1", dt_weight.shape[2], dt_weight.shape),
        ("conv_weight must have at least one tap", conv_weight.shape[2], conv_weight.shape),
    ):
        if count == 0:
            raise ValueError(f"{op}: {name}, got shape {tuple(shape)}")
    check_tensor(op, "dt_bias", dt_bias, (sequences, channels))
    check_tensor(op, "D", D, (sequences, channels))
    check_devices(op, xz=xz, conv_weight=conv_weight, x_proj=x_proj, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)


def _composed(scan_backend: str, *args) -> Tensor:
    return mamba_inner_fwd(partial(torch.ops.vssm.selective_scan_2d, backend=scan_backend), *args)


def _kernel(*args) -> Tensor:
    *tensors, scale, backend = args
    _check(*tensors)
    xz, A = tensors[0], tensors[6]
    module = choose_backend(backend, xz.device, xz.dtype, xz[..., 0].numel() * A.numel())
    if hasattr(module, "mamba_inner_fwd"):
        return module.mamba_inner_fwd(*tensors, scale)
    return _composed(backend, *tensors, scale).contiguous()


def _fake(*args) -> Tensor:
    *tensors, _, _ = args
    _check(*tensors)
    xz = tensors[0]
    return xz.new_empty(xz.shape[0], xz.shape[1], xz.shape[2] // 2)


_op = register(
    "mamba_inner(Tensor xz, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj, Tensor dt_weight, Tensor dt_bias, "
    "Tensor A, Tensor D, float scale=1.0, str backend='auto') -> Tensor",
    _kernel,
    _fake,
)


def _setup(ctx, inputs, output):
    *tensors, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    """By the composed form, run anew: the op is for inference, and training scans by `selective_scan_2d`."""
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        y = _composed(ctx.backend, *leaves, ctx.scale)
        gradients = iter(torch.autograd.grad(y, [x for x in leaves if x is not None], grad))
    return (*(None if x is None else next(gradients) for x in leaves), None, None)


@register_flop_formula(torch.ops.vssm.mamba_inner)
def _flops(xz, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, *others, **named) -> int:
    batch, length = xz[:2]
    sequences, channels, states = A
    tokens = batch * length
    scanned = selective_scan_2d_flops(batch, [length] * sequences, channels, states, None, True, True)
    outputs = sequences * channels * (conv_weight[2] + x_proj[1] + dt_weight[2])
    return scanned + 2 * tokens * outputs  # torch counts two per multiply-add


_op.register_autograd(_backward, setup_context=_setup)
register_autocast("mamba_inner", ("xz", "conv_weight", "conv_bias", "x_proj"))


def mamba_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Convolve, project, scan and gate, as Mamba (arXiv 2312.00752) does in one direction and Vim (2401.09417) in both.

    On a CPU with the compiled library this is one call, three passes over the tokens; elsewhere it is the operators
    that it stands for. Its gradient runs them, too: the op is for inference.

    Letters: Bt batch, L tokens, K directions (1 or 2), D channels, N states, R rank of the step size.

    Args:
        xz: What the projection in gives, (Bt, L, 2 D): the input of the convolution, and that of the gate.
        conv_weight: Of the causal depth-wise convolutions, (K D, 1, taps), dtype of xz. The second direction sees the
            tokens from their end.
        conv_bias: (K D,), dtype of xz.
        x_proj: To step size, B and C, (K, R + 2 N, D), dtype of xz.
        dt_weight: (K, D, R).
        dt_bias: (K, D).
        A: State matrix (K, D, N).
        D: Skip (K, D).
        scale: Of the result.
        backend: See `selective_scan`.

    Returns:
        The input of the projection out, (Bt, L, D): the sum of all directions times SiLU of the gate.

    Raises:
        TypeError: As `selective_scan`.
        ValueError: As `selective_scan`.
        RuntimeError: As `selective_scan`.
    """
    return torch.ops.vssm.mamba_inner(xz, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D, scale, backend)
