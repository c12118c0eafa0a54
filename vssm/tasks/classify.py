"""The task of naming what an image shows."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._cli import printable, say
from .._files import write_atomically
from .._tasks import NamedModel, Run, Task, Wanted

if TYPE_CHECKING:
    from ..classify.predict import Prediction, Predictor

__all__ = ["Classify"]


class Classify(Task):
    """Classify images with a timm model."""

    name = "classify images"
    models = frozenset({"TimmClassifier"})
    takes_names = True
    headlines = {"accuracy/top1": "Held-out top-1 (%)"}
    formerly = {
        "vssm.engine": (
            "Accuracy",
            "DemoFiguresHook",
            "Digits",
            "DistillationLoss",
            "ImageFolder",
            "MESAHook",
            "Predictor",
            "TimmClassifier",
        )
    }

    def load(self) -> ModuleType:
        from .. import classify

        return classify

    def predict(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Print a table of the most probable classes, and write it as JSON or CSV where that is wanted."""
        from ..engine.config import ConfigError
        from ..engine.images import find_images

        files = find_images(paths)
        if wanted.out is not None:
            raise ConfigError("--out DIR is for detectors, segmentors and medical runs; classes go to --json or --csv.")
        predictor = self._predictor(model, wanted.device)
        if isinstance(model, NamedModel) and not (model.pretrained or model.checkpoint):
            words = "because neither --pretrained nor --checkpoint was given"
            say(f"Warning: {model.name} has random weights, {words}.", error=True)
        width = max(len("image"), *(len(printable(file)) for file in files))
        say(f"{'image':<{width}}  probability  class")
        answers: list[Prediction] = []
        for answer in predictor(files, wanted.topk, wanted.batch_size):
            answers.append(answer)
            if answer.error:
                say(answer.error, error=True)
            for rank, (name, probability) in enumerate(zip(answer.classes, answer.probabilities, strict=True)):
                say(f"{printable(answer.image) if rank == 0 else '':<{width}}  {probability:>10.2%}   {name}")
        if wanted.json_file:
            text = json.dumps([asdict(answer) for answer in answers], indent=2) + "\n"
            write_atomically(wanted.json_file, text.encode())
        if wanted.csv_file:
            _write_csv(wanted.csv_file, answers)
        return 1 if any(answer.error for answer in answers) else 0

    def draw(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Draw all images with their most probable classes, as ``classes.png``."""
        from ..engine.images import find_images
        from ..viz.plots import plot_answers

        predictor = self._predictor(model, wanted.device)
        answers = list(predictor(find_images(paths), wanted.topk, wanted.batch_size))
        for answer in answers:
            if answer.error:
                say(answer.error, error=True)
        readable = [answer for answer in answers if not answer.error]
        if readable:
            say(str(plot_answers(readable, Path(wanted.out) / "classes.png")))
        return 1 if len(readable) < len(answers) else 0

    def classes_in(self, sample: Any) -> Iterable[int]:
        label = sample.get("labels")
        return () if label is None or getattr(label, "ndim", 0) else (int(label),)

    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        from ..classify.subjects import counted_subject

        return counted_subject(cfg, name)

    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        from ..classify.subjects import seen_subject

        return seen_subject(cfg, checkpoint, device)

    def _predictor(self, model: Run | NamedModel, device: str | None) -> "Predictor":
        from ..classify.predict import Predictor

        if isinstance(model, NamedModel):
            return Predictor.from_name(model.name, model.pretrained, device, model.checkpoint)
        return Predictor.from_run(model.cfg, model.checkpoint, device)


def _write_csv(path: str, answers: Sequence["Prediction"]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["image", "rank", "class", "probability", "error"])
    for answer in answers:
        image = printable(answer.image)
        if answer.error:
            writer.writerow([image, "", "", "", printable(answer.error)])
        for rank, (name, probability) in enumerate(zip(answer.classes, answer.probabilities, strict=True), 1):
            writer.writerow([image, rank, name, probability, ""])
    write_atomically(path, table.getvalue().encode())
