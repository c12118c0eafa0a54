"""Differentiate the backward pass of a kernel, by the form of its forward in PyTorch's operators."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["gradients_to_differentiate"]


def gradients_to_differentiate(
    form: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Give the gradients of inputs as a graph, for a backward pass under `create_graph=True`.

    Args:
        form: The forward, of the inputs.
        inputs: What the pass has saved.
        needed: Of which of them a gradient is wanted.
        grad: Of the result.

    Returns:
        A gradient for each input, None where none is wanted.
    """
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(form(*inputs), wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
