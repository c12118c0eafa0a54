"""Find keypoints in image files with a trained run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image, ImageDraw

from .._errors import DataError, UserError
from .._inputs import read_json, require_file, warn_once
from ..engine.images import open_image
from ..engine.models import build_trained
from .codec import box_to_region, crop_image, crop_matrix, region_to_points
from .data import to_input

__all__ = ["Answer", "Pose", "PosePredictor", "draw_poses", "read_boxes"]

COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6")


@dataclass(frozen=True)
class Pose:
    """What was found in a box.

    Attributes:
        box: Left, top, width, height.
        points: (x, y) of each keypoint in pixels of the image.
        scores: Heights of the heatmaps there.
    """

    box: tuple[float, ...]
    points: tuple[tuple[float, float], ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """The poses of one image, or why there are none."""

    image: str
    poses: tuple[Pose, ...] = ()
    error: str | None = None


class PosePredictor:
    """A run's estimator, for images with boxes.

    Args:
        cfg: The run's config.
        checkpoint: Its checkpoint.
        device: Where to run; None: a GPU if there is one.
        boxes: For an image's path or file name its boxes (left, top, width, height), which may be none; an image that
            is not named is one box.

    Raises:
        CheckpointError: The checkpoint cannot be read, or does not fit the model.
        DataError: A box is not of four numbers, or has no area.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | os.PathLike,
        device: str | None = None,
        boxes: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ):
        self.boxes = _checked(boxes or {}, "boxes")
        self.device = device or get_device()
        model, stored = build_trained(cfg, checkpoint)
        self.model = model.eval().to(self.device)
        meta = (stored.get("meta") or {}).get("dataset_meta") or {}
        self.names = tuple(meta.get("keypoints") or map(str, range(model.keypoints)))

    @torch.inference_mode()
    def __call__(self, files: Sequence[str]) -> Iterator[Answer]:
        """Find the keypoints in image files, in order; an image that cannot be read gets an ``error``."""
        size = self.model.codec.size
        if self.boxes and files and all(self._boxes_of(file) is None for file in files):
            names = ", ".join(f"'{name}'" for name in list(self.boxes)[:3]) + (", ..." if len(self.boxes) > 3 else "")
            warn_once(f"The boxes are of {names}, of none of the {len(files)} images: each image is one box.")
        for file in files:
            try:
                image = open_image(file)
            except UserError as error:
                yield Answer(file, error=str(error))
                continue
            given = self._boxes_of(file)
            boxes = [(0, 0, *image.size)] if given is None else given
            if not len(boxes):
                yield Answer(file)
                continue
            regions = [box_to_region(box, size) for box in boxes]
            crops = [to_input(crop_image(image, crop_matrix(region, size), size)) for region in regions]
            found = self.model(torch.stack(crops).to(self.device), mode="predict")
            poses = []
            for box, region, one in zip(boxes, regions, found, strict=True):
                points = region_to_points(one["points"].cpu().numpy().astype(np.float64), region, size)
                poses.append(Pose(tuple(box), tuple(map(tuple, points.tolist())), tuple(one["scores"].tolist())))
            yield Answer(file, tuple(poses))

    def _boxes_of(self, file: str) -> Sequence[Sequence[float]] | None:
        return self.boxes.get(file, self.boxes.get(Path(file).name))


def draw_poses(image: Image.Image, poses: Sequence[Pose], threshold: float) -> Image.Image:
    """Draw boxes, and a dot of a keypoint's own colour where it is at least as sure as the threshold."""
    image = image.copy()
    canvas = ImageDraw.Draw(image)
    radius = max(2, round(max(image.size) / 100))
    for pose in poses:
        left, top, width, height = pose.box
        canvas.rectangle((left, top, left + width - 1, top + height - 1), outline="white")
        for number, ((x, y), score) in enumerate(zip(pose.points, pose.scores, strict=True)):
            if score >= threshold:
                spot = (x - radius, y - radius, x + radius, y + radius)
                canvas.ellipse(spot, fill=COLOURS[number % len(COLOURS)], outline="black")
    return image


def read_boxes(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The boxes that a config names, ``boxes = "FILE.json"``: an object of lists by the images' paths or names.

    Raises:
        UserError: The file cannot be read or is no such object; a box is not of four numbers, or has no area.
    """
    path = cfg.get("boxes")
    if not path:
        return {}
    found = read_json(require_file(path))
    if not isinstance(found, dict):
        raise UserError(f"'{path}' should hold an object with a list of boxes for each image.")
    return _checked(found, f"'{path}'")


def _checked(boxes: Mapping[str, Sequence[Sequence[float]]], source: str) -> dict[str, Any]:
    """The boxes of ``source``, if all of them are such."""
    for name, there in boxes.items():
        if not isinstance(there, list | tuple | np.ndarray):
            raise DataError(f"{source} should hold a list of boxes for '{name}', not {str(there)[:40]}.")
        for box in there:
            if not _is_box(box):
                raise DataError(
                    f"{source} holds {str(box)[:60]} for '{name}'; a box is [left, top, width, height], four numbers, "
                    "of which width and height are above 0."
                )
    return dict(boxes)


def _is_box(box: Any) -> bool:
    if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4:
        return False
    # The bound keeps out NaN, infinity and whole numbers that floats cannot hold.
    numbers = all(isinstance(value, Real) and not isinstance(value, bool) and abs(value) < 2**62 for value in box)
    return numbers and box[2] > 0 and box[3] > 0
