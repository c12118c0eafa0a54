"""Large maps go through layers in pieces, so that what is computed in between stays in the processor's caches.

A map that does not fit there costs twice: it is written to memory and read again, and the system hands out new pages
for it, which takes longer than many layers. In pieces the results are the same but for rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vssm_kernels.ops import count_pieces
from vssm_kernels.watch import unwatched

__all__ = ["split_batch", "split_rows"]

# Numbers of a map that go through a stage together: about two images of 224 pixels in the first stages of models of
# 5 GFLOPs. The MLP makes of them four times as many.
_STAGE = 2**19


def _whole(x: Any, parts: Sequence[nn.Module]) -> bool:
    """Whether something has to see the whole of x in these parts of a model."""
    if type(x) is not Tensor or not x.is_cpu:
        return True
    return any(m.training or m._forward_hooks or m._forward_pre_hooks for part in parts for m in part.modules())


def split_batch(x: Any, part: nn.Module) -> Sequence[Tensor]:
    """Split a batch for a part of a model that treats every image by itself, as all do in inference.

    Args:
        x: The input (B, ...).
        part: What it goes through.

    Returns:
        The pieces of x, in order. One alone where x is small; on other devices, where PyTorch keeps the memory; in
        training; and where a hook, a tracer, a compiler or a mode has to see the whole batch.
    """
    if not unwatched():
        return [x]
    count = x.numel() // (_STAGE * max(1, torch.get_num_threads() // 4))
    return [x] if count < 2 or _whole(x, [part]) else x.chunk(count)


def split_rows(x: Any, hidden: int, parts: Sequence[nn.Module]) -> Sequence[Tensor] | None:
    """Split the pixels of a map for layers that treat every pixel by itself.

    Args:
        x: The input (..., C).
        hidden: Largest width in between.
        parts: The layers.

    Returns:
        The pieces of x in order, (pixels, C); x alone where it is small. None where the whole of it is wanted, for what
        see `split_batch`.
    """
    if not unwatched() or _whole(x, parts):
        return None
    count = count_pieces(x.numel() // x.shape[-1], hidden)
    return [x] if count < 2 else x.flatten(0, -2).chunk(count)
