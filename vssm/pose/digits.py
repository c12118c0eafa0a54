"""Keypoints that are known exactly: where the strokes of handwritten digits end and cross.

The digits are those of `vssm.engine.digit_scenes`: scans of scikit-learn on photographs. Of what a digit covers by more
than a half, scikit-image makes the skeleton, a line of one pixel. An end is a pixel with one neighbour, a crossing is a
group of touching pixels with three or more, and is placed in their middle. An end nearer than a stroke's width to a
crossing is a spur of the skeleton, not of the digit, and both are left out.

Three keypoints follow: of the ends the highest, `top`, and the lowest, `bottom`; a single one is what it is nearer to,
the top or the bottom of the digit. The crossing is labelled where there is just one. What a digit lacks has no label.
"""

from typing import Any

import numpy as np

from .._optional import require
from ..engine.digit_scenes import Digit, Scenes

__all__ = ["DIGIT_KEYPOINTS", "digit_annotations", "stroke_points"]

# A hit is judged as loosely as that of a hip: the skeleton of a stroke may end a little further or nearer.
DIGIT_KEYPOINTS = dict(keypoints=("top", "bottom", "crossing"), flip_pairs=(), sigmas=(0.05, 0.05, 0.05))


def stroke_points(coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the keypoints of a digit.

    Args:
        coverage: How much of each pixel the digit covers, from 0 to 1: (h, w).

    Returns:
        Points (3, 2), zero where there is none; whether there is one (3,).
    """
    measure = require("skimage.measure", "data")
    ink = coverage > 0.5
    skeleton = np.pad(require("skimage.morphology", "data").skeletonize(ink), 1)
    around = sum(np.roll(skeleton, (dy, dx), (0, 1)).astype(int) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
    groups = measure.label(skeleton & (around >= 3), connectivity=2)
    crossings = np.array([np.argwhere(groups == n).mean(0) for n in range(1, groups.max() + 1)]).reshape(-1, 2) - 1
    ends = np.argwhere(skeleton & (around == 1)).astype(float) - 1
    stroke = ink.sum() / max(skeleton.sum(), 1)
    if len(crossings) and len(ends):
        apart = np.linalg.norm(ends[:, None] - crossings[None], axis=-1)
        spurs = apart < stroke
        ends, crossings = ends[~spurs.any(1)], crossings[~spurs.any(0)]
    points, labelled = np.zeros((3, 2)), np.zeros(3, dtype=bool)
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    if len(ends) > 1:
        points[0], points[1], labelled[:2] = ends[0], ends[-1], True
    elif len(ends):
        place = int(ends[0, 0] > (len(coverage) - 1) / 2)
        points[place], labelled[place] = ends[0], True
    if len(crossings) == 1:
        points[2], labelled[2] = crossings[0], True
    return points[:, ::-1], labelled


def _annotation(number: int, image: int, digit: Digit) -> dict[str, Any]:
    points, labelled = stroke_points(digit.coverage)
    points = (points + [digit.left, digit.top]) * labelled[:, None]
    height, width = digit.coverage.shape
    return dict(
        id=number,
        image_id=image,
        category_id=1,
        bbox=[digit.left, digit.top, width, height],
        area=float(height * width),
        iscrowd=0,
        keypoints=np.concatenate([points, 2 * labelled[:, None]], axis=1).ravel().tolist(),
        num_keypoints=int(labelled.sum()),
        digit=digit.label,
    )


def digit_annotations(split: str, count: int, seed: int = 0) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Compose scenes, and annotate them in COCO's form.

    Args:
        split: ``"train"`` or ``"val"``.
        count: How many scenes.
        seed: Of the scenes.

    Returns:
        RGB images (H, W, 3), numbered from 0; annotations.
    """
    images: list[np.ndarray] = []
    annotations: list[dict[str, Any]] = []
    for scene in Scenes(split, count, digit_size=(32, 60), digits=(2, 4), seed=seed):
        for digit in scene.digits:
            annotations.append(_annotation(len(annotations) + 1, len(images), digit))
        images.append(scene.image)
    category = dict(id=1, name="digit", keypoints=list(DIGIT_KEYPOINTS["keypoints"]), skeleton=[])
    infos = [dict(id=i, file_name=f"{i}.png", height=im.shape[0], width=im.shape[1]) for i, im in enumerate(images)]
    return images, dict(images=infos, annotations=annotations, categories=[category])
