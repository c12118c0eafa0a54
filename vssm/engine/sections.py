"""Check the sections of a config before a run starts: names of options against the types that take them, and numbers.

mmengine finds a wrong option when the section is built, for some at the first checkpoint only, and for some never.
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)
from mmengine.runner import Runner
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from .._errors import did_you_mean
from .config import ConfigError

__all__ = ["check_sections"]

# What mmengine takes out of a section before it builds the type.
_OF_LOADERS = {
    *("dataset", "sampler", "batch_sampler", "num_batch_per_epoch", "worker_init_fn", "collate_fn"),
    "disable_subprocess_warning",
}
# What these read with get(), so that a wrong name would be passed over.
_READ_ONLY = {
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    "env_cfg.mp_cfg": {"mp_start_method", "opencv_num_threads"},
    "auto_scale_lr": {"base_batch_size", "enable"},
}
_PARAMWISE = {
    *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult", "dwconv_decay_mult"),
    *("dcn_offset_lr_mult", "bypass_duplicate"),
}
# The least whole number that an option may be, by section and name; None may stand for "not given".
_LEAST = {
    "train_cfg": {"max_epochs": 1, "max_iters": 1, "val_interval": 1, "val_begin": 0},
    "loader": {"batch_size": 1, "num_workers": 0, "prefetch_factor": 1},
    "hook": {"interval": -1, "max_keep_ckpts": -1},
    "optim_wrapper": {"accumulative_counts": 1},
}


def check_sections(cfg: Mapping[str, Any]) -> None:
    """Refuse options that no one would read, and numbers that make no run.

    Args:
        cfg: The config of a run, with the types that it names registered.

    Raises:
        ConfigError: Names the option and its near matches, or the number and what is allowed.
    """
    scope = cfg.get("default_scope") or "mmengine"
    for where, section, registry, others in _sections(cfg):
        if not isinstance(section, Mapping):
            continue
        if registry is not None:
            with registry.switch_scope_and_registry(scope) as found:
                known = _options_of(section, found)
        else:
            known = set()
        if known is not None:
            _check_names(where, section, known | others)
    _check_numbers(cfg)
    _check_values(cfg)


def _sections(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Any, Registry | None, set[str]]]:
    """Each section's key, itself, the registry that its type is in, and options that come on top of the type's own."""
    train = cfg.get("train_cfg") or {}
    if "type" not in train and "by_epoch" in train:
        loop = "EpochBasedTrainLoop" if train["by_epoch"] else "IterBasedTrainLoop"
        yield "train_cfg", {"type": loop, **_without(train, "by_epoch")}, LOOPS, set()
    elif train and "type" not in train:
        raise ConfigError("train_cfg needs by_epoch, True or False, or a type.")
    elif "by_epoch" in train:
        raise ConfigError(f"train_cfg has both by_epoch and the type {train['type']}; leave one out.")
    else:
        yield "train_cfg", train, LOOPS, set()
    for part, loop in (("val", "ValLoop"), ("test", "TestLoop")):
        if cfg.get(f"{part}_cfg"):
            yield f"{part}_cfg", {"type": loop, **cfg[f"{part}_cfg"]}, LOOPS, set()
    for where, loader in _loaders(cfg):
        yield where, loader, None, _parameters(DataLoader) | _OF_LOADERS
        yield f"{where}.sampler", loader.get("sampler"), DATA_SAMPLERS, set()
        yield f"{where}.batch_sampler", loader.get("batch_sampler"), DATA_SAMPLERS, set()
        yield from _datasets(f"{where}.dataset", loader.get("dataset"))
    wrapper = cfg.get("optim_wrapper") or {}
    if "optimizer" in wrapper:
        yield "optim_wrapper", {"type": "OptimWrapper", **wrapper}, OPTIM_WRAPPERS, {"constructor", "paramwise_cfg"}
        yield "optim_wrapper.optimizer", wrapper["optimizer"], OPTIMIZERS, set()
        if wrapper.get("constructor", "DefaultOptimWrapperConstructor") == "DefaultOptimWrapperConstructor":
            yield "optim_wrapper.paramwise_cfg", wrapper.get("paramwise_cfg"), None, _PARAMWISE
        clip = wrapper.get("clip_grad") or {}
        function = clip_grad_value_ if clip.get("type") == "value" else clip_grad_norm_
        yield "optim_wrapper.clip_grad", clip, None, {"type", *_parameters(function)}
    for where, one in _numbered("param_scheduler", cfg.get("param_scheduler")):
        yield where, one, PARAM_SCHEDULERS, {"convert_to_iter_based"}
    for name, hook in (cfg.get("default_hooks") or {}).items():
        if isinstance(hook, Mapping) and "type" not in hook:
            raise ConfigError(
                f"default_hooks.{name} has no type{did_you_mean(name, _without(cfg['default_hooks'], name))}."
            )
        yield f"default_hooks.{name}", hook, HOOKS, set()
    for key, registry in (("custom_hooks", HOOKS), ("val_evaluator", METRICS), ("test_evaluator", METRICS)):
        for where, one in _numbered(key, cfg.get(key)):
            yield where, one, registry, set()
    yield "log_processor", {"type": "LogProcessor", **(cfg.get("log_processor") or {})}, LOG_PROCESSORS, set()
    visualizer = cfg.get("visualizer") or {}
    yield "visualizer", {"type": "Visualizer", **visualizer}, VISUALIZERS, set()
    for where, one in _numbered("visualizer.vis_backends", visualizer.get("vis_backends")):
        yield where, one, VISBACKENDS, set()
    yield "randomness", cfg.get("randomness"), None, _parameters(Runner.set_randomness)
    for where, names in _READ_ONLY.items():
        section: Any = cfg
        for key in where.split("."):
            section = (section or {}).get(key)
        yield where, section, None, names


def _loaders(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader")
        # mmseg and mmdet give several loaders as a list.
        yield from _numbered(f"{part}_dataloader", loader)


def _datasets(where: str, dataset: Any) -> Iterator[tuple[str, Any, Registry, set[str]]]:
    """A data set, and those that it wraps."""
    if not isinstance(dataset, Mapping):
        return
    yield where, dataset, DATASETS, set()
    yield from _datasets(f"{where}.dataset", dataset.get("dataset"))
    for inner, one in _numbered(f"{where}.datasets", dataset.get("datasets")):
        yield from _datasets(inner, one)


def _numbered(where: str, sections: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(sections, list | tuple):
        for number, one in enumerate(sections):
            yield from _numbered(f"{where}.{number}", one)
    elif isinstance(sections, Mapping):
        yield where, sections


def _without(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != name}


def _options_of(section: Mapping[str, Any], registry: Registry) -> set[str] | None:
    """The options that a section's type takes; None where anything goes, or where building will say what is wrong."""
    kind = section.get("type")
    if isinstance(kind, str):
        try:
            kind = registry.get(kind)
        except RuntimeError:
            return None
    if kind is None:
        return None
    names = _parameters(kind)
    return None if names is None else names | {"type", "_scope_"}


