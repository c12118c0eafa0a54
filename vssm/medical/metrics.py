"""Dice, HD95, Jaccard and surface distance of label volumes, as the published protocols compute them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from scipy import ndimage

from ..engine.config import ConfigError

MEASURES = ("dice", "hd95", "jaccard", "asd")
CONVENTIONS = ("transunet", "clean")


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances between the surfaces of two masks.

    A surface is the mask without its erosion by the cross-shaped element; voxels on the volume's edge count to it.

    Args:
        prediction: Not empty, bool, any number of dimensions.
        truth: The same.
        spacing: Size of a voxel along each axis; None: 1.

    Returns:
        Of each voxel on the prediction's surface the distance to the truth's, and the other way round.
    """
    # Nothing outside of the box around both can be on a surface, or the nearest point of one.
    box = _box(prediction | truth)
    prediction, truth = prediction[box], truth[box]
    edges = [mask ^ ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    to_prediction, to_truth = (ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges)
    return to_truth[edges[0]], to_prediction[edges[1]]


def score_masks(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float] | None = None,
    empty: str = "transunet",
    measures: Sequence[str] = MEASURES,
) -> dict[str, float]:
    """Score one class of one volume.

    Args:
        prediction: bool, any number of dimensions.
        truth: bool, the same shape.
        spacing: Size of a voxel along each axis, the unit of ``hd95`` and ``asd``; None: 1, so the unit is voxels.
        empty: What an empty mask scores. ``"transunet"``, for numbers that are comparable to published ones: an empty
            prediction scores Dice 0 and HD95 0 (both empty included), a prediction where nothing is scores Dice 1 and
            HD95 0. ``"clean"``: Dice and Jaccard are 0 where exactly one of the two is empty and NaN, left out of
            means, where both are; distances are NaN where either is.
        measures: Which of ``MEASURES`` to compute.

    Returns:
        ``dice`` and ``jaccard`` (0 to 1), ``hd95`` (the 95th percentile of the distances of both directions together)
        and ``asd`` (the mean of the two directions' mean distances), as far as asked for.

    Raises:
        ConfigError: ``empty`` or a measure is unknown.
    """
    if empty not in CONVENTIONS:
        raise ConfigError(f"The convention for empty masks is one of {CONVENTIONS}, not '{empty}'.")
    unknown = set(measures) - set(MEASURES)
    if unknown:
        raise ConfigError(f"Measures are {MEASURES}, not '{min(unknown)}'.")
    predicted, true = int(prediction.sum()), int(truth.sum())
    scores: dict[str, float] = {}
    if predicted and true:
        both = int((prediction & truth).sum())
        scores["dice"] = 2 * both / (predicted + true)
        scores["jaccard"] = both / (predicted + true - both)
        if {"hd95", "asd"} & set(measures):
            there, back = surface_distances(prediction, truth, spacing)
            scores["hd95"] = float(np.percentile(np.concatenate((there, back)), 95))
            scores["asd"] = float(there.mean() + back.mean()) / 2
    elif empty == "transunet":
        overlap = 1.0 if predicted else 0.0
        scores = {"dice": overlap, "jaccard": overlap, "hd95": 0.0, "asd": 0.0}
    else:
        overlap = 0.0 if predicted or true else float("nan")
        scores = {"dice": overlap, "jaccard": overlap, "hd95": float("nan"), "asd": float("nan")}
    return {name: scores[name] for name in MEASURES if name in measures}


def score_volume(
    prediction: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    spacing: Sequence[float] | None = None,
    empty: str = "transunet",
    measures: Sequence[str] = MEASURES,
) -> list[dict[str, float]]:
    """Score every class but the background of one volume, see :func:`score_masks`.

    Args:
        prediction: Class numbers, any number of dimensions.
        truth: The same.
        num_classes: K, the background included.
        spacing: Size of a voxel in millimetres; where it is given, ``hd95_mm`` and ``asd_mm`` are added to ``hd95`` and
            ``asd``, which always count voxels.
        empty: What an empty mask scores.
        measures: Which of ``MEASURES`` to compute.

    Returns:
        The scores of the classes 1 to K - 1.
    """
    rows = []
    for number in range(1, num_classes):
        masks = prediction == number, truth == number
        row = score_masks(*masks, None, empty, measures)
        distances = [name for name in ("hd95", "asd") if name in measures]
        if spacing is not None and distances:
            in_mm = score_masks(*masks, spacing, empty, distances)
            row |= {f"{name}_mm": in_mm[name] for name in distances}
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


