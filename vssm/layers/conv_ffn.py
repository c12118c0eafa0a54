"""A feed-forward layer that also looks at a pixel's neighbours. Channels-last (B, H, W, C)."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vssm_kernels.passes import mlp_pass, run_act, run_linear

__all__ = ["ConvFFN"]


class ConvFFN(nn.Module):
    """Widen, add a 3 x 3 depth-wise convolution, narrow, with a GELU: (B, H, W, dim) to (B, H, W, dim).

    Every layer has a bias. The linear layers are 1 x 1 convolutions in the official codes, and start like those.

    Args:
        dim: Width of the input and of the result.
        hidden_dim: Width in between.
        act_first: The GELU stands before the convolution; else after it.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, hidden_dim: int, act_first: bool = False, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.act_first = act_first
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)

    def init_weights(self) -> None:
        """Start as PyTorch does, also where a model starts its other linear layers in another way."""
        for layer in (self.fc1, self.conv, self.fc2):
            layer.reset_parameters()

    def compiled(self, x: Any, norm: nn.Module | None = None) -> Tensor | None:
        """Run as an op of a model that is compiled for inference, see `mlp_pass`; with a norm x + forward(norm(x))."""
        form: Any = dict(conv_adds=True, act_first=self.act_first, norm=norm)
        return mlp_pass(x, self.fc1, self.act, self.fc2, self.conv, **form)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, dim)."""
        if not torch.jit.is_scripting():
            y = self.compiled(x)
            if y is not None:
                return y
        if torch.jit.is_scripting():
            x = self.act(self.fc1(x)) if self.act_first else self.fc1(x)
        else:
            x = run_linear(self.fc1, x, self.act if self.act_first else None)
        x = x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if not self.act_first:
            x = self.act(x) if torch.jit.is_scripting() else run_act(self.act, x)
        return self.fc2(x) if torch.jit.is_scripting() else run_linear(self.fc2, x)
