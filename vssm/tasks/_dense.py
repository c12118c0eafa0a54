"""Common parts of detection and segmentation with mmdet and mmseg."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

from .._cli import say
from .._tasks import NamedModel, Run, Task, Wanted

__all__ = ["DenseTask"]


class DenseTask(Task):
    """A task whose configs belong to a scope of mmengine's registries, and whose answers are drawings.

    Attributes:
        scope: The scope.
        counted_at: (H, W) of the image that the papers count at.
    """

    scope: ClassVar[str]
    counted_at: ClassVar[tuple[int, int]]

    def takes(self, cfg: Mapping[str, Any]) -> bool:
        return cfg.get("default_scope") == self.scope and "type" in (cfg.get("model") or {})

    def load(self) -> ModuleType:
        from .. import mm

        return mm

    def predict(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Draw what is found in each image, and print it."""
        from ..engine.config import ConfigError
        from ..engine.images import find_images

        files = find_images(paths)
        if wanted.out is None or wanted.json_file or wanted.csv_file:
            raise ConfigError("Detectors and segmentors answer with drawings: give --out DIR, no --json or --csv.")
        from ..mm.predict import DensePredictor

        predictor = DensePredictor(model.cfg, model.checkpoint, wanted.device, wanted.score_threshold)
        failed = False
        for answer in predictor(files, wanted.out):
            if answer.error:
                failed = True
                say(answer.error, error=True)
            else:
                found = ", ".join(f"{name} {value:.1%}" for name, value in answer.found[:10]) or "nothing"
                say(f"{answer.image} -> {answer.drawing}: {found}")
        return 1 if failed else 0

    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        from ..mm.subjects import counted_subject

        return counted_subject(cfg, name, self.counted_at)

    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        from ..mm.subjects import seen_subject

        return seen_subject(cfg, checkpoint, device)
