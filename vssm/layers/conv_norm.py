"""Convolutions with BatchNorm on channels-last maps (B, H, W, C); `fuse` is for timm's `reparameterize_model`."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d, SqueezeExcite
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from vssm_kernels.depthwise import DepthwiseConv2d
from vssm_kernels.passes import run_excite, run_linear

from .patch import channels_last, check_images

__all__ = ["ConvNorm", "ConvNormDownsample", "ConvNormStem", "LinearNorm", "LinearNormMlp"]


class ConvNorm(nn.Module):
    """3 x 3 convolution, BatchNorm, activation if `act`.

    (B, H, W, dim) to (B, ceil(H / stride), ceil(W / stride), dim_out).

    Args:
        dim: Width of the input.
        dim_out: Width of the result.
        stride: Pixels between two positions of the kernel.
        depthwise: One kernel a channel, which takes dim_out = dim.
        act: End in an activation.
        act_layer: Which one.
        eps: Of the norm.
        momentum: Of the norm's statistics, as PyTorch counts it.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        stride: int = 1,
        depthwise: bool = False,
        act: bool = False,
        act_layer: type[nn.Module] = nn.ReLU,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv: nn.Conv2d
        if depthwise:
            self.conv = DepthwiseConv2d(dim, 3, stride=stride, padding=1, bias=False, **dd)
        else:
            self.conv = nn.Conv2d(dim, dim_out, 3, stride=stride, padding=1, bias=False, **dd)
        self.norm: nn.Module = BatchNormAct2d(dim_out, eps, momentum, apply_act=act, act_layer=act_layer, **dd)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Fold the norm into the convolution; exact in eval mode."""
        if isinstance(self.norm, nn.BatchNorm2d):
            act: Any = self.norm.act
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), act
        return self

    @torch.no_grad()
    def fuse_residual(self, keep: Tensor, scale: Tensor) -> None:
        """Fold the norm and the sum keep * x + scale * f(x) into this depth-wise convolution f.

        Args:
            keep: (dim,).
            scale: (dim,).
        """
        self.fuse()
        self.conv.weight.mul_(scale.view(-1, 1, 1, 1))
        assert self.conv.bias is not None  # the norm gave it one
        self.conv.bias.mul_(scale)
        self.conv.weight[:, 0, 1, 1] += keep

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, H, W, dim)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class LinearNorm(nn.Module):
    """Point-wise convolution as a matrix product, BatchNorm, activation if `act`: (B, H, W, dim) to (B, H, W, dim_out).

    Args:
        dim: Width of the input.
        dim_out: Width of the result.
        act: End in an activation.
        act_layer: Which one.
        bias: Whether the product has a bias.
        eps: Of the norm.
        momentum: Of the norm's statistics, as PyTorch counts it.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        act: bool = False,
        act_layer: type[nn.Module] = nn.ReLU,
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.linear = nn.Linear(dim, dim_out, bias=bias, **dd)
        self.norm: nn.Module = BatchNormAct2d(dim_out, eps, momentum, apply_act=act, act_layer=act_layer, **dd)

    def init_weights(self) -> None:
        """Start as the convolution that it is in the official code."""
        self.linear.reset_parameters()

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Fold the norm into the matrix; exact in eval mode."""
        if isinstance(self.norm, nn.BatchNorm2d):
            act: Any = self.norm.act
            self.linear, self.norm = fuse_linear_bn_eval(self.linear, self.norm), act
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, H, W, dim)."""
        x = self.linear(x) if torch.jit.is_scripting() else run_linear(self.linear, x)
        return self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvNormStem(nn.Module):
    """Four convolutions of stride 2: images (B, in_chans, H, W) to (B, ceil(H / 16), ceil(W / 16), dim)."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.in_chans = in_chans
        dims = [in_chans, dim // 8, dim // 4, dim // 2, dim]
        self.convs = nn.Sequential(*[ConvNorm(dims[i], dims[i + 1], stride=2, act=i < 3, **dd) for i in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_chans)
        return self.convs(channels_last(x))


class ConvNormDownsample(nn.Module):
    """Inverted bottleneck of stride 2 with squeeze-and-excitation between two depth-wise convolutions with residuals.

    (B, H, W, dim) to (B, ceil(H / 2), ceil(W / 2), dim_out).
    """

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        hidden = 4 * dim_out
        self.fused = False
        self.dwconv1 = ConvNorm(dim, dim, depthwise=True, **dd)
        self.expand = LinearNorm(dim, hidden, act=True, **dd)
        self.reduce = ConvNorm(hidden, hidden, stride=2, depthwise=True, act=True, **dd)
        self.se = SqueezeExcite(hidden, 0.25, **dd)
        self.project = LinearNorm(hidden, dim_out, **dd)
        self.dwconv2 = ConvNorm(dim_out, dim_out, depthwise=True, **dd)

    def fuse(self) -> nn.Module:
        """Fold the two residuals; exact in eval mode."""
        if not self.fused:
            for layer in (self.dwconv1, self.dwconv2):
                one = torch.ones_like(layer.conv.weight[:, 0, 0, 0])
                layer.fuse_residual(one, one)
            self.fused = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv1(x) if self.fused else x + self.dwconv1(x)
        x = self.reduce(self.expand(x))
        if torch.jit.is_scripting():
            x = self.se(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            x = run_excite(self.se, SqueezeExcite, x)
        x = self.project(x)
        return self.dwconv2(x) if self.fused else x + self.dwconv2(x)


class LinearNormMlp(nn.Module):
    """Two point-wise layers with BatchNorm, ReLU between them. (B, H, W, dim) to the same."""

    def __init__(self, dim: int, hidden: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = LinearNorm(dim, hidden, act=True, **dd)
        self.fc2 = LinearNorm(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))
