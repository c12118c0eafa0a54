"""Common parts of detection and segmentation with mmdet and mmseg."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from .._cli import say
from .._files import write_atomically
from .._tasks import NamedModel, Run, Task, Wanted

__all__ = ["DenseTask"]


class DenseTask(Task):
    """A task whose configs belong to a scope of mmengine's registries, and whose answers are drawings and numbers.

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
        """Print what is found in each image; draw it, and write it as numbers, where that is wanted."""
        from ..engine.config import ConfigError
        from ..engine.images import find_images

        files = find_images(paths)
        if wanted.csv_file or not (wanted.out or wanted.json_file):
            raise ConfigError(
                "Detectors and segmentors answer with drawings and numbers: give --out DIR or --json FILE, no --csv."
            )
        from ..mm.predict import DensePredictor

        predictor = DensePredictor(model.cfg, model.checkpoint, wanted.device, wanted.score_threshold)
        maps = None
        if wanted.json_file and predictor.scope == "mmseg":
            path = Path(wanted.json_file)
            maps = Path(wanted.out) / "labels" if wanted.out else path.with_name(f"{path.stem}_labels")
        answers = []
        for answer in predictor(files, wanted.out, maps, bool(wanted.json_file)):
            answers.append(answer)
            if answer.error:
                say(answer.error, error=True)
            else:
                found = ", ".join(f"{name} {value:.1%}" for name, value in answer.found[:10]) or "nothing"
                target = answer.drawing or answer.label_map
                say(f"{answer.image}{f' -> {target}' if target else ''}: {found}")
        if wanted.json_file:
            text = json.dumps(predictor.in_numbers(answers), indent=1) + "\n"
            write_atomically(wanted.json_file, text.encode())
        return 1 if any(answer.error for answer in answers) else 0

    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        from ..mm.subjects import counted_subject

        return counted_subject(cfg, name, self.counted_at)

    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        from ..mm.subjects import seen_subject

        return seen_subject(cfg, checkpoint, device)
