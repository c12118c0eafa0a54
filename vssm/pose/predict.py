"""Find keypoints in image files with a trained run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image, ImageDraw

from .._errors import UserError
from .._inputs import read_json, require_file
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
        boxes: For an image's path or file name its boxes (left, top, width, height); the whole image where none is
            given.

    Raises:
        CheckpointError: The checkpoint cannot be read, or does not fit the model.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | os.PathLike,
        device: str | None = None,
        boxes: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ):
        self.device = device or get_device()
        model, stored = build_trained(cfg, checkpoint)
        self.model = model.eval().to(self.device)
        meta = (stored.get("meta") or {}).get("dataset_meta") or {}
        self.names = tuple(meta.get("keypoints") or map(str, range(model.keypoints)))
        self.boxes = boxes or {}

    @torch.inference_mode()
    def __call__(self, files: Sequence[str]) -> Iterator[Answer]:
        """Find the keypoints in image files, in order; an image that cannot be read gets an ``error``."""
        size = self.model.codec.size
        for file in files:
            try:
                image = open_image(file)
            except UserError as error:
                yield Answer(file, error=str(error))
                continue
            boxes = self.boxes.get(file) or self.boxes.get(Path(file).name) or [(0, 0, *image.size)]
            regions = [box_to_region(box, size) for box in boxes]
            crops = [to_input(crop_image(image, crop_matrix(region, size), size)) for region in regions]
            found = self.model(torch.stack(crops).to(self.device), mode="predict")
            poses = []
            for box, region, one in zip(boxes, regions, found, strict=True):
                points = region_to_points(one["points"].cpu().numpy().astype(np.float64), region, size)
                poses.append(Pose(tuple(box), tuple(map(tuple, points.tolist())), tuple(one["scores"].tolist())))
            yield Answer(file, tuple(poses))


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
        UserError: The file cannot be read or is no such object.
    """
    path = cfg.get("boxes")
    if not path:
        return {}
    found = read_json(require_file(path))
    if not isinstance(found, dict):
        raise UserError(f"'{path}' should hold an object with a list of boxes for each image.")
    return found