def _parameters(kind: Any) -> set[str] | None:
    """The arguments of a function, or of a class and those of its bases that further keywords go to; None: all."""
    if not inspect.isclass(kind):
        parts = [kind]
    elif issubclass(kind, CheckpointHook):
        # It would hand further keywords on when it saves.
        return set(inspect.signature(CheckpointHook.__init__).parameters) - {"self", "kwargs"}
    else:
        parts = [base.__dict__["__init__"] for base in kind.__mro__[:-1] if "__init__" in base.__dict__]
    names: set[str] = set()
    for part in parts:
        parameters = inspect.signature(part).parameters.values()
        names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return names - {"self"}
    return None if parts else names


def _check_names(where: str, section: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in section:
        if name not in known:
            kind = section.get("type")
            of = f" of {getattr(kind, '__name__', kind)}" if kind else ""
            others = did_you_mean(str(name), known) or f"; there are {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(f"The config's {where} has the option '{name}', which is no option{of}{others}.")


def _check_numbers(cfg: Mapping[str, Any]) -> None:
    _check_least("train_cfg", cfg.get("train_cfg"), _LEAST["train_cfg"])
    for where, loader in _loaders(cfg):
        _check_least(where, loader, _LEAST["loader"])
        _check_least(f"{where}.batch_sampler", loader.get("batch_sampler"), {"batch_size": 1})
    for name, hook in (cfg.get("default_hooks") or {}).items():
        _check_least(f"default_hooks.{name}", hook, _LEAST["hook"])
    wrapper = cfg.get("optim_wrapper")
    _check_least("optim_wrapper", wrapper, _LEAST["optim_wrapper"])
    optimizer = (wrapper or {}).get("optimizer")
    for name in ("lr", "weight_decay") if isinstance(optimizer, Mapping) else ():
        value = optimizer.get(name, 0)
        if value is None:
            continue
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not fine or not math.isfinite(value) or value < 0:
            raise ConfigError(f"optim_wrapper.optimizer.{name} must be a number of at least 0, not {value!r}.")


def _check_values(cfg: Mapping[str, Any]) -> None:
    """Numbers that other libraries would refuse in words of their own, or after an epoch."""
    seed = (cfg.get("randomness") or {}).get("seed")
    if seed is not None and not (_is_whole(seed) and 0 <= seed < 2**32):
        raise ConfigError(f"randomness.seed must be a whole number from 0 to 2**32 - 1 or None, not {seed!r}.")
    model = (cfg.get("model") or {}).get("model")
    classes = model.get("num_classes") if isinstance(model, Mapping) else None
    if classes is not None and not (_is_whole(classes) and classes >= 0):
        raise ConfigError(f"model.model.num_classes must be a whole number of at least 0, not {classes!r}.")
    for where, loader in _loaders(cfg):
        for inner, dataset, _, _ in _datasets(f"{where}.dataset", loader.get("dataset")):
            transform = dataset.get("transform")
            size = transform.get("input_size") if isinstance(transform, Mapping) else None
            sides = size if isinstance(size, list | tuple) else (size, size)
            if size is not None and not (len(sides) in (2, 3) and all(_is_whole(one) and one > 0 for one in sides)):
                raise ConfigError(
                    f"{inner}.transform.input_size must be a whole number of pixels, (height, width) or (channels, "
                    f"height, width), not {size!r}."
                )
    for key in ("val_evaluator", "test_evaluator"):
        for where, metric in _numbered(key, cfg.get(key)):
            ranks = metric.get("topk")
            if metric.get("type") != "Accuracy" or ranks is None:
                continue
            if not isinstance(ranks, list | tuple) or not ranks or not all(_is_whole(k) and k > 0 for k in ranks):
                raise ConfigError(f"{where}.topk must be a list of whole numbers of at least 1, not {ranks!r}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_least(where: str, section: Any, least: Mapping[str, int]) -> None:
    for name, bound in least.items() if isinstance(section, Mapping) else ():
        value = section.get(name)
        if value is None:
            continue
        # mmengine itself takes 12.0 epochs.
        whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
        if not whole or value < bound:
            raise ConfigError(f"{where}.{name} must be a whole number of at least {bound}, not {value!r}.")
