"""Large maps go through layers in pieces, so that what is computed in between stays in the processor's caches.

A map that does not fit there costs twice: it is written to memory and read again, and the system hands out new pages
for it, which takes longer than many layers. In pieces the results are the same but for rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vssm_kernels.passes import unwatched

__all__ = ["split_batch", "split_rows"]

# Numbers of a map that go through a stage together: about two images of 224 pixels in the first stages of models of
# 5 GFLOPs. The MLP makes of them four times as many.
_STAGE = 2**19
# Numbers between the two layers of an MLP, for each thread.
_HIDDEN = 2**20


def _count(x: Any, numbers: int, parts: Sequence[nn.Module]) -> int:
    """Into how many pieces of so many numbers to split; 1 where something has to see the whole."""
    if type(x) is not Tensor or not x.is_cpu or x.numel() < 2 * numbers or not unwatched():
        return 1
    if any(m.training or m._forward_hooks or m._forward_pre_hooks for part in parts for m in part.modules()):
        return 1
    return x.numel() // numbers


def split_batch(x: Any, part: nn.Module) -> Sequence[Tensor]:
    """Split a batch for a part of a model that treats every image by itself, as all do in inference.

    Args:
        x: The input (B, ...).
        part: What it goes through.

    Returns:
        The pieces of x, in order. One alone where x is small; on other devices, where PyTorch keeps the memory; in
        training; and where a hook, a tracer, a compiler or a mode has to see the whole batch.
    """
    count = _count(x, _STAGE * max(1, torch.get_num_threads() // 4), [part])
    return [x] if count < 2 else x.chunk(count)


def split_rows(x: Any, hidden: int, parts: Sequence[nn.Module]) -> Sequence[Tensor]:
    """Split the pixels of a map for layers that treat every pixel by itself.

    Args:
        x: The input (..., C).
        hidden: Largest width in between.
        parts: The layers.

    Returns:
        The pieces of x in order, (pixels, C); one alone as in `split_batch`.
    """
    if type(x) is not Tensor:
        return [x]
    count = _count(x, _HIDDEN * torch.get_num_threads() * x.shape[-1] // hidden, parts)
    return [x] if count < 2 else x.flatten(0, -2).chunk(count)
