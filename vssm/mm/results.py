"""Answers of detectors and segmentors as numbers: COCO's result form, and label maps."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._errors import DataError
from .._files import write_beside
from .._inputs import read_json

__all__ = ["CocoNumbers", "coco_results", "save_label_map"]

# COCO numbers its 80 classes of things from 1 to 90.
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


class CocoNumbers:
    """The numbers that COCO's form gives to images and classes: those of a data set's own file of annotations.

    Where there is none, or where it lacks an image or a class, classes are numbered from 1 (those of COCO as COCO does)
    and images in the order in which they are asked for, above the file's own numbers.

    Args:
        dataset: The config of a data set of mmdet: ``ann_file``, ``data_root`` and ``data_prefix`` are looked at.
        classes: The names of the classes.
        coco_classes: COCO's own.
    """

    def __init__(self, dataset: Mapping[str, Any], classes: Sequence[str], coco_classes: Sequence[str] = ()):
        self.categories = list(range(1, len(classes) + 1))
        if tuple(classes) == tuple(coco_classes):
            self.categories = [number for number in range(1, 91) if number not in _COCO_GAPS]
        self._images: dict[str, int] = {}
        root = dataset.get("data_root") or ""
        annotations = _read_annotations(os.path.join(root, dataset.get("ann_file") or ""))
        try:
            known = {entry["name"]: int(entry["id"]) for entry in annotations.get("categories") or ()}
            prefix = (dataset.get("data_prefix") or {}).get("img") or ""
            for entry in annotations.get("images") or ():
                place = os.path.join(root, prefix, str(entry["file_name"]))
                self._images[os.path.realpath(place)] = int(entry["id"])
        except (KeyError, TypeError, ValueError, AttributeError):
            # What is wrong with the file is said where it is trained and tested with.
            known, self._images = {}, {}
        if known and all(name in known for name in classes):
            self.categories = [known[name] for name in classes]
        self._next = max(self._images.values(), default=0) + 1

    def image_id(self, file: str | os.PathLike) -> int:
        """Return an image's number."""
        place = os.path.realpath(file)
        if place not in self._images:
            self._images[place] = self._next
            self._next += 1
        return self._images[place]


def _read_annotations(path: str) -> Mapping[str, Any]:
    try:
        found = read_json(Path(path)) if os.path.isfile(path) else {}
    except (DataError, OSError):
        found = {}
    return found if isinstance(found, dict) else {}


def coco_results(objects: Any, file: str, image_id: int, numbers: Sequence[int], names: Sequence[str]) -> list[dict]:
    """Describe found objects in COCO's result form.

    Args:
        objects: mmdet's ``pred_instances``: ``bboxes`` (N, 4) as (x1, y1, x2, y2), ``scores``, ``labels`` and perhaps
            ``masks`` (N, H, W).
        file: The image's file.
        image_id: The image's number.
        numbers: The categories' numbers by label.
        names: Their names.

    Returns:
        For each object ``image_id``, ``category_id``, ``bbox`` (left, top, width, height in pixels), ``score`` and, of
        masks, ``segmentation`` in run lengths; also ``file_name`` and ``category_name``, for which COCO's readers do
        not look.
    """
    from pycocotools import mask as run_lengths

    found = []
    masks = objects.get("masks")
    boxes, scores, labels = objects.bboxes.tolist(), objects.scores.tolist(), objects.labels.tolist()
    for number, ((left, top, right, bottom), score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
        result = dict(
            image_id=image_id,
            file_name=file,
            category_id=numbers[label],
            category_name=names[label],
            bbox=[left, top, right - left, bottom - top],
            score=score,
        )
        if masks is not None:
            code = run_lengths.encode(np.asfortranarray(np.asarray(masks[number]), dtype=np.uint8))
            result["segmentation"] = dict(size=list(code["size"]), counts=code["counts"].decode("ascii"))
        found.append(result)
    return found


def save_label_map(labels: np.ndarray, palette: Sequence[Sequence[int]], path: Path) -> None:
    """Write the class of each pixel as a PNG: its values are the classes, and viewers show their colours.

    Args:
        labels: (H, W), whole numbers from 0 on.
        palette: A colour (red, green, blue) for each class; more than 256 classes are 16-bit grey.
        path: The file.

    Raises:
        FileError: It cannot be written.
    """
    if len(palette) > 256:
        picture = Image.fromarray(labels.astype(np.uint16))
    else:
        picture = Image.fromarray(labels.astype(np.uint8), mode="P")
        picture.putpalette([int(value) for colour in palette for value in colour])
    write_beside(path, picture.save)
