"""Data for detection and segmentation: make small real sets in COCO's and ADE20K's layouts, and check local copies.

The work of ``vssm prepare``, which parses the arguments.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._cli import say
from .._files import whole_folder
from .._optional import require
from .._progress import track
from ..engine.digit_scenes import CLASSES, Digit, Scene, Scenes
from .check_data import COCO_COUNTS, check_coco, check_maps
from .label_maps import LAYOUTS

# ADE20K numbers its 150 classes from 1; 0 is "unlabelled", which reduce_zero_label turns into the ignored label.
ADE_CLASSES = ("photograph", *CLASSES)
_UNLABELLED = 0
# A digit's pixels are those it covers by half or more; for segmentation, those it half covers are left unlabelled.
_COVERED, _RIM = 0.5, (0.2, 0.8)


def digits_coco(args: argparse.Namespace) -> None:
    """Make a data set in COCO's layout; the arguments are those of `vssm prepare`.

    Raises:
        UserError: The folder may not be written, or a number is out of range.
    """
    parts = _parts(args, heaps=0.05)
    with whole_folder(args.out, _record("digits-coco", args), args.overwrite) as folder:
        (folder / "annotations").mkdir()
        first_image = first_annotation = 1
        for split, scenes in parts.items():
            images, annotations = [], []
            target = folder / f"{split}2017"
            target.mkdir()
            for number, scene in enumerate(track(scenes, split), first_image):
                name = f"{number:012d}.jpg"
                _save_jpeg(scene.image, target / name)
                height, width = scene.image.shape[:2]
                images.append(
                    dict(
                        id=number,
                        file_name=name,
                        height=height,
                        width=width,
                        license=1,
                        date_captured="2026-01-01 00:00:00",
                        photograph=scene.photograph,
                    )
                )
                for annotation in coco_annotations(scene):
                    identity = first_annotation + len(annotations)
                    annotations.append(dict(id=identity, image_id=number, **annotation))
            first_image += len(images)
            first_annotation += len(annotations)
            instances = dict(
                info=dict(description="Handwritten digits on photographs", version="1.0", year=2026),
                licenses=[dict(id=1, name="As the images of scikit-learn and scikit-image", url="")],
                images=images,
                annotations=annotations,
                categories=[
                    dict(id=number, name=name, supercategory="digit") for number, name in enumerate(CLASSES, 1)
                ],
            )
            (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(instances))
    say(f"{args.out}: {args.train} + {args.val} images in COCO's layout, {first_annotation - 1} annotations.")


def coco_annotations(scene: Scene) -> Iterator[dict[str, Any]]:
    """Describe a scene's digits as COCO does; ``id`` and ``image_id`` are left to the caller.

    A digit's outline is a list of polygons; COCO's polygons have no holes, so one with a hole (0, 6, 8, 9) is a
    run-length encoding. A heap is one crowd.

    Args:
        scene: The scene.

    Yields:
        ``segmentation``, ``area`` (pixels), ``bbox`` (left, top, width, height), ``iscrowd``, ``category_id`` (label
        + 1), and ``scans``, the numbers of the scans in ``load_digits``, which readers of COCO pass over.
    """
    heap = [digit for digit in scene.digits if digit.crowd]
    groups: list[list[Digit]] = [[digit] for digit in scene.digits if not digit.crowd]
    for group in [*groups, *([heap] if heap else [])]:
        coverage = np.zeros(scene.image.shape[:2], dtype=np.float32)
        for digit in group:
            digit.paste(coverage)
        mask = coverage >= _COVERED
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        polygons = None if group[0].crowd else _polygons(coverage)
        yield dict(
            segmentation=polygons or run_lengths(mask),
            area=float(mask.sum()),
            bbox=[
                float(columns[0]),
                float(rows[0]),
                float(columns[-1] + 1 - columns[0]),
                float(rows[-1] + 1 - rows[0]),
            ],
            iscrowd=int(group[0].crowd),
            category_id=group[0].label + 1,
            scans=[digit.scan for digit in group],
        )


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Return COCO's uncompressed run-length encoding of a mask (H, W): columns after one another, zeros first."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    return dict(counts=np.diff([0, *edges, mask.size]).tolist(), size=list(mask.shape))


def _polygons(coverage: np.ndarray) -> list[list[float]] | None:
    """Outlines of a coverage (H, W) as flat lists x1, y1, x2, ...; None where there is a hole."""
    contours = require("skimage.measure", "data").find_contours(
        np.pad(coverage, 1), _COVERED, positive_orientation="high"
    )
    outlines = []
    for contour in contours:
        y, x = contour.T - 0.5  # one for the padding; COCO counts from a pixel's corner, not from its centre
        # Outlines run one way round, holes the other.
        if np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0:
            return None
        points = np.stack([x, y], axis=1)[:-1]
        if len(points) >= 3:
            outlines.append(np.round(points, 2).ravel().tolist())
    return outlines


def digits_ade(args: argparse.Namespace) -> None:
    """Make a data set in ADE20K's layout; the arguments are those of `vssm prepare`.

    Raises:
        UserError: The folder may not be written, or a number is out of range.
    """
    parts = _parts(args, heaps=0.0)
    record = dict(_record("digits-ade", args), classes=dict(enumerate(ADE_CLASSES, 1)))
    with whole_folder(args.out, record, args.overwrite) as folder:
        for split, scenes in parts.items():
            part = "training" if split == "train" else "validation"
            for kind in ("images", "annotations"):
                (folder / kind / part).mkdir(parents=True)
            for number, scene in enumerate(track(scenes, split), 1):
                name = f"ADE_{split}_{number:08d}"
                _save_jpeg(scene.image, folder / "images" / part / f"{name}.jpg")
                Image.fromarray(label_map(scene)).save(folder / "annotations" / part / f"{name}.png")
    say(f"{args.out}: {args.train} + {args.val} images in ADE20K's layout, {len(ADE_CLASSES)} classes.")


def label_map(scene: Scene) -> np.ndarray:
    """Return the class of each pixel as ADE20K numbers them: uint8 (H, W).

    0 is unlabelled (the blurred rim of a digit), 1 the photograph, 2 to 11 the digits 0 to 9.
    """
    labels = np.ones(scene.image.shape[:2], dtype=np.uint8)
    for digit in scene.digits:
        coverage = np.zeros(labels.shape, dtype=np.float32)
        digit.paste(coverage)
        labels[coverage > _RIM[0]] = _UNLABELLED
        labels[coverage >= _RIM[1]] = digit.label + 2
    return labels


def check(args: argparse.Namespace) -> int:
    """Print every problem of a local copy, one sentence each.

    Returns:
        0, or 1 if there are problems.
    """
    if args.layout == "coco":
        counts = args.counts or COCO_COUNTS
        problems = check_coco(args.path, counts, args.sample, progress=track)
    else:
        layout = LAYOUTS[args.layout]
        counts = args.counts or layout.counts
        problems = check_maps(args.path, layout, counts, args.sample, progress=track)
    for problem in problems:
        say(problem)
    if not problems:
        train, val = counts
        say(f"{args.path}: no problems found in {train} + {val} images.")
    return 1 if problems else 0


def _parts(args: argparse.Namespace, heaps: float) -> dict[str, Scenes]:
    return {
        split: Scenes(split, count, args.size, tuple(args.digit_size), tuple(args.digits), heaps, args.seed)
        for split, count in (("train", args.train), ("val", args.val))
    }


def _record(name: str, args: argparse.Namespace) -> dict[str, Any]:
    options = {key: getattr(args, key) for key in ("train", "val", "size", "digit_size", "digits", "seed")}
    return dict(data=name, **options)


def _save_jpeg(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path, quality=95, subsampling=0)
