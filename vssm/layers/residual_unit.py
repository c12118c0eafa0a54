"""A residual unit of two convolutions over volumes, and the norm that goes with it."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ChannelNorm", "ResidualUnit"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map, at each place by itself: (B, C, ...) to the same shape.

    Args:
        channels: C.
        eps: Added to the variance.
    """

    channels_first = True

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResidualUnit(nn.Module):
    """Two convolutions with LayerNorm and a shortcut: (B, in_chans, D, H, W) to (B, dim, D, H, W).

    Args:
        in_chans: Channels of the input.
        dim: Channels of the output; where they differ, a convolution is in the shortcut.
    """

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_chans, dim, 3, padding=1)
        self.norm1 = ChannelNorm(dim)
        self.conv2 = nn.Conv3d(dim, dim, 3, padding=1)
        self.norm2 = ChannelNorm(dim)
        self.conv3: nn.Module = nn.Identity()
        self.norm3: nn.Module = nn.Identity()
        if in_chans != dim:
            self.conv3, self.norm3 = nn.Conv3d(in_chans, dim, 1), ChannelNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x))
        y = self.norm2(self.conv2(F.leaky_relu(y, 0.01)))
        return F.leaky_relu(y + self.norm3(self.conv3(x)), 0.01)
