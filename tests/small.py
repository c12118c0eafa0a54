"""Registered models with few blocks: more of the same show most tests nothing, and take most of the time."""

import functools
import re

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


# What stages of a net have besides a number of blocks; those of others follow from their depths. The second is empty
# unless said otherwise, so that a net has each kind of block once, and a step between stages.
_FEW_STAGES = {
    "a2mamba_pico": dict(depths=(1, 1), dims=(16, 32), num_heads=(2, 4), windows=(3, 3), mlp_ratios=(4, 3)),
    "efficientvmamba_pico": dict(depths=(1, 0, 1)),  # its convolutions begin in the third
    "groupmamba_pico": dict(dims=(16, 32)),
    "hrvmamba_pico": dict(depths=(1,)),  # of two branches
    "segman_pico": dict(depths=(1, 1), dims=(16, 32), num_heads=(1, 2), windows=(3, 3), mlp_ratios=(4, 3)),
    "vssd_pico": dict(depths=(1, 1), num_heads=(1, 2)),
    "vssm_efficientvim_pico": dict(depths=(1, 1), dims=(32, 48), d_state=(16, 9)),
}


def _kinds(name: str, options: dict) -> set[frozenset]:
    """Of the blocks: their parts, however many of one kind."""
    model = timm.create_model(name, device="meta", **options)
    return {
        frozenset(
            (re.sub(r"\d+", "*", part), type(module).__name__)
            for part, module in block.named_modules()
            if not part.endswith("drop_path")
        )
        for block in blocks_of(model)
    }


@functools.cache
def few_stages(name: str) -> dict:
    """As `few_blocks`, but two stages, the second without blocks, or one block in all, if all kinds are in these."""
    whole = few_blocks(name)
    options = dict(depth=1) if "depth" in whole else dict(depths=(1, 0)) | _FEW_STAGES.get(name, {})
    try:
        return options if _kinds(name, options) == _kinds(name, whole) else whole
    except ValueError:  # a number for each stage that the table above lacks
        return whole
