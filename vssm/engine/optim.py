"""Parameter groups as timm makes them, and mixed precision that also runs on a CPU."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.models._manipulate import group_with_matcher
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from .config import ConfigError, check_options, on_gpu


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmOptimWrapperConstructor:
    """Build an optimiser over timm's parameter groups, for a classifier, a detector or a segmentor.

    Biases and one-dimensional parameters are never decayed. Options, under ``paramwise_cfg``:

    - ``model_no_weight_decay`` (default True): also spare what the model's ``no_weight_decay()`` lists. False decays
      those too, which is what the official VMamba training does (its A, dt bias and, for SSD variants, D are decayed).
    - ``no_weight_decay`` (default none): further parameters to spare, by the last part of their names.
    - ``layer_decay`` (default None): multiply the learning rate by this factor per layer, going from the head to the
      stem, after the model's ``group_matcher``; norms on a backbone's maps, necks and heads count as the last layer.
      Schedules that end at a fixed ``eta_min`` would flatten the factors:
      use ``eta_min_ratio``.

    Args:
        optim_wrapper_cfg: The config's ``optim_wrapper`` without ``constructor`` and ``paramwise_cfg``.
        paramwise_cfg: The options above.

    Raises:
        ConfigError: An option is unknown, no parameter has a name that is to be spared, or nothing in the model says
            what its layers are.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None):
        check_options(self._groups, paramwise_cfg or {}, "optim_wrapper.paramwise_cfg")
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.paramwise_cfg = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimiser wrapper for a model that holds a timm model, DDP or not."""
        if is_model_wrapper(model):
            model = model.module
        cfg = dict(self.optim_wrapper_cfg)
        optimizer_cfg = dict(cfg.pop("optimizer"))
        self.lr = optimizer_cfg.get("lr")
        self.weight_decay = optimizer_cfg.get("weight_decay", 0.0)
        optimizer_cfg["params"] = self._groups(model, **self.paramwise_cfg)
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
        if model_no_weight_decay:
            for prefix, part in _parts_with(model, "no_weight_decay"):
                spared |= {prefix + name for name in part.no_weight_decay()}
        if layer_decay is None:
            return param_groups_weight_decay(model, self.weight_decay, no_weight_decay_list=spared)
        groups = param_groups_layer_decay(
            _layered(model), self.weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
        )
        for group in groups:
            # timm's own schedulers apply lr_scale; torch's optimisers and mmengine's schedulers know only lr.
            group["lr"] = self.lr * group.pop("lr_scale")
            group.pop("param_names", None)
        return groups


def _parts_with(module: nn.Module, method: str, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Outermost modules that have a method, and the prefix of their parameters' names, which they do not know."""
    if hasattr(module, method):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _parts_with(child, method, f"{prefix}{name}.")


def _layered(model: nn.Module) -> Any:
    """Give timm's layer decay its view of a model that holds a timm model somewhere."""
    layers: dict[str, float] = {}
    for prefix, part in _parts_with(model, "group_matcher"):
        trained = ((name, parameter) for name, parameter in part.named_parameters() if parameter.requires_grad)
        numbers = group_with_matcher(trained, part.group_matcher(coarse=False), reverse=True)
        layers |= {prefix + name: number for name, number in numbers.items()}
    if not layers:
        raise ConfigError("optim_wrapper.paramwise_cfg.layer_decay needs a model whose group_matcher names its layers.")
    return SimpleNamespace(
        named_parameters=model.named_parameters,
        group_matcher=lambda coarse: lambda name: (layers.get(name, float("inf")),),
    )


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


# For those who ask which options it takes.
AutoAmpOptimWrapper.__signature__ = inspect.signature(OptimWrapper)
