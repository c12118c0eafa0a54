"""Launches of scans of maps that are kept, so that a call of a kind seen before computes no block, stride or table."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ..tables import drops, is_capturing, synchronize
from .map_launch import Launch

__all__ = ["kept_launch", "kind_of_call"]

# More than the scans of a model in several sizes. A plan takes a few kilobytes, and the tables it shares with others.
_MOST = 4096

_plans: dict[tuple, Launch | None] = {}
_drops = 0


def _form(x: Tensor | None) -> tuple | None:
    return None if x is None else (x.shape, x.stride(), x.dtype)


def kind_of_call(tensors: Sequence[Tensor | None], code: Sequence[int], *more: Hashable) -> tuple:
    """Name all that launches depend on: shapes, strides, dtypes, the device, routes, and what the caller adds."""
    return (*more, tensors[0].device, tuple(code), *map(_form, tensors))


def kept_launch(kind: tuple, device: torch.device, make: Callable[[], tuple[Launch | None, bool]]) -> Launch | None:
    """Find the launches of a kind of call, or make and keep them.

    Args:
        kind: By `kind_of_call`.
        device: Where the tensors are.
        make: Gives the launches, or None where the kernels cannot take such tensors, and whether that is the last word.

    Returns:
        The launches.
    """
    global _drops
    capturing = is_capturing(device)
    if _drops != drops():  # tables are short of memory: plans hold some too
        if capturing:
            return make()[0]
        synchronize(device)  # a kernel of another stream may still read them
        _plans.clear()
        _drops = drops()
    try:
        plan = _plans[kind]
    except KeyError:
        plan, last_word = make()
        if last_word and not capturing:  # what was made in a capture is the graph's
            if len(_plans) >= _MOST:
                _plans.clear()
            _plans[kind] = plan
        return plan
    if capturing and plan is not None:
        plan.hold()
    return plan
