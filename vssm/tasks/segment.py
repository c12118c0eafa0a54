"""The task of giving every pixel of an image a class."""

from collections.abc import Iterable
from typing import Any

from ._dense import DenseTask

__all__ = ["Segment"]


class Segment(DenseTask):
    """Segment images with mmseg's segmentors on our backbones."""

    name = "segment images"
    scope = "mmseg"
    counted_at = (512, 2048)
    inherits = {"mmseg": "mm"}
    headlines = {"mIoU": "Held-out mIoU (%)"}

    def classes_in(self, sample: Any) -> Iterable[int]:
        truth = getattr(sample["data_samples"], "gt_sem_seg", None)
        # 255 is the value that mmseg's losses and metrics pass over.
        return () if truth is None else [number for number in truth.data.unique().tolist() if number != 255]
