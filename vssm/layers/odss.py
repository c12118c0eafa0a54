"""The block of Mamba YOLO (arXiv 2406.05835), which its backbone and its neck share. Channels-last (B, H, W, C)."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers import DropPath
from torch import Tensor

from vssm_kernels.passes import run_linear

from .conv_norm import LinearNorm

__all__ = ["YOLO_NORM", "GatedConvFFN", "LocalBlock", "ODSSBlock"]

# Of every BatchNorm of a detector of the YOLO line.
YOLO_NORM: dict[str, Any] = dict(eps=1e-3, momentum=0.03)


class LocalBlock(nn.Module):
    """Look at a pixel's neighbours: x + fc2(GELU(fc1(BN(conv(x))))) with a depth-wise 3 x 3 convolution.

    The paper's LSBlock, (B, H, W, dim) to the same. Every layer has a bias. The linear layers are 1 x 1 convolutions in
    the official code, and start like those.

    Args:
        dim: Width.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm = nn.BatchNorm2d(dim, **YOLO_NORM, **dd)
        self.fc1 = nn.Linear(dim, dim, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim, dim, **dd)

    def init_weights(self) -> None:
        """Start as PyTorch does, also where a model starts its other linear layers in another way."""
        for layer in (self.fc1, self.fc2):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, dim)."""
        y = self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = self.act(self.fc1(y)) if torch.jit.is_scripting() else run_linear(self.fc1, y, self.act)
        y = self.fc2(y) if torch.jit.is_scripting() else run_linear(self.fc2, y)
        return x + y


class GatedConvFFN(nn.Module):
    """A feed-forward layer with a gate that sees neighbours: fc2(GELU(a + conv(a)) * v) with a, v the halves of fc1(x).

    The paper's RGBlock, (B, H, W, dim) to the same. Every layer has a bias. The linear layers are 1 x 1 convolutions in
    the official code, and start like those.

    Args:
        dim: Width of the input and of the result.
        hidden_dim: Width of each half.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, hidden_dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden_dim, **dd)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)

    def init_weights(self) -> None:
        """Start as PyTorch does, also where a model starts its other linear layers in another way."""
        for layer in (self.fc1, self.fc2):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, dim)."""
        x = self.fc1(x) if torch.jit.is_scripting() else run_linear(self.fc1, x)
        gate, value = x.chunk(2, dim=-1)
        gate = gate + self.conv(gate.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.act(gate) * value
        return self.fc2(x) if torch.jit.is_scripting() else run_linear(self.fc2, x)


class ODSSBlock(nn.Module):
    """Project, look around, scan, feed forward: (B, H, W, dim) to (B, H, W, dim_out).

    p = SiLU(BN(proj(x))), q = p + mixer(norm1(local(p))), q + mlp(norm2(q)). Nothing goes round the projection.

    Args:
        dim: Width of the input.
        dim_out: Width of the result.
        mixer: Maps (B, H, W, dim_out) to the same.
        proj_bias: Whether the projection has a bias: in the backbone, not in the neck.
        mlp_ratio: Hidden width of a plain MLP with as many parameters, as a multiple of the width; the gated one has
            two thirds of it.
        drop_path: Rate of the stochastic depth of the mixer and of the MLP.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        mixer: nn.Module,
        proj_bias: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.proj = LinearNorm(dim, dim_out, act=True, act_layer=nn.SiLU, bias=proj_bias, **YOLO_NORM, **dd)
        self.local = LocalBlock(dim_out, **dd)
        self.norm1 = nn.LayerNorm(dim_out, eps=1e-6, **dd)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6, **dd)
        self.mlp = GatedConvFFN(dim_out, int(2 * int(mlp_ratio * dim_out) / 3), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, dim)."""
        x = self.proj(x)
        x = x + self.drop_path(self.mixer(self.norm1(self.local(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))
