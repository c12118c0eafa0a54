"""The task of pre-training encoders without labels."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from .._tasks import NamedModel, Run, Task, Wanted

__all__ = ["Pretrain"]

_PICTURES = "A pre-training run {}: see what it fills in with `vssm visualize masked`, or fine-tune its encoder."


class Pretrain(Task):
    """Pre-train encoders of images and volumes on masked patches."""

    name = "pre-train encoders"
    models = frozenset({"MaskedPretraining"})

    def load(self) -> ModuleType:
        from ..medical import training

        return training

    def predict(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Refuse: such a run has no answer."""
        from ..engine.config import ConfigError

        raise ConfigError(_PICTURES.format("predicts nothing"))

    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        """Count the encoder alone, dense."""
        from ..medical.masked_pictures import counted_encoder

        return counted_encoder(cfg, name)

    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        """Refuse: look inside of the network that its encoder goes into."""
        from ..engine.config import ConfigError

        raise ConfigError(_PICTURES.format("has no picture of this kind"))
