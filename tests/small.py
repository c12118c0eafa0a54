"""Registered models with few blocks: more of the same show most tests nothing, and take most of the time."""

import functools

import timm
from torch import nn

from vssm.models import PlainBackbone


@functools.cache
def few_blocks(name: str, most: int = 1) -> dict:
    """The option of a model that leaves it at most so many blocks a stage; of a plain net, twice as many in all."""
    model = timm.create_model(name, device="meta")
    if isinstance(model, PlainBackbone):
        return dict(depth=2 * most)
    return dict(depths=tuple(min(len(stage.blocks), most) for stage in model.stages))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """All blocks, in order."""
    if isinstance(model, PlainBackbone):
        return list(model.blocks)
    return [block for stage in model.stages for block in stage.blocks]
