"""Parameter groups as timm makes them, and mixed precision that also runs on a CPU."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from .config import ConfigError, check_options, on_gpu


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmOptimWrapperConstructor:
    """Build an optimiser over timm's parameter groups.

    Biases and one-dimensional parameters are never decayed. Options, under ``paramwise_cfg``:

    - ``model_no_weight_decay`` (default True): also spare what the model's ``no_weight_decay()`` lists. False decays
      those too, which is what the official VMamba training does (its A, dt bias and, for SSD variants, D are decayed).
    - ``no_weight_decay`` (default none): further parameters to spare, by the last part of their names.
    - ``layer_decay`` (default None): multiply the learning rate by this factor per layer, going from the head to the
      stem, after the model's ``group_matcher``. Schedules that end at a fixed ``eta_min`` would flatten the factors:
      use ``eta_min_ratio``.

    Args:
        optim_wrapper_cfg: The config's ``optim_wrapper`` without ``constructor`` and ``paramwise_cfg``.
        paramwise_cfg: The options above.

    Raises:
        ConfigError: An option is unknown, or no parameter has a name that is to be spared.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None):
        check_options(self._groups, paramwise_cfg or {}, "optim_wrapper.paramwise_cfg")
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.paramwise_cfg = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimiser wrapper for a classifier (or another wrapper around ``.model``), DDP or not."""
        if is_model_wrapper(model):
            model = model.module
        cfg = dict(self.optim_wrapper_cfg)
        optimizer_cfg = dict(cfg.pop("optimizer"))
        self.lr = optimizer_cfg.get("lr")
        self.weight_decay = optimizer_cfg.get("weight_decay", 0.0)
        # The lists of names that timm's models give are relative to the timm model, not to what wraps it.
        optimizer_cfg["params"] = self._groups(getattr(model, "model", model), **self.paramwise_cfg)
        cfg.setdefault("type", "OptimWrapper")
        return OPTIM_WRAPPERS.build(cfg, default_args={"optimizer": OPTIMIZERS.build(optimizer_cfg)})

    def _groups(
        self,
        model: nn.Module,
        model_no_weight_decay: bool = True,
        no_weight_decay: Sequence[str] = (),
        layer_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        names = [name for name, _ in model.named_parameters()]
        absent = set(no_weight_decay) - {name.rpartition(".")[2] for name in names}
        if absent:
            raise ConfigError(
                f"optim_wrapper.paramwise_cfg.no_weight_decay names '{min(absent)}', which the model lacks."
            )
        spared = {name for name in names if name.rpartition(".")[2] in no_weight_decay}
        if model_no_weight_decay and hasattr(model, "no_weight_decay"):
            spared |= set(model.no_weight_decay())
        if layer_decay is None:
            return param_groups_weight_decay(model, self.weight_decay, no_weight_decay_list=spared)
        groups = param_groups_layer_decay(
            model, self.weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
        )
        for group in groups:
            # timm's own schedulers apply lr_scale; torch's optimisers and mmengine's schedulers know only lr.
            group["lr"] = self.lr * group.pop("lr_scale")
            group.pop("param_names", None)
        return groups


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast, on any device; bfloat16 has float32's range, so no loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter mmengine's context for a training step, with autocast inside."""
        with super().optim_context(model), torch.autocast("cuda" if on_gpu() else "cpu", dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
def AutoAmpOptimWrapper(**kwargs: Any) -> OptimWrapper:
    """Build the mixed-precision wrapper for this machine: float16 with loss scaling on CUDA, bfloat16 on a CPU.

    mmengine's AmpOptimWrapper refuses to be built without an accelerator.

    Args:
        **kwargs: Arguments of mmengine's OptimWrapper.
    """
    return AmpOptimWrapper(**kwargs) if on_gpu() else BFloat16OptimWrapper(**kwargs)
