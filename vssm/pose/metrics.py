"""COCO's average precision of keypoints."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .codec import region_to_points

__all__ = ["KeypointAP", "average_precision", "similarity"]

NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")


def similarity(points: np.ndarray, others: np.ndarray, areas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Object keypoint similarity of one pose (K, 2) with others (N, K, 2), of which all keypoints count: (N,).

    Args:
        points: The pose.
        others: Poses.
        areas: The pose's area, averaged with that of each other: (N,).
        sigmas: How far apart annotators put each keypoint, as a share of the root of the area: (K,).
    """
    square = ((others - points) ** 2).sum(-1)
    return np.exp(-square / (2 * (2 * sigmas) ** 2) / (areas[:, None] + np.spacing(1))).mean(-1)


def average_precision(truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], sigmas: Sequence[float]) -> dict:
    """pycocotools' ten numbers, in per cent; -100 where nothing of that size is labelled.

    Args:
        truth: Annotations in COCO's form.
        found: Results in COCO's form.
        sigmas: See `similarity`.
    """
    if not found:
        return dict.fromkeys(NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(list(found)), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)}


@METRICS.register_module()
class KeypointAP(BaseMetric):
    """COCO's AP of keypoints, in per cent: ``pose/AP``, ``pose/AP50`` and so on.

    A pose's score is that of its box times the mean height of its heatmaps above 0.2. Poses that are nearly the same
    as a better one of the image are left out. Each category is measured by itself, and the mean is given.

    Args:
        dataset: Config of the data set whose annotations are the truth.
        same: Similarity from which two poses are the same.
        collect_device: See mmengine's BaseMetric.
        prefix: See mmengine's BaseMetric.
    """

    default_prefix = "pose"

    def __init__(
        self,
        dataset: Mapping[str, Any],
        same: float = 0.9,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.dataset_options = dict(dataset)
        self.same = same
        self._dataset: Any = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take the poses of a batch, see `PoseEstimator`."""
        if self._dataset is None:
            self._dataset = DATASETS.build(dict(self.dataset_options))
        size = self._dataset.codec.size
        for one in data_samples:
            region, scores = one["region"].cpu().numpy(), one["scores"].cpu().numpy()
            points = region_to_points(one["points"].cpu().numpy().astype(np.float64), region, size)
            high = scores[scores > 0.2]
            score = float(one["box_score"]) * (float(high.mean()) if len(high) else 0.0)
            area = float(one["area"])
            self.results.append((int(one["image_id"]), int(one["category_id"]), points, scores, score, area))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the metrics of all poses."""
        sigmas = np.asarray(self._dataset.metainfo["sigmas"])
        # Categories are measured apart, so a pose does not take the place of one of another category.
        groups = defaultdict(list)
        for image, category, *pose in results:
            groups[image, category].append(pose)
        truth = self._dataset.ground_truth()
        found = []
        for (image, category), poses in groups.items():
            for points, scores, score, _ in self._best(poses, sigmas):
                keypoints = np.concatenate([points, scores[:, None]], axis=1).ravel().tolist()
                found.append(dict(image_id=image, category_id=category, keypoints=keypoints, score=score))
        return average_precision(truth, found, sigmas)

    def _best(self, poses: list, sigmas: np.ndarray) -> list:
        left = sorted(poses, key=lambda pose: -pose[2])
        kept = []
        while left:
            best, *rest = left
            kept.append(best)
            if not rest:
                break
            areas = np.array([(best[3] + other[3]) / 2 for other in rest])
            close = similarity(best[0], np.stack([other[0] for other in rest]), areas, sigmas)
            left = [other for other, alike in zip(rest, close, strict=True) if alike <= self.same]
        return kept
