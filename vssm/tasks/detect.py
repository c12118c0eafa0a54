"""The task of finding objects in an image, as boxes and masks."""

from collections.abc import Iterable
from typing import Any

from ._dense import DenseTask

__all__ = ["Detect"]


class Detect(DenseTask):
    """Detect objects with mmdet's detectors on our backbones."""

    name = "detect objects"
    scope = "mmdet"
    counted_at = (800, 1280)
    inherits = {"mmdet": "mm"}
    headlines = {"coco/bbox_mAP": "Held-out box AP", "coco/segm_mAP": "Held-out mask AP"}

    def classes_in(self, sample: Any) -> Iterable[int]:
        found = getattr(sample["data_samples"], "gt_instances", {})
        return found.labels.tolist() if "labels" in found else ()