@METRICS.register_module()
class VolumeMetric(BaseMetric):
    """Scores of label volumes: per class the mean over cases, then the mean over classes.

    Dice, Jaccard are in per cent, ``hd95`` and ``asd`` in voxels, ``hd95_mm`` and ``asd_mm`` in millimetres (only where
    the data say how large a voxel is).

    Args:
        measures: Which of ``MEASURES`` to compute; distances take most of the time.
        empty: What an empty mask scores, see :func:`score_masks`.
        collect_device: See mmengine's BaseMetric.
        prefix: See mmengine's BaseMetric.

    Attributes:
        rows: After an evaluation, one dict per case: ``case`` and per class name its scores.
    """

    default_prefix = ""

    def __init__(
        self,
        measures: Sequence[str] = ("dice", "hd95"),
        empty: str = "transunet",
        collect_device: str = "gpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        # Asked once on nothing, so that a typo is found before the first volume has been predicted.
        score_masks(np.zeros(1, bool), np.zeros(1, bool), None, empty, measures)
        self.measures = tuple(measures)
        self.empty = empty
        self.rows: list[dict[str, Any]] = []

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Score volumes.

        Args:
            data_batch: Not used.
            data_samples: One dict per volume: ``prediction`` and ``label``, class numbers (D, H, W), and ``meta`` with
                ``case`` and ``spacing`` (three numbers in mm, or None).
        """
        classes = self.dataset_meta["classes"]
        for sample in data_samples:
            meta = sample["meta"]
            scores = score_volume(
                np.asarray(sample["prediction"]),
                np.asarray(sample["label"]),
                len(classes),
                meta.get("spacing"),
                self.empty,
                self.measures,
            )
            self.results.append({"case": meta["case"], "scores": dict(zip(classes[1:], scores, strict=True))})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Return ``{"dice/mean": per cent, "dice/liver": ..., "hd95/mean": voxels, ...}``."""
        self.rows = results
        metrics: dict[str, float] = {}
        for name, (columns, means) in self.summary().items():
            metrics[f"{name}/mean"] = _mean(means)
            metrics |= {f"{name}/{column}": mean for column, mean in zip(columns, means, strict=True)}
        return metrics

    def summary(self) -> dict[str, tuple[list[str], list[float]]]:
        """Return per measure the class names and their means over the cases of the latest evaluation."""
        if not self.rows:
            return {}
        classes = list(self.rows[0]["scores"])
        # A measure in mm is only meaningful when every case has it.
        names = [n for n in self.rows[0]["scores"][classes[0]] if all(n in r["scores"][classes[0]] for r in self.rows)]
        return {
            name: (classes, [_mean([_scaled(name, row["scores"][c][name]) for row in self.rows]) for c in classes])
            for name in names
        }

    def table(self) -> list[list[str]]:
        """Return the latest evaluation as a table: a header, one row per measure and case, and their means."""
        summary = self.summary()
        if not summary:
            return []
        classes = next(iter(summary.values()))[0]
        lines = [["measure", "case", "mean", *classes]]
        for name, (_, means) in summary.items():
            for row in self.rows:
                values = [_scaled(name, row["scores"][c][name]) for c in classes]
                lines.append([_unit(name), row["case"], *(_cell(v) for v in (_mean(values), *values))])
            lines.append([_unit(name), "mean", *(_cell(v) for v in (_mean(means), *means))])
        return lines


def _scaled(name: str, value: float) -> float:
    return 100 * value if name in ("dice", "jaccard") else value


def _unit(name: str) -> str:
    if name in ("dice", "jaccard"):
        return f"{name} (%)"
    return f"{name.removesuffix('_mm')} ({'mm' if name.endswith('_mm') else 'voxels'})"


def _cell(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


@METRICS.register_module()
class PooledMetric(BaseMetric):
    """Scores of one foreground class with the pixels of all images in one table, VM-UNet's protocol on ISIC.

    ``iou`` is TP / (TP + FP + FN) of the foreground, which the papers call mIoU; ``dice`` its F1. All in per
    cent.

    Args:
        collect_device: See mmengine's BaseMetric.
        prefix: See mmengine's BaseMetric.
    """

    default_prefix = ""

    def __init__(self, collect_device: str = "gpu", prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of each image.

        Args:
            data_batch: Not used.
            data_samples: One dict per image: ``prediction`` and ``label``, 0 or 1, of the same shape.
        """
        for sample in data_samples:
            prediction, truth = (np.asarray(sample[key]).astype(bool) for key in ("prediction", "label"))
            table = np.bincount((2 * truth + prediction).ravel(), minlength=4)
            self.results.append(table.tolist())

    def compute_metrics(self, results: list[list[int]]) -> dict[str, float]:
        """Return ``iou``, ``dice``, ``accuracy``, ``specificity``, ``sensitivity``; NaN where nothing was counted."""
        tn, fp, fn, tp = np.sum(results, axis=0).tolist()
        shares = {
            "iou": (tp, tp + fp + fn),
            "dice": (2 * tp, 2 * tp + fp + fn),
            "accuracy": (tp + tn, tp + tn + fp + fn),
            "specificity": (tn, tn + fp),
            "sensitivity": (tp, tp + fn),
        }
        return {name: 100 * part / whole if whole else float("nan") for name, (part, whole) in shares.items()}
