"""COCO's annotations as small tools write them: what is optional is filled in, what is wrong is one sentence.

mmdet's ``CocoDataset`` and ``CocoMetric`` are replaced by those here under the same names, so that every config that
names them is checked.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import BaseDetDataset, CocoDataset, CocoPanopticDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmdet.registry import DATASETS, METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmseg.datasets import BaseSegDataset
from mmseg.models.segmentors import BaseSegmentor
from pycocotools import mask as rle
from torch import nn

from .._errors import DataError, did_you_mean
from .._inputs import is_box, is_number, read_json, warn_once
from ..engine.checks import register_check
from ..engine.config import ConfigError

# Keys without which an entry means nothing, and what their values are.
_REQUIRED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,), "width": (int, float), "height": (int, float)},
    "categories": {"id": (int, str), "name": (str,)},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": (int, str)},
}


class Annotations(COCO):
    """An annotation file, checked and filled in.

    ``area``, ``bbox``, ``iscrowd`` and ``info`` may be left out: boxes come from the segmentation, areas from the
    segmentation or else from the box, nothing is a crowd. One line of the log says what was filled in, and others which
    objects mmdet's data sets leave out.

    Args:
        annotation_file: The file; None: no annotations.

    Raises:
        DataError: The file is no JSON, or lacks what a run needs.
    """

    def __init__(self, annotation_file: str | None = None):
        super().__init__()
        if annotation_file is None:
            return
        self.path = Path(annotation_file)
        data = read_json(self.path)
        if not isinstance(data, dict):
            raise DataError(f"'{self.path}' holds no COCO annotations: it is {_shown(data)}.")
        self.dataset = data
        missing: Counter[str] = Counter(key for key in ("info", "categories", "annotations") if data.get(key) is None)
        data.setdefault("info", {})
        for part, keys in _REQUIRED.items():
            entries = data[part] = data.get(part) or []
            if not isinstance(entries, list):
                raise DataError(f"'{self.path}' holds {part} that are {_shown(entries)}, not a list.")
            for number, entry in enumerate(entries):
                self._require(entry, keys, f"{part}[{number}]")
            twice = next((n for n, count in Counter(entry["id"] for entry in entries).items() if count > 1), None)
            if twice is not None:
                raise DataError(f"'{self.path}' gives the id {twice!r} to two {part}.")
        sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
        kinds = dict.fromkeys(category["id"] for category in data["categories"])
        for number, annotation in enumerate(data["annotations"]):
            where = f"annotations[{number}]"
            self._require_listed(annotation["image_id"], sizes, where, "image", "images")
            self._require_listed(annotation["category_id"], kinds, where, "category", "categories")
            missing.update(self._fill_in(annotation, sizes[annotation["image_id"]], where))
        if missing:
            keys = ", ".join(f"{key} ({count})" if count > 1 else key for key, count in missing.items())
            warn_once(f"'{self.path}' leaves out {keys}; filled in from boxes and segmentations.")
        self._say_unused(sizes)
        if not all(type(annotation["id"]) is int and annotation["id"] > 0 for annotation in data["annotations"]):
            # pycocotools takes an object that is found for missed if its number is 0, and does not know text.
            for number, annotation in enumerate(data["annotations"], 1):
                annotation["id"] = number
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def _require(self, entry: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
        if not isinstance(entry, dict):
            raise DataError(f"'{self.path}' holds {where}, which is {_shown(entry)}, not an object.")
        for key, kinds in keys.items():
            value = entry.get(key)
            if not isinstance(value, kinds) or isinstance(value, bool):
                what = f"has a {key} that is {_shown(value)}" if key in entry else f"has no {key}"
                raise DataError(f"'{self.path}' holds {where}, which {what}.")

    def _require_listed(self, value: Any, known: Collection, where: str, what: str, whats: str) -> None:
        if value not in known:
            ids = [repr(one) for one in known]
            shown = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
            raise DataError(f"'{self.path}' holds {where} of the {what} {_shown(value)}, the {whats} are {shown}.")

    def _fill_in(self, annotation: dict[str, Any], size: tuple[float, float], where: str) -> list[str]:
        """Fill in what an annotation leaves out, and return its keys."""
        missing = [key for key in ("bbox", "area", "iscrowd") if annotation.get(key) is None]
        segmentation = annotation.get("segmentation")
        given = segmentation.get("size") if segmentation and isinstance(segmentation, dict) else [*size]
        if given != [*size]:
            raise DataError(
                f"'{self.path}' holds {where} with a mask of the size {_shown(given)} in an image of {[*size]}: these "
                "are height and width."
            )
        mask = _encode(segmentation, size) if "area" in missing or "bbox" in missing else None
        if "bbox" in missing and mask is not None:
            annotation["bbox"] = rle.toBbox(mask).tolist()
        box = annotation.get("bbox")
        if not is_box(box):
            it = "" if box is None else f": it is {_shown(box)}"
            raise DataError(f"'{self.path}' holds {where} without a box of four numbers{it}.")
        if "area" in missing:
            annotation["area"] = (float(rle.area(mask)) if mask is not None else 0) or box[2] * box[3]
        if "iscrowd" in missing:
            annotation["iscrowd"] = 0
        if not is_number(annotation["area"]):
            raise DataError(f"'{self.path}' holds {where} with an area that is {_shown(annotation['area'])}.")
        return missing

    def _say_unused(self, sizes: Mapping[Any, tuple[float, float]]) -> None:
        """Log which objects the data sets leave out, as mmdet's do without a word."""
        objects = [one for one in self.dataset["annotations"] if not one.get("ignore")]
        reasons: dict[str, list] = {}
        shapeless = []
        for one in objects:
            reason = _why_unused(one, sizes[one["image_id"]])
            if reason:
                reasons.setdefault(reason, []).append(one["id"])
            elif _is_shapeless(one.get("segmentation")):
                shapeless.append(one["id"])
        if reasons:
            count = sum(map(len, reasons.values()))
            parts = ", ".join(f"{len(ids)} with {reason} (id {ids[0]})" for reason, ids in reasons.items())
            warn_once(f"'{self.path}': {count} of {len(objects)} objects left out: {parts}; metrics count them.")
        if shapeless:
            warn_once(
                f"'{self.path}': {len(shapeless)} of {len(objects)} objects left out where masks are loaded: their "
                f"segmentation has no polygon of three points (id {shapeless[0]})."
            )

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Return the ids of categories, in the order of the names if names are given.

        mmdet passes over names that the file lacks and keeps the file's order, so that the numbers of classes stand
        for others than the config says.

        Raises:
            ConfigError: The names are one text.
            DataError: A name is not in the file, or is there twice.
        """
        if isinstance(cat_names, str):
            raise ConfigError(
                f"metainfo.classes is the text '{cat_names}', whose letters would be the classes; one class is written "
                f"('{cat_names}',), with the comma."
            )
        if not len(cat_names) or len(sup_names) or len(cat_ids):
            return super().get_cat_ids(list(cat_names), list(sup_names), list(cat_ids))
        names = [category["name"] for category in self.dataset["categories"]]
        absent = [name for name in cat_names if name not in names]
        if absent:
            raise DataError(
                f"'{self.path}' has no category {_listed(absent, 3)}{did_you_mean(absent[0], names)}: its categories "
                f"are {_listed(names, 10)}, and metainfo.classes of the data set chooses among them."
            )
        twice = next((name for name in cat_names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"'{self.path}' has two categories with the name '{twice}'.")
        left = [name for name in names if name not in cat_names]
        if left:
            warn_once(f"'{self.path}': the categories {_listed(left, 5)} are not among metainfo.classes and not used.")
        return [self.dataset["categories"][names.index(name)]["id"] for name in cat_names]


@DATASETS.register_module(name="CocoDataset", force=True)
class CheckedCocoDataset(CocoDataset):
    """mmdet's data set, see there for the arguments, on :class:`Annotations`.

    Attributes:
        unmasked: How many of its objects have no segmentation.
    """

    COCOAPI = Annotations
    unmasked = 0

    def load_data_list(self) -> list[dict]:
        """Read the annotation file.

        Raises:
            DataError: See :class:`Annotations`; or the pipeline loads masks and there are none.
        """
        data_list = super().load_data_list()
        self.unmasked = sum("mask" not in instance for image in data_list for instance in image["instances"])
        if any(getattr(step, "with_mask", False) for step in self.pipeline.transforms):
            self.require_masks("the pipeline loads masks")
        return data_list

    def require_masks(self, reason: str) -> None:
        """Refuse boxes without masks.

        Raises:
            DataError: There are some; the message gives the reason.
        """
        if self.unmasked:
            raise DataError(
                f"'{self.ann_file}' has {self.unmasked} objects without a segmentation, but {reason}: train a detector "
                "of boxes (RetinaNet, or roi_head.mask_head=None and with_mask=False), or add masks."
            )


@METRICS.register_module(name="CocoMetric", force=True)
class CheckedCocoMetric(CocoMetric):
    """mmdet's metric, see there for the arguments, on :class:`Annotations`.

    Raises:
        DataError: See :class:`Annotations`; or masks are to be measured and there are none.
    """

    def __init__(self, ann_file: str | None = None, *args: Any, backend_args: dict | None = None, **kwargs: Any):
        super().__init__(None, *args, backend_args=backend_args, **kwargs)
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=backend_args) as path:
            self._coco_api = Annotations(path)
        unmasked = sum(not annotation.get("segmentation") for annotation in self._coco_api.dataset["annotations"])
        if unmasked and "segm" in self.metrics:
            raise DataError(
                f"'{ann_file}' has {unmasked} objects without a segmentation, but the metric 'segm' measures masks: "
                "say metric='bbox', or add masks."
            )

    @property
    def dataset_meta(self) -> dict | None:
        """The data set's description of itself; its classes have to be in the annotation file."""
        return BaseMetric.dataset_meta.fget(self)

    @dataset_meta.setter
    def dataset_meta(self, meta: dict | None) -> None:
        if self._coco_api is not None and meta and meta.get("classes"):
            self._coco_api.get_cat_ids(cat_names=meta["classes"])
        BaseMetric.dataset_meta.fset(self, meta)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Measure, see mmdet."""
        self.cat_ids = None
        return super().compute_metrics(results)

    def results2json(self, *args: Any, **kwargs: Any) -> dict:
        """Write the results, see mmdet."""
        files = super().results2json(*args, **kwargs)
        # From here on mmdet expects the order of pycocotools' tables, which is that of the ids.
        self.cat_ids = sorted(self.cat_ids)
        return files


@register_check
def check_heads(model: nn.Module, dataset: Any) -> None:
    """Refuse a detector or segmentor whose heads have another number of classes than the data.

    Raises:
        ConfigError: The numbers differ; the message says which option to set.
        DataError: There is a mask head, and the data have only boxes.
    """
    detector = isinstance(model, BaseDetector) and isinstance(dataset, BaseDetDataset)
    if not detector and not (isinstance(model, BaseSegmentor) and isinstance(dataset, BaseSegDataset)):
        return
    classes = dataset.metainfo.get("classes")
    # Panoptic heads have numbers of things and stuff of their own, open vocabularies as many as a text has words.
    if not classes or isinstance(dataset, CocoPanopticDataset) or getattr(dataset, "return_classes", False):
        return
    wrong = {}
    for name, module in model.named_modules():
        number = getattr(module, "num_classes", None)
        is_head = "head" in name and "rpn" not in name and "loss" not in name
        if not is_head or type(number) is not int or isinstance(module, FusedSemanticHead):
            continue
        if number != len(classes) and not getattr(module, "class_agnostic", False):
            wrong[name] = number
    if wrong:
        heads = ", ".join(f"model.{name} {number}" for name, number in wrong.items())
        options = " ".join(f"model.{name}.num_classes={len(classes)}" for name in wrong)
        raise ConfigError(
            f"The data has {len(classes)} classes ({_listed(classes, 3)}), but {heads}: say --cfg-options {options}, "
            "or choose other classes with metainfo."
        )
    if detector and model.with_mask and isinstance(dataset, CheckedCocoDataset) and not dataset.test_mode:
        dataset.require_masks("the model has a mask head")


def _why_unused(annotation: Mapping[str, Any], size: tuple[float, float]) -> str:
    """Why mmdet's data sets leave an object out; nothing if they do not."""
    left, top, width, height = annotation["bbox"]
    if width <= 0 or height <= 0:
        return "a box of no area"
    if min(left + width, size[1]) <= max(left, 0) or min(top + height, size[0]) <= max(top, 0):
        return "a box outside of its image"
    if width < 1 or height < 1:
        return "a box narrower than a pixel"
    return "an area of 0" if annotation["area"] <= 0 else ""


def _is_shapeless(segmentation: Any) -> bool:
    """Whether a segmentation is given, but none of its polygons has three points."""
    if not isinstance(segmentation, list) or not segmentation:
        return False
    return not any(isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0 for one in segmentation)


def _encode(segmentation: Any, size: tuple[float, float]) -> Any:
    """The compressed run lengths of a segmentation, None where it is none."""
    if not segmentation:
        return None
    try:
        height, width = map(int, size)
        if isinstance(segmentation, list):
            return rle.merge(rle.frPyObjects(segmentation, height, width))
        return (
            rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation
        )
    except Exception:
        # pycocotools raises what its C code happens to raise; the box has to do.
        return None


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
