"""The facts that a family declares once, in its own file. Pictures, tables, recipes, counters and tests read them."""

import enum
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Dict, Tuple, Union

import timm
from torch import nn

from vssm_kernels import Route

__all__ = ["DenseMaps", "Family", "families", "family_of", "register_family"]


class DenseMaps(enum.Enum):
    """The norms that a family's official detectors and segmentors put on the maps of its stages."""

    NEW_NORMS = "a new LayerNorm on each map, which the checkpoints of classifiers lack"
    OWN_NORM = "the classifier's last norm on the last map; the others are normalised already"
    NEW_AND_OWN_NORMS = "a new LayerNorm on each map but the last, which has the classifier's last norm"
    AS_THEY_ARE = "none"


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: as in its file's name, "vmamba".
        title: as its authors write it, "VMamba".
        models: its model classes.
        scan_patterns: for pictures: routes, or tuples of joined routes, by a title that stands behind the family's.
        dense_maps: what detectors and segmentors do to its maps.
        dense_norm_eps: of the new norms.
        dense_decay: the weight decay of its detectors and segmentors: a factor by a part of a parameter's name. The
            longest part that fits decides; a parameter that none fits is decayed in full.
        uncounted_operators: operators that its papers' count of FLOPs leaves out, see `vssm.profiling.paper_flops`.
        counted_in_training: whether that count was made in training mode, where a BatchNorm counts five for an
            element, not two.
    """

    name: str
    title: str
    models: Tuple[type, ...]
    scan_patterns: Mapping[str, Tuple[Union[Route, Tuple[Route, ...]], ...]] = field(default_factory=dict)
    dense_maps: DenseMaps = DenseMaps.AS_THEY_ARE
    dense_norm_eps: float = 1e-5
    dense_decay: Mapping[str, float] = field(default_factory=dict)
    uncounted_operators: Tuple[str, ...] = ()
    counted_in_training: bool = False

    @property
    def module(self) -> ModuleType:
        """The module with its models, `default_cfgs` and `checkpoint_filter_fn`."""
        return sys.modules[self.models[0].__module__]

    @property
    def variants(self) -> Tuple[str, ...]:
        """The names of its models in timm's registry, in the order of its `default_cfgs`."""
        return tuple(self.module.default_cfgs)


_FAMILIES: Dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Add a family to those that `families` gives.

    Raises:
        ValueError: another family has the name.
    """
    if _FAMILIES.get(family.name, family).module is not family.module:
        raise ValueError(f"there is a family {family.name!r} already, in {_FAMILIES[family.name].module.__name__}")
    _FAMILIES[family.name] = family
    return family


def families() -> Tuple[Family, ...]:
    """All families, in the order in which `vssm.models` imports them."""
    return tuple(_FAMILIES.values())


def family_of(model: Union[nn.Module, type, str]) -> Union[Family, None]:
    """The family of a model, a model class, or a name: of a family or of one of its models in timm's registry.

    Returns:
        The family; None for a model of none.
    """
    if isinstance(model, str):
        name = model.split(".")[0]
        if name in _FAMILIES:
            return _FAMILIES[name]
        module = timm.models.model_entrypoint(name).__module__ if timm.is_model(name) else None
        return next((family for family in families() if family.module.__name__ == module), None)
    cls = model if isinstance(model, type) else type(model)
    return next((family for family in families() if issubclass(cls, family.models)), None)
