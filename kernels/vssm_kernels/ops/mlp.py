"""The op `mlp`: two linear layers with a GELU, and a convolution between them if any, for compiled models on CPUs.

A compiler computes each layer for the whole batch, and the widest map of the model goes to memory and back for each. In
pieces what is in between stays in the caches.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..linear import onednn_linear
from .registration import arguments, check_devices, check_nonempty, check_tensor, register

__all__ = ["count_pieces"]

# Numbers between the two layers, for each thread.
_HIDDEN = 2**20


def count_pieces(pixels: int, hidden: int) -> int:
    """Say in how many pieces an MLP is to take a map of so many pixels, by its width in between."""
    return min(pixels, max(1, pixels * hidden // (_HIDDEN * torch.get_num_threads())))


def _check(x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, conv_weight, conv_bias) -> None:
    op = "mlp"
    check_tensor(op, "x", x, *((None,) * dims for dims in ((4,) if conv_weight is not None else range(1, 6))))
    check_nonempty(op, x)
    check_tensor(op, "weight1", weight1, (None, x.shape[-1]))
    hidden, dtype = weight1.shape[0], weight1.dtype
    check_tensor(op, "bias1", bias1, (hidden,), dtype=dtype)
    check_tensor(op, "weight2", weight2, (None if norm_weight is None else x.shape[-1], hidden), dtype=dtype)
    check_tensor(op, "bias2", bias2, (weight2.shape[0],), dtype=dtype)
    check_tensor(op, "norm_weight", norm_weight, (x.shape[-1],))
    check_tensor(op, "norm_bias", norm_bias, (x.shape[-1],))
    check_tensor(op, "conv_weight", conv_weight, (hidden, 1, 3, 3), dtype=dtype)
    check_tensor(op, "conv_bias", conv_bias, (hidden,), dtype=dtype)
    others = dict(norm_weight=norm_weight, norm_bias=norm_bias, conv_weight=conv_weight, conv_bias=conv_bias)
    check_devices(op, x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2, **others)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str | None = None) -> Tensor:
    """A linear layer, and the GELU behind it if a form of that is named."""
    if x.is_cpu and x.dtype == torch.float32:
        y = onednn_linear(x, weight, bias, *(() if approximate is None else ("gelu", approximate)))
        if y is not None:
            return y
    y = F.linear(x, weight, bias)
    return y if approximate is None else torch.ops.aten.gelu_(y, approximate=approximate)


def _kernel(
    x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, eps, conv_weight, conv_bias, adds, first, approximate
) -> Tensor:
    _check(x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, conv_weight, conv_bias)

    def run(x: Tensor) -> Tensor:
        normed = x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        y = _linear(normed.to(weight1.dtype), weight1, bias1, approximate if first or conv_weight is None else None)
        if conv_weight is not None:
            near = F.conv2d(y.permute(0, 3, 1, 2), conv_weight, conv_bias, padding=1, groups=len(conv_weight))
            near = near.permute(0, 2, 3, 1)
            y = y.add_(near) if adds else near
            y = y if first else torch.ops.aten.gelu_(y, approximate=approximate)
        y = _linear(y, weight2, bias2)
        return y if norm_weight is None else x + y

    count = count_pieces(x.numel() // x.shape[-1], weight1.shape[0])
    if count < 2:
        return run(x).contiguous()
    pieces = x.flatten(0, -2).chunk(count) if conv_weight is None else x.chunk(count)
    return torch.cat([run(piece) for piece in pieces]).view(*x.shape[:-1], -1)


def _fake(
    x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, eps, conv_weight, conv_bias, adds, first, approximate
) -> Tensor:
    _check(x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, conv_weight, conv_bias)
    dtype = weight2.dtype if norm_weight is None else torch.promote_types(x.dtype, weight2.dtype)
    return x.new_empty((*x.shape[:-1], weight2.shape[0]), dtype=dtype)


# `adds`: the convolution's result is added to what it reads; `first`: the GELU stands before it. With a norm the result
# is x + mlp(norm(x)), else mlp(x).
register(
    "mlp(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? norm_weight=None, "
    "Tensor? norm_bias=None, float eps=1e-5, Tensor? conv_weight=None, Tensor? conv_bias=None, bool adds=False, "
    "bool first=False, str approximate='none') -> Tensor",
    _kernel,
    _fake,
)


@register_flop_formula(torch.ops.vssm.mlp)
def _flops(*args, out_shape=None, **kwargs) -> int:
    """Two per multiply-add, as PyTorch's own formulas."""
    given = arguments(torch.ops.vssm.mlp.default, args, kwargs)
    pixels = math.prod(given["x"][:-1])
    hidden, width = given["weight1"]
    taps = 0 if given["conv_weight"] is None else 9
    return 2 * pixels * hidden * (width + given["weight2"][0] + taps)
