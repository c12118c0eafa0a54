"""Stem and head of SegMAN and A2Mamba. The stem takes images (B, C, H, W), the head channels-last maps (B, H, W, C)."""

import torch.nn as nn
from torch import Tensor

from .classifier import check_pool, next_pool, pool_tokens, pooled_width
from .conv_norm import ConvNorm, LinearNorm
from .patch import channels_last, check_images

__all__ = ["DeepConvStem", "HiddenHead"]


class DeepConvStem(nn.Module):
    """Four 3 x 3 convolutions, the first and the third of stride 2, each with a BatchNorm, with GELUs between them.

    (B, in_chans, H, W) to (B, ceil(H / 4), ceil(W / 4), dim).

    Args:
        in_chans: Channels of the image.
        dim: Width of the result; the first two convolutions have half of it.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNorm(in_chans, half, stride=2, act=True, act_layer=nn.GELU, **dd)
        self.conv2 = ConvNorm(half, half, act=True, act_layer=nn.GELU, **dd)
        self.conv3 = ConvNorm(half, dim, stride=2, act=True, act_layer=nn.GELU, **dd)
        self.conv4 = ConvNorm(dim, dim, **dd)
        self.in_chans = in_chans

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_chans, H, W)."""
        check_images(x, self.in_chans)
        return self.conv4(self.conv3(self.conv2(self.conv1(channels_last(x)))))


class HiddenHead(nn.Module):
    """A classifier with a hidden layer before the pooling: 1 x 1 convolution, BatchNorm, SiLU, pooling, linear layer.

    (B, H, W, dim) to (B, num_classes); to (B, hidden_dim) without classes, twice as many with the pooling
    "catavgmax"; the map as it is without pooling.

    Args:
        dim: Width of the map.
        num_classes: 0 for none.
        hidden_dim: Width of the hidden layer.
        pool_type: See `pool_tokens`; "" for none, which takes no classes.
        drop_rate: Dropout before the last layer.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: An unknown pooling, or none with classes.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        hidden_dim: int = 1024,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.drop = nn.Dropout(drop_rate)
        self.pool_type = ""
        self.hidden: nn.Module = nn.Identity()
        self.fc: nn.Module = nn.Identity()
        self._rebuild(num_classes, pool_type, **dd)

    def _rebuild(self, num_classes: int, pool_type: str, **dd) -> None:
        check_pool(pool_type, num_classes)
        if pool_type and not self.pool_type:
            self.hidden = LinearNorm(self.dim, self.hidden_dim, act=True, act_layer=nn.SiLU, bias=True, **dd)
        elif not pool_type:  # nothing would use it
            self.hidden = nn.Identity()
        self.pool_type = pool_type
        width = pooled_width(self.hidden_dim, pool_type)
        self.fc = nn.Linear(width, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.train(self.training)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Make a new classifier; for `pool_type` see `next_pool`."""
        self._rebuild(num_classes, next_pool(self.pool_type, pool_type, num_classes))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify (B, H, W, dim)."""
        if self.pool_type != "":
            x = self.drop(pool_tokens(self.hidden(x).flatten(1, 2), self.pool_type))
            if not pre_logits:
                x = self.fc(x)
        return x
