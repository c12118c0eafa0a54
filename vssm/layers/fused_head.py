"""A classifier that looks at several vectors."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

__all__ = ["FusedHead"]


class FusedHead(nn.Module):
    """A linear classifier for each of several vectors, and the sum of their logits with learned convex weights."""

    def __init__(self, dims: list[int], num_classes: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dims = dims
        self.mix = nn.Parameter(torch.empty(len(dims), **dd))
        self.reset(num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.ones_(self.mix)

    def reset(self, num_classes: int) -> None:
        """New classifiers, none for 0 classes."""
        like: dict[str, Any] = dict(device=self.mix.device, dtype=self.mix.dtype)
        layers = [nn.Linear(dim, num_classes, **like) if num_classes > 0 else nn.Identity() for dim in self.dims]
        self.fcs = nn.ModuleList(layers).train(self.training)
        self.mix.requires_grad_(num_classes > 0)  # unused then: data-parallel training would wait for its gradient

    def forward(self, x: list[Tensor]) -> Tensor:
        mix = self.mix.softmax(dim=0)
        return torch.stack([mix[i] * fc(x[i]) for i, fc in enumerate(self.fcs)]).sum(dim=0)
