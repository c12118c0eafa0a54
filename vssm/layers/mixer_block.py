"""The residual block that most of the families share. Channels-last (B, H, W, C)."""

import torch
import torch.nn as nn
from timm.layers import DropPath
from torch import Tensor

from .mlp import add_mlp

__all__ = ["MixerBlock"]


class MixerBlock(nn.Module):
    """Block of two residual branches: x + mixer(norm(x)), then x + mlp(norm(x)) where there is an MLP.

    (B, H, W, dim) to (B, H, W, dim).

    Args:
        dim: Width.
        mixer: Token mixer, (B, H, W, dim) to (B, H, W, dim).
        mlp: Channel mixer of the same shapes, or None.
        drop_path: Stochastic depth of both branches.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp: nn.Module | None = None,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = mixer
        self.norm2 = nn.Identity() if mlp is None else nn.LayerNorm(dim, **dd)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, dim)."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        if self.mlp is not None:
            if not torch.jit.is_scripting():
                y = add_mlp(x, self.norm2, self.mlp, self.drop_path)
                if y is not None:
                    return y
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
