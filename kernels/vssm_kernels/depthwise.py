"""Depth-wise convolutions that are quick to train on CPUs.

PyTorch's gradients of them are slow: that of the weight unless the kernel is 3 x 3 and not dilated, that of the input
where the kernel is dilated, or has a stride and the map is bfloat16. Some take a hundred times as long as the forward.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from . import cpu_maps
from .watch import is_followed, runs_here

__all__ = ["DepthwiseConv2d", "depthwise_conv2d", "tap_offsets"]


@functools.lru_cache(maxsize=64)
def tap_offsets(
    size: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """Give rows and columns from the pixel at the output's place to what each tap reads, row by row of the kernel."""
    taps = zip(size, padding, dilation, strict=True)
    rows, columns = ([i * far - outside for i in range(length)] for length, outside, far in taps)
    return tuple((row, column) for row in rows for column in columns)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.how = [stride] * 2, padding, dilation
        return F.conv2d(x, weight, bias, *ctx.how, weight.shape[0])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        (stride, _), padding, dilation = ctx.how
        wanted = ctx.needs_input_grad[:3]
        taps = list(zip(weight.shape[2:], padding, dilation, strict=True))
        reaches = [far * (size - 1) - outside for size, outside, far in taps]
        # To be differentiated again; or with zeros around the map that whole kernels fall into.
        if torch.is_grad_enabled() or min(reaches) < 0:
            how = (grad, x, weight, [len(weight)], *ctx.how, False, [0, 0], len(weight), wanted)
            return *torch.ops.aten.convolution_backward(*how), None, None, None
        grad_x = grad_weight = grad_bias = None
        if wanted[0] and stride > 1 and grad.dtype == torch.float32:  # PyTorch's is quick
            how = (grad, x, weight, None, *ctx.how, False, [0, 0], len(weight), [True, False, False])
            grad_x = torch.ops.aten.convolution_backward(*how)[0]
        elif wanted[0]:
            grad_x = _input_gradient(grad, weight, x.shape[2:], stride, reaches, dilation)
        if wanted[1]:
            offsets = tap_offsets(tuple(weight.shape[2:]), tuple(padding), tuple(dilation))
            sums = cpu_maps.depthwise_grad(x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1), offsets, stride)
            grad_weight = sums.t().reshape(weight.shape).to(weight.dtype)
        if wanted[2]:
            grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(grad.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None


def _input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: int, reaches: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Convolve the gradient, spread out over the map of this size, with the kernel turned about."""
    taps = zip(size, reaches, dilation, weight.shape[2:], strict=True)
    spread = [n - 2 * reach + far * (k - 1) for n, reach, far, k in taps]
    if spread != list(grad.shape[2:]):
        batch, channels, height, width = grad.shape
        over = grad.new_zeros(batch, *spread, channels).permute(0, 3, 1, 2)
        over[:, :, : height * stride : stride, : width * stride : stride] = grad
        grad = over
    return F.conv2d(grad, weight.flip(2, 3), None, 1, reaches, dilation, len(weight))


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Convolve depth-wise, as `torch.nn.functional.conv2d` does.

    Args:
        x: (B, D, H, W); best with its channels side by side in memory.
        weight: (D, 1, k, l).
        bias: (D,).
        stride: Pixels between what neighbours of the result read.
        padding: Rows and columns of zeros around the map.
        dilation: Rows and columns between two taps.

    Returns:
        (B, D, H', W').
    """
    if _is_trained_here(x, weight, bias):
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        quick = tuple(weight.shape[2:]) == (3, 3) and max(dilation) == 1 and (stride == 1 or x.dtype == torch.float32)
        if x.dtype == weight.dtype and not quick:
            return _Convolution.apply(x, weight, bias, stride, list(padding), list(dilation))
    return F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0])


def _is_trained_here(x: Any, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the weight learns, on a CPU with the library, and nothing but autograd looks on."""
    return (
        torch.is_grad_enabled()
        and not is_followed()
        and runs_here(x, weight, bias)  # no, for what FX traces
        and weight.requires_grad
    )


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with one kernel a channel, as many results as channels, and zeros around the map.

    Args:
        dim: Channels D.
        kernel_size: Of the kernel, a square one.
        stride: Pixels between what neighbours of the result read.
        padding: Of all sides.
        bias: Whether there is one.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__(dim, dim, kernel_size, stride, padding, groups=dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, D, H, W)."""
        if torch.jit.is_scripting():
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        else:  # TorchScript compiles one of the two
            return depthwise_conv2d(x, self.weight, self.bias, self.stride[0], self.padding, self.dilation)
