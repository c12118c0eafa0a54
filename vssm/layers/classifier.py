"""From maps or tokens to logits: the poolings that all families share, and timm's head with their names checked."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead as TimmClassifierHead
from torch import Tensor

__all__ = ["POOLS", "ClassifierHead", "check_pool", "next_pool", "pool_tokens", "pooled_width"]

# timm's names.
POOLS = ("avg", "max", "avgmax", "catavgmax")


def check_pool(pool_type: str, num_classes: int = 0, known: Sequence[str] = POOLS) -> None:
    """Refuse a pooling that is not known, and classes without any.

    Args:
        pool_type: The name of a pooling; "" for none.
        num_classes: Of the classifier behind it; 0 for none.
        known: The names that are allowed, besides "".

    Raises:
        ValueError: It is another one, or "" with classes.
    """
    if pool_type not in (*known, ""):
        raise ValueError(f"global_pool must be one of {', '.join(map(repr, known))} or '', got {pool_type!r}")
    if not pool_type and num_classes > 0:
        raise ValueError(f"global_pool='' takes num_classes=0, got {num_classes} classes")


def next_pool(current: str, wanted: str | None, num_classes: int) -> str:
    """The pooling once a classifier is made anew: the one that is wanted; with None the current one stays.

    Classes bring "avg" back where the current one is "".
    """
    if wanted is not None:
        return wanted
    return current or ("avg" if num_classes > 0 else "")


def pooled_width(dim: int, pool_type: str) -> int:
    """How many features a pooling makes of `dim` channels."""
    return 2 * dim if pool_type == "catavgmax" else dim


def pool_tokens(x: Tensor, pool_type: str) -> Tensor:
    """Pool tokens (B, L, C), or the pixels of a map, to (B, C), with "catavgmax" (B, 2 * C).

    Args:
        x: What is pooled.
        pool_type: "avg", the mean; "max"; "avgmax", half of their sum; "catavgmax", the two side by side.
    """
    if pool_type == "avg":
        return x.mean(1)
    if pool_type == "max":
        return x.amax(1)
    if pool_type == "avgmax":
        return 0.5 * (x.mean(1) + x.amax(1))
    return torch.cat([x.mean(1), x.amax(1)], dim=1)


class ClassifierHead(TimmClassifierHead):
    """timm's head: pooling, dropout and a linear layer. Maps (B, H, W, in_features) to (B, num_classes).

    Args:
        in_features: Channels of the map.
        num_classes: 0 for none.
        pool_type: See `pool_tokens`; "" for none, which takes no classes.
        drop_rate: Dropout before the linear layer.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: An unknown pooling, or none with classes.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        check_pool(pool_type, num_classes)
        super().__init__(
            in_features, num_classes, pool_type, drop_rate=drop_rate, input_fmt="NHWC", device=device, dtype=dtype
        )

    def reset(self, num_classes: int, pool_type: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Make a new classifier; for `pool_type` see `next_pool`, for all else timm."""
        pool_type = next_pool(self.global_pool.pool_type, pool_type, num_classes)
        check_pool(pool_type, num_classes)
        super().reset(num_classes, pool_type, *args, **kwargs)
