"""Channel mixers that timm does not have. Channels-last (B, H, W, C)."""

import torch.nn as nn
from timm.layers import Mlp
from torch import Tensor

__all__ = ["DepthwiseMlp"]


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
        x = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))
