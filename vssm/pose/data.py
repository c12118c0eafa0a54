"""Crops of persons, or of handwritten digits, with their keypoints."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize, to_tensor

from .._errors import DataError
from ..engine.config import check_options
from ..engine.images import open_image
from .annotations import read_annotations, read_detections
from .codec import HeatmapCodec, box_to_region, crop_image, crop_matrix, map_points, mirrored_order
from .digits import DIGIT_KEYPOINTS, digit_annotations

__all__ = ["CocoKeypoints", "DigitKeypoints", "to_input"]

# COCO's keypoints, which of them change places in a mirror, which are of the upper body, and how far apart annotators
# put them (https://cocodataset.org/#keypoints-eval).
COCO_PERSON = dict(
    keypoints=(
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    upper_body=tuple(range(11)),
    sigmas=(
        *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
        *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
)


@dataclass(frozen=True)
class Instance:
    """Something with keypoints in an image.

    Attributes:
        image: Number of the image.
        box: Left, top, width, height.
        points: (K, 2), in pixels of the image.
        visible: Which of them are labelled, (K,).
        score: Of the box; 1 for those of annotations.
        area: Of the box or of the mask.
        category: Number of its category.
    """

    image: int
    box: tuple[float, ...]
    points: np.ndarray
    visible: np.ndarray
    score: float = 1.0
    area: float = 0.0
    category: int = 1


def to_input(crop: Image.Image) -> Tensor:
    """An RGB crop as a tensor (3, H, W), normalised with ImageNet's mean and deviation."""
    return normalize(to_tensor(crop), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _bounded_normal() -> float:
    """A standard normal number between -1 and 1."""
    while True:
        number = torch.randn(()).item()
        if abs(number) <= 1:
            return number


class _Crops(Dataset):
    """Crops of instances; a subclass sets `instances` and `metainfo`, and has `read` and `ground_truth`."""

    instances: list[Instance]
    metainfo: dict[str, Any]

    def __init__(
        self,
        size: Sequence[int],
        stride: int,
        sigma: float,
        augment: Mapping[str, Any] | None,
    ):
        self.codec = HeatmapCodec(size, stride, sigma)
        self.augment = None if augment is None else dict(augment)
        if augment is not None:
            check_options(self.change, augment, "augment")

    def __len__(self) -> int:
        return len(self.instances)

    def read(self, image: int) -> Image.Image:
        """Read an image by its number."""
        raise NotImplementedError

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's form."""
        raise NotImplementedError

    def change(
        self,
        region: np.ndarray,
        one: Instance,
        shift: float = 0.16,
        shift_prob: float = 0.3,
        scale: tuple[float, float] = (0.5, 1.5),
        degrees: float = 80.0,
        degrees_prob: float = 0.6,
        half_body_prob: float = 0.3,
        flip_prob: float = 0.5,
    ) -> tuple[np.ndarray, float, bool]:
        """Change a region at random, as is usual for persons.

        Args:
            region: See `box_to_region`.
            one: What it shows.
            shift: By at most how much of its sides the region is moved, in a share of ``shift_prob`` of all samples.
            shift_prob: See shift.
            scale: Smallest and largest factor of the region's sides.
            degrees: By at most how much the region is turned, in a share of ``degrees_prob`` of all samples.
            degrees_prob: See degrees.
            half_body_prob: How often the region is laid around the upper or the lower half of a body with at least nine
                labelled keypoints.
            flip_prob: How often the crop is mirrored.

        Returns:
            The region, degrees, and whether to mirror.
        """
        upper = list(self.metainfo.get("upper_body", ()))
        if upper and one.visible.sum() > 8 and torch.rand(()).item() < half_body_prob:
            region = self._half_body(region, one, upper)
        if torch.rand(()).item() < shift_prob:
            moved = [region[2 + i] * shift * _bounded_normal() for i in range(2)]
            region = np.concatenate([region[:2] + moved, region[2:]])
        middle, reach = (scale[0] + scale[1]) / 2, (scale[1] - scale[0]) / 2
        factor = middle + reach * _bounded_normal()
        region = np.concatenate([region[:2], region[2:] * factor])
        turned = degrees * _bounded_normal() if torch.rand(()).item() < degrees_prob else 0.0
        return region, turned, torch.rand(()).item() < flip_prob

    def _half_body(self, region: np.ndarray, one: Instance, upper: list[int]) -> np.ndarray:
        halves = [[k for k in upper if one.visible[k]], [k for k in np.flatnonzero(one.visible) if k not in upper]]
        prefers_upper = torch.rand(()).item() < 0.7
        chosen = halves[0] if prefers_upper and len(halves[0]) > 2 else halves[1] if len(halves[1]) > 2 else halves[0]
        if len(chosen) < 2:
            return region
        low, high = one.points[chosen].min(0), one.points[chosen].max(0)
        if min(high - low) <= 0:
            return region
        return box_to_region((*low, *(high - low)), self.codec.size, 1.5)

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = self.instances[index]
        size = self.codec.size
        region, degrees, mirrored = box_to_region(one.box, size), 0.0, False
        if self.augment is not None:
            region, degrees, mirrored = self.change(region, one, **self.augment)
        matrix = crop_matrix(region, size, degrees)
        crop, points, visible = (
            crop_image(self.read(one.image), matrix, size),
            map_points(one.points, matrix),
            one.visible,
        )
        if mirrored:
            order = mirrored_order(len(visible), self.metainfo.get("flip_pairs", ()))
            crop, visible = ImageOps.mirror(crop), visible[order]
            points = points[order] * [-1, 1] + [size[1] - 1, 0]
        heatmaps, weights = self.codec.encode(points, visible)
        return dict(
            inputs=to_input(crop),
            heatmaps=heatmaps,
            weights=weights,
            region=torch.from_numpy(region),
            image_id=one.image,
            category_id=one.category,
            box_score=one.score,
            area=float(one.area),
        )


@DATASETS.register_module()
class CocoKeypoints(_Crops):
    """Persons of COCO's keypoint files, one to a sample.

    Args:
        ann_file: ``person_keypoints_*.json``; its categories name the keypoints, the same for all.
        images: Folder of the images.
        boxes: A file of detections in COCO's form of results, whose persons are taken instead of those annotated; they
            have no labels, so only to test.
        size: (H, W) of the crops.
        stride: Pixels of the crop to a pixel of the heatmap.
        sigma: Deviation of the Gaussians in pixels of the heatmaps.
        augment: Options of random changes, see `change`; None: no changes.
        flip_pairs: Keypoints that change places in a mirror. None: those of COCO's persons; others have to be named
            before anything is mirrored.
        sigmas: How exactly each keypoint can be placed, as a share of the root of the object's area. None: those of
            COCO's persons, 0.05 for other keypoints.

    Raises:
        DataError: A file is missing or has not the form of COCO's; its categories have different keypoints;
            `flip_pairs` or `sigmas` do not fit the keypoints.
    """

    def __init__(
        self,
        ann_file: str,
        images: str,
        boxes: str | None = None,
        size: Sequence[int] = (256, 192),
        stride: int = 4,
        sigma: float = 2.0,
        augment: Mapping[str, Any] | None = None,
        flip_pairs: Sequence[Sequence[int]] | None = None,
        sigmas: Sequence[float] | None = None,
    ):
        super().__init__(size, stride, sigma, augment)
        self.folder = Path(images)
        self.annotations, names = read_annotations(ann_file)
        try:
            self.files = {image["id"]: image["file_name"] for image in self.annotations["images"]}
            if boxes is None:
                self.instances = [found for one in self.annotations["annotations"] if (found := _labelled(one, names))]
            else:
                listed = {category["id"] for category in self.annotations["categories"]}
                self.instances = [_detected(one, len(names)) for one in read_detections(boxes, self.files, listed)]
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise DataError(f"'{ann_file}' is no file of COCO's keypoints: {error!r}.") from error
        self.metainfo = _facts(names, flip_pairs, sigmas)
        if "flip_pairs" not in self.metainfo and augment is not None and augment.get("flip_prob", 1) > 0:
            raise DataError(
                f"'{ann_file}' has other keypoints than COCO's persons: flip_pairs must say which change places in a "
                "mirror, () if none do, or augment=dict(flip_prob=0.0) that nothing is mirrored."
            )

    def read(self, image: int) -> Image.Image:
        """Read an image by its number.

        Raises:
            DataError: The file is missing or no image.
        """
        return open_image(self.folder / self.files[image])

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's form."""
        return self.annotations


def _facts(names: Sequence[str], flip_pairs: Sequence | None, sigmas: Sequence[float] | None) -> dict[str, Any]:
    """What is known of keypoints of these names."""
    facts = dict(COCO_PERSON) if tuple(names) == COCO_PERSON["keypoints"] else {"keypoints": tuple(names)}
    if flip_pairs is not None:
        facts["flip_pairs"] = tuple(map(tuple, flip_pairs))
        if any(len(pair) != 2 or not all(0 <= i < len(names) for i in pair) for pair in facts["flip_pairs"]):
            raise DataError(f"flip_pairs must be pairs of numbers below {len(names)}, got {flip_pairs!r}.")
    if sigmas is not None:
        if len(sigmas) != len(names) or min(sigmas) <= 0:
            raise DataError(f"sigmas must be a positive number for each of {len(names)} keypoints, got {sigmas!r}.")
        facts["sigmas"] = tuple(sigmas)
    facts.setdefault("sigmas", (0.05,) * len(names))
    return facts


def _labelled(one: Mapping[str, Any], names: Sequence[str]) -> Instance | None:
    """An annotation with labelled keypoints and a box; None for crowds and for those without."""
    if one.get("iscrowd") or not one.get("num_keypoints", 1) or min(one["bbox"][2:]) <= 0:
        return None
    values = np.array(one["keypoints"], dtype=np.float64).reshape(len(names), 3)
    if not values[:, 2].any():
        return None
    area = one.get("area") or math.prod(one["bbox"][2:])
    return Instance(one["image_id"], tuple(one["bbox"]), values[:, :2], values[:, 2] > 0, 1.0, area, one["category_id"])


def _detected(one: Mapping[str, Any], count: int) -> Instance:
    box = tuple(one["bbox"])
    nothing = np.zeros((count, 2)), np.zeros(count, dtype=bool)
    return Instance(one["image_id"], box, *nothing, float(one["score"]), math.prod(box[2:]), one["category_id"])


@DATASETS.register_module()
class DigitKeypoints(_Crops):
    """Handwritten digits on photographs, and where their strokes end and cross; see `vssm.pose.digits`.

    Args:
        split: ``"train"`` or ``"val"``, which share neither scans nor photographs.
        count: How many scenes, of several digits each.
        size: (H, W) of the crops.
        stride: Pixels of the crop to a pixel of the heatmap.
        sigma: Deviation of the Gaussians in pixels of the heatmaps.
        augment: Options of random changes, see `change`; None: no changes.
        seed: Of the scenes.
    """

    def __init__(
        self,
        split: str,
        count: int,
        size: Sequence[int] = (64, 64),
        stride: int = 4,
        sigma: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        super().__init__(size, stride, sigma, augment)
        self.images, self.annotations = digit_annotations(split, count, seed)
        self.metainfo = dict(DIGIT_KEYPOINTS)
        names = self.metainfo["keypoints"]
        self.instances = [found for one in self.annotations["annotations"] if (found := _labelled(one, names))]

    def read(self, image: int) -> Image.Image:
        """Give a scene by its number."""
        return Image.fromarray(self.images[image])

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's form."""
        return self.annotations
