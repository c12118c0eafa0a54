"""Pose estimation: keypoints of persons (or of anything else) in boxes, by heatmaps of a timm model.

Importing this package registers everything with mmengine's root registries, so a config needs only
``custom_imports = dict(imports=["vssm.pose"])`` to name the types below.
"""

from .._optional import require

for _module in ("mmengine.runner", "torchvision", "PIL"):
    require(_module, "train")
require("pycocotools.coco", "mm")

from .. import engine as _engine  # noqa: E402, F401  (registers the hooks and wrappers that configs name)
from .codec import HeatmapCodec  # noqa: E402
from .data import CocoKeypoints, DigitKeypoints  # noqa: E402
from .estimator import PoseEstimator  # noqa: E402
from .metrics import KeypointAP  # noqa: E402
from .predict import PosePredictor  # noqa: E402

__all__ = ["CocoKeypoints", "DigitKeypoints", "HeatmapCodec", "KeypointAP", "PoseEstimator", "PosePredictor"]
