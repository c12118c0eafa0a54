"""Channel mixers that timm does not have, and how its own goes over large maps. Channels-last (B, H, W, C)."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers import Mlp
from torch import Tensor

from vssm_kernels.passes import mlp_pass, run_act, run_linear
from vssm_kernels.watch import is_compiled_for_here

from .conv_ffn import ConvFFN
from .pieces import split_rows

__all__ = ["DepthwiseMlp", "add_mlp"]


def add_mlp(x: Any, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module) -> Tensor | None:
    """Compute x + mlp(norm(x)) in fewer passes, and for some pixels after the others where the map is large.

    What is in between stays in the caches then.

    Args:
        x: (..., C).
        norm: Before the MLP.
        mlp: timm's `Mlp` with a GELU; in models that are compiled for inference, one with a convolution too.
        drop_path: Of the branch.

    Returns:
        As x; None where the layers have to run themselves, see `split_rows`, and where they are others.
    """
    if is_compiled_for_here():
        return None if mlp.training or drop_path.training else _add_compiled_mlp(x, norm, mlp)
    if type(mlp) is not Mlp or type(mlp.act) is not nn.GELU:
        return None
    if not all(type(m) in (nn.LayerNorm, nn.Linear, nn.Identity) for m in (norm, mlp.fc1, mlp.norm, mlp.fc2)):
        return None
    hidden_dim: Any = mlp.fc2.in_features
    pieces = split_rows(x, hidden_dim, (norm, mlp, drop_path))
    if pieces is None:
        return None
    results = [piece + run_linear(mlp.fc2, mlp.norm(run_linear(mlp.fc1, norm(piece), mlp.act))) for piece in pieces]
    return torch.cat(results).view(x.shape) if len(pieces) > 1 else results[0]


def _add_compiled_mlp(x: Any, norm: nn.Module, mlp: Any) -> Tensor | None:
    if type(mlp) is ConvFFN:
        return mlp.compiled(x, norm)
    if type(mlp) is DepthwiseMlp or (type(mlp) is Mlp and type(mlp.norm) is nn.Identity):
        return mlp_pass(x, mlp.fc1, mlp.act, mlp.fc2, getattr(mlp, "dwconv", None), norm=norm)
    return None


class DepthwiseMlp(Mlp):
    """timm's Mlp with a 3 x 3 depth-wise convolution before its activation (PVTv2).

    (B, H, W, dim) to (B, H, W, dim).

    Args:
        dim: Width of the input and of the result.
        hidden_dim: Width in between.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, hidden_dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, hidden_dim, **dd)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, dim)."""
        x = self.fc1(x) if torch.jit.is_scripting() else run_linear(self.fc1, x)
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.act(x) if torch.jit.is_scripting() else run_act(self.act, x)
        return self.fc2(x) if torch.jit.is_scripting() else run_linear(self.fc2, x)
