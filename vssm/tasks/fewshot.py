"""The task of learning new classes from a few images each."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from .classify import Classify

__all__ = ["LearnFromFew"]


class LearnFromFew(Classify):
    """Learn classes in sessions; what is learnt classifies images."""

    name = "learn classes from few images"
    models = frozenset({"IncrementalClassifier"})
    takes_names = False
    headlines: ClassVar[Mapping[str, str]] = {}
    formerly: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def load(self) -> ModuleType:
        super().load()  # its data sets and metrics
        from .. import fewshot

        return fewshot

    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        from ..fewshot.subjects import counted_subject

        return counted_subject(cfg, name)

    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        from ..engine.config import ConfigError

        raise ConfigError("Pictures of what goes on inside are not made of models that learn classes in sessions.")
