"""The task of labelling volumes and images of medicine."""

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from .._cli import say
from .._tasks import NamedModel, Run, Task, Wanted

__all__ = ["Label"]


class Label(Task):
    """Label NIfTI volumes, slice by slice or in windows, and images with the U-shaped networks."""

    name = "label volumes"
    models = frozenset({"UNetSegmentor"})
    headlines = {"dice/mean": "Held-out mean Dice (%)", "iou": "Held-out IoU (%)"}

    def load(self) -> ModuleType:
        from ..medical import training

        return training

    def predict(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Write labels as files, and print which."""
        from ..engine.config import ConfigError

        if wanted.out is None or wanted.json_file or wanted.csv_file:
            raise ConfigError("Medical runs answer with labels as files: give --out DIR, no --json or --csv.")
        from ..medical.predict import label_files

        for path in label_files(model.cfg, model.checkpoint, paths, wanted.out, wanted.device):
            say(str(path))
        return 0

    def classes_in(self, sample: Any) -> Iterable[int]:
        return sample["label"].unique().tolist()

    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        from ..medical.subjects import counted_subject

        return counted_subject(cfg, name)

    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        from ..medical.subjects import seen_subject

        return seen_subject(cfg, checkpoint, device)
