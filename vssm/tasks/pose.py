"""The task of finding the keypoints of persons and other things."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from .._cli import say
from .._files import FreeNames, write_atomically, write_beside
from .._tasks import NamedModel, Run, Task, Wanted

__all__ = ["Pose"]


class Pose(Task):
    """Find keypoints in boxes with a pose estimator on a timm model."""

    name = "find keypoints"
    models = frozenset({"PoseEstimator"})
    headlines = {"pose/AP": "Held-out keypoint AP"}

    def load(self) -> ModuleType:
        from .. import pose

        return pose

    def predict(self, model: Run | NamedModel, paths: Sequence[str], wanted: Wanted) -> int:
        """Print how many poses each image has; draw them, and write them as JSON, where that is wanted.

        The whole image is one box, unless the config's ``boxes`` names a file of others.
        """
        from ..engine.config import ConfigError
        from ..engine.images import find_images, open_image
        from ..pose.predict import PosePredictor, draw_poses, read_boxes

        if wanted.csv_file or not (wanted.out or wanted.json_file):
            raise ConfigError(
                "Pose estimators answer with drawings and numbers: give --out DIR or --json FILE, no --csv."
            )
        predictor = PosePredictor(model.cfg, model.checkpoint, wanted.device, read_boxes(model.cfg))
        answers, free_name = [], FreeNames()
        for answer in predictor(find_images(paths)):
            answers.append(answer)
            if answer.error:
                say(answer.error, error=True)
                continue
            target = ""
            if wanted.out:
                path = Path(wanted.out) / f"{free_name(Path(answer.image).stem)}.png"
                drawing = draw_poses(open_image(answer.image), answer.poses, wanted.score_threshold)
                write_beside(path, drawing.save)
                target = f" -> {path}"
            say(f"{answer.image}{target}: {len(answer.poses)} poses of {len(predictor.names)} keypoints")
        if wanted.json_file:
            numbers = dict(keypoints=predictor.names, images=[asdict(answer) for answer in answers])
            write_atomically(wanted.json_file, (json.dumps(numbers, indent=1) + "\n").encode())
        return 1 if any(answer.error for answer in answers) else 0

    def count(self, cfg: Mapping[str, Any], name: str) -> Any:
        from ..pose.subjects import counted_subject

        return counted_subject(cfg, name)

    def look_inside(self, cfg: Mapping[str, Any], checkpoint: str | None = None, device: str = "cpu") -> Any:
        from ..pose.subjects import seen_subject

        return seen_subject(cfg, checkpoint, device)
