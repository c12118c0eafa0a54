"""The types that a config may name: what is registered, and classes of packages that models and data are made with.

mmengine's registries also take any dotted path, so that ``type="os.system"`` would run a command. Here such a path, or
an object in its place, has to be registered, a class of a known package, or one of the functions that only compute.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mmengine.registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry, registry
from mmengine.utils import get_object_from_string

__all__ = ["only_known_types", "remember_packages", "unknown_type"]

# Of torch and MONAI the parts of which models, optimisers and data are made, not those that load, compile or launch.
_KNOWN = {
    *("torch.nn", "torch.optim", "torch.utils.data", "torch.distributed.fsdp", "torch.distributed.optim"),
    *(f"monai.{part}" for part in ("data", "inferers", "losses", "metrics", "networks", "optimizers", "transforms")),
    *("torchvision", "timm", "segmentation_models_pytorch", "albumentations"),
    *("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "vssm"),
}
# Modules whose functions only compute; classes there are known anyway.
_COMPUTING = ("torch.nn.functional.", "torch.utils.data.", "torch.distributed.fsdp.wrap.", "torchvision.transforms.")
# Keys whose values are looked up in a registry.
_KEYS = ("type", "constructor", "runner_type")


def remember_packages(cfg: Mapping[str, Any]) -> None:
    """Count the packages that a config file's ``custom_imports`` names as known from now on."""
    imports = (cfg.get("custom_imports") or {}).get("imports") or ()
    _KNOWN.update([imports] if isinstance(imports, str) else imports)


def unknown_type(cfg: Any, where: str = "") -> tuple[str, str] | None:
    """Find a type that a config may not name.

    Args:
        cfg: A config or a part of it.
        where: The part's key.

    Returns:
        The key and the value as text, or None.
    """
    if isinstance(cfg, Mapping):
        pairs = [(f"{where}.{key}" if where else str(key), key, value) for key, value in cfg.items()]
    elif isinstance(cfg, list | tuple):
        pairs = [(f"{where}.{number}", None, value) for number, value in enumerate(cfg)]
    else:
        return None
    for place, key, value in pairs:
        looked_up = key in _KEYS or str(key).endswith("_type")
        if looked_up and isinstance(value, str) and not _may_be_named(value):
            return place, value
        if looked_up and callable(value) and not _may_be_used(value):
            return place, f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        found = unknown_type(value, place)
        if found:
            return found
    return None


@contextmanager
def only_known_types() -> Iterator[None]:
    """Have mmengine's registries find nothing but what a config may name."""
    before = registry.get_object_from_string
    registry.get_object_from_string = _look_up
    try:
        yield
    finally:
        registry.get_object_from_string = before


def _may_be_named(text: str) -> bool:
    # The scope of a registry may stand before a name.
    scope, _, name = text.partition(".")
    plain = name if scope in MODULE2PACKAGE or scope == "vssm" else text
    return "." not in plain or _look_up(text) is not None or _look_up(plain) is not None


def _look_up(path: str) -> Any:
    """The object of a dotted path if a config may use it; nothing is imported for other paths."""
    if not _is_within(path):
        return None
    found = get_object_from_string(path)
    return found if _may_be_used(found) else None


def _may_be_used(kind: Any) -> bool:
    if any(kind is known for known in _registered()):
        return True
    if inspect.isfunction(kind):
        return f"{kind.__module__}.".startswith(_COMPUTING)
    return inspect.isclass(kind) and _is_within(f"{kind.__module__}.{kind.__qualname__}")


def _is_within(path: str) -> bool:
    return any(path.startswith(f"{package}.") for package in _KNOWN)


def _registered() -> Iterator[Any]:
    todo = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    while todo:
        one = todo.pop()
        yield from one.module_dict.values()
        todo += one.children.values()
