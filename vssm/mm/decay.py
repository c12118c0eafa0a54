"""The weight decay of detectors and segmentors, as their backbone's family declares it."""

from collections.abc import Mapping
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models import family_of
from .backbone import VSSMBackbone

__all__ = ["FamilyDecayConstructor"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FamilyDecayConstructor:
    """Build an optimiser as mmengine does by default, with the decay rules of the backbone's family.

    The rules are `Family.dense_decay`: factors of the weight decay by parts of the parameters' names. They hold for the
    whole model, necks and heads included, as in the official configs.

    Args:
        optim_wrapper_cfg: The config's ``optim_wrapper`` without ``constructor`` and ``paramwise_cfg``.
        paramwise_cfg: As for mmengine's constructor; its ``custom_keys`` are added to the family's, and win where both
            have a name.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None):
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.paramwise_cfg = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimiser wrapper for a model with a `VSSMBackbone`, wrapped for several processes or not."""
        backbone = next((module for module in model.modules() if isinstance(module, VSSMBackbone)), None)
        family = family_of(backbone.model_name) if backbone else None
        keys = {name: {"decay_mult": factor} for name, factor in (family.dense_decay if family else {}).items()}
        keys |= self.paramwise_cfg.get("custom_keys") or {}
        paramwise = {**self.paramwise_cfg, "custom_keys": keys} if keys else self.paramwise_cfg
        return DefaultOptimWrapperConstructor(dict(self.optim_wrapper_cfg), paramwise or None)(model)
