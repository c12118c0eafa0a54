"""The task of giving every pixel of an image a class."""

from ._dense import DenseTask

__all__ = ["Segment"]


class Segment(DenseTask):
    """Segment images with mmseg's segmentors on our backbones."""

    name = "segment images"
    scope = "mmseg"
    counted_at = (512, 2048)
    inherits = {"mmseg": "mm"}
    headlines = {"mIoU": "Held-out mIoU (%)"}
