"""Check local copies of COCO and of sets of label maps, and report all problems at once."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import DataError
from .._inputs import decode_image, is_box, is_number, read_json
from .._progress import Progress, quietly
from .label_maps import MapLayout

# Images for training and for validation.
COCO_COUNTS = (118287, 5000)
# COCO's own boxes pass their image's edge by fractions of a pixel.
_BOX_TOLERANCE = 2.0


class _Findings:
    """Problems of one kind are one sentence, however many there are: a count and the first few."""

    def __init__(self):
        self.sentences: list[str] = []
        self._kinds: dict[str, list[str]] = {}

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def note(self, kind: str, example: str) -> None:
        """Count one more problem of a kind; ``kind`` ends the sentence "N ... : example, example"."""
        self._kinds.setdefault(kind, []).append(example)

    def all(self) -> list[str]:
        return self.sentences + [
            f"{kind} ({len(examples)}): {', '.join(examples[:3])}{', ...' if len(examples) > 3 else ''}."
            for kind, examples in self._kinds.items()
        ]


def check_coco(
    path: str | os.PathLike,
    counts: Sequence[int] = COCO_COUNTS,
    sample: int = 200,
    progress: Progress = quietly,
) -> list[str]:
    """Check a copy of COCO 2017's instances, or of a set in its layout.

    Args:
        path: Folder with ``annotations/instances_{train,val}2017.json``, ``train2017`` and ``val2017``.
        counts: How many images there should be for training and validation.
        sample: How many images of each part to open.
        progress: Wraps the sequences that take a while, with a title.

    Returns:
        One sentence for each kind of problem; none if all is well.
    """
    path = Path(path).expanduser()
    found = _Findings()
    categories: dict[str, dict[int, str]] = {}
    for split, count in zip(("train", "val"), counts, strict=True):
        folder = path / f"{split}2017"
        files = _listing(folder, ".jpg", count, found)
        file = path / "annotations" / f"instances_{split}2017.json"
        instances = _read_instances(file, found)
        if instances is None:
            continue
        images = _unique(instances["images"], "image", file, found)
        if len(images) != count:
            found.add(f"'{file}' lists {len(images)} images, {count} are expected.")
        for number, image in images.items():
            if not _is_name(image.get("file_name")):
                found.note(f"'{file}' lists images whose file_name is no text", str(number))
            elif files is not None and image["file_name"] not in files:
                found.note(f"'{file}' lists images that '{folder}' lacks", image["file_name"])
            if not all(_is_size(image.get(side)) for side in ("width", "height")):
                found.note(f"'{file}' lists images whose width or height is no number of pixels", str(number))
        kinds = _unique(instances["categories"], "category", file, found)
        for number, kind in kinds.items():
            if not _is_name(kind.get("name")):
                found.note(f"'{file}' lists categories whose name is no text", str(number))
        categories[split] = {number: str(kind.get("name", "")) for number, kind in kinds.items()}
        annotations = _unique(instances["annotations"], "annotation", file, found)
        for number, annotation in annotations.items():
            _check_annotation(number, annotation, images, categories[split], file, found)
        if files is not None:
            there = [im for im in images.values() if _is_name(im.get("file_name")) and im["file_name"] in files]
            for image in progress(_spread(there, sample), split):
                size = _open(folder / image["file_name"], found)
                given = image.get("width"), image.get("height")
                if size and size != given and all(map(_is_size, given)):
                    found.note(f"Images in '{folder}' do not have the size that '{file}' gives", image["file_name"])
    if len(categories) == 2 and categories["train"] != categories["val"]:
        found.add("The categories for training and for validation differ.")
    if tuple(counts) == COCO_COUNTS and categories and len(next(iter(categories.values()))) != 80:
        found.add(f"COCO has 80 categories, not {len(next(iter(categories.values())))}.")
    return found.all()


def _read_instances(file: Path, found: _Findings) -> dict[str, list[dict]] | None:
    try:
        instances = read_json(file)
    except FileNotFoundError:
        found.add(f"'{file}' does not exist.")
        return None
    except DataError as error:
        found.add(str(error))
        return None
    keys = ("images", "annotations", "categories")
    if not isinstance(instances, dict) or not all(isinstance(instances.get(key), list) for key in keys):
        found.add(f"'{file}' lacks a list of {', of '.join(keys)}.")
        return None
    return instances


def _unique(entries: Sequence[Mapping[str, Any]], what: str, file: Path, found: _Findings) -> dict[int, dict]:
    by_id = {}
    for entry in entries:
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            found.note(f"'{file}' has entries without an id", what)
        elif number in by_id:
            found.note(f"'{file}' gives the same {what} id twice", str(number))
        else:
            by_id[number] = entry
    return by_id


def _check_annotation(
    number: int,
    annotation: Mapping[str, Any],
    images: Mapping[int, Mapping],
    categories: Mapping[int, str],
    file: Path,
    found: _Findings,
) -> None:
    def note(what: str) -> None:
        found.note(f"'{file}' has annotations {what}", str(number))

    category, number_of_image = annotation.get("category_id"), annotation.get("image_id")
    if not isinstance(category, int) or category not in categories:
        note("of a category that it does not list")
    image = images.get(number_of_image) if isinstance(number_of_image, int) else None
    if image is None:
        note("of an image that it does not list")
        return
    width, height = image.get("width"), image.get("height")
    if not _is_size(width) or not _is_size(height):
        return  # said of the image
    box = annotation.get("bbox")
    if not is_box(box):
        note("without a box of four numbers")
    else:
        x, y, w, h = box
        inside = x >= -_BOX_TOLERANCE and x + w <= width + _BOX_TOLERANCE
        inside = inside and y >= -_BOX_TOLERANCE and y + h <= height + _BOX_TOLERANCE
        if w < 0 or h < 0 or not inside:
            note("whose box does not lie in the image")
    area = annotation.get("area")
    if not is_number(area) or not 0 <= area <= width * height:
        note("whose area is none, or larger than the image")
    if annotation.get("iscrowd") not in (0, 1):
        note("whose iscrowd is neither 0 nor 1")
    if not _is_mask(annotation.get("segmentation"), height, width):
        note("whose segmentation is neither polygons nor a run-length encoding of the image's size")
    elif annotation.get("iscrowd") == 1 and isinstance(annotation["segmentation"], list):
        note("of a crowd that are no run-length encoding")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_mask(mask: Any, height: int, width: int) -> bool:
    if isinstance(mask, list):
        return bool(mask) and all(
            isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and all(map(is_number, p)) for p in mask
        )
    if not isinstance(mask, dict) or mask.get("size") != [height, width]:
        return False
    counts = mask.get("counts")
    if isinstance(counts, str):
        return bool(counts)
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    return whole and sum(counts) == height * width


def check_maps(
    path: str | os.PathLike,
    layout: MapLayout,
    counts: Sequence[int] | None = None,
    sample: int = 200,
    progress: Progress = quietly,
) -> list[str]:
    """Check a copy of a data set of label maps, or of one in its layout.

    Args:
        path: The data set's folder.
        layout: Where its files lie.
        counts: How many images there should be for training and validation; None: as many as published.
        sample: How many images and label maps of each part to open.
        progress: Wraps the sequences that take a while, with a title.

    Returns:
        One sentence for each kind of problem; none if all is well.
    """
    path = Path(path).expanduser()
    found = _Findings()
    ends = layout.image_suffix, layout.map_suffix
    for (split, folders), count in zip(layout.splits.items(), counts or layout.counts, strict=True):
        folders = [path / folder for folder in folders]
        listings = [_listing(*where, count, found, layout.deep) for where in zip(folders, ends, strict=True)]
        if layout.command and listings[1] == set():
            found.add(f"`{layout.command}` makes the label maps in '{folders[1]}'.")
        if None in listings:
            continue
        images, maps = ({n.removesuffix(end) for n in names} for names, end in zip(listings, ends, strict=True))
        for name in sorted(images - maps):
            found.note(f"Images in '{folders[0]}' have no label map in '{folders[1]}'", name + ends[0])
        for name in sorted(maps - images):
            found.note(f"Label maps in '{folders[1]}' have no image in '{folders[0]}'", name + ends[1])
        seen: Counter[int] = Counter()
        for name in progress(_spread(sorted(images & maps), sample), split):
            size = _open(folders[0] / (name + ends[0]), found)
            labels = _open_labels(folders[1] / (name + ends[1]), found)
            if labels is None:
                continue
            name += ends[1]
            if size and size != labels.shape[::-1]:
                found.note(f"Label maps in '{folders[1]}' are not as large as their images", name)
            values = np.unique(labels)
            seen.update(values.tolist())
            high = values[(values > layout.highest) & (values != layout.unlabelled)]
            if len(high):
                found.note(f"Label maps in '{folders[1]}' have values above {layout.highest}", f"{high[-1]} in {name}")
        if set(seen) == {layout.unlabelled}:
            found.add(f"The label maps opened in '{folders[1]}' are all unlabelled.")
    return found.all()


def _listing(folder: Path, suffix: str, count: int, found: _Findings, deep: bool = False) -> set[str] | None:
    if not folder.is_dir():
        found.add(f"The folder '{folder}' does not exist.")
        return None
    files = folder.glob("*/*" if deep else "*")
    names = {path.relative_to(folder).as_posix() for path in files if path.name.endswith(suffix)}
    if len(names) != count:
        found.add(f"'{folder}' holds {len(names)} {suffix} files, {count} are expected.")
    return names


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the items, evenly spread from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _open(path: Path, found: _Findings) -> tuple[int, int] | None:
    """Decode an image completely and return its (width, height), as it is stored."""
    try:
        return decode_image(path, turn=False).size
    except DataError:
        found.note(f"Images in '{path.parent}' cannot be read", path.name)
        return None


def _open_labels(path: Path, found: _Findings) -> np.ndarray | None:
    try:
        labels = np.asarray(decode_image(path, turn=False))
    except DataError:
        found.note(f"Label maps in '{path.parent}' cannot be read", path.name)
        return None
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        found.note(f"Label maps in '{path.parent}' are no single-channel images of whole numbers", path.name)
        return None
    return labels
