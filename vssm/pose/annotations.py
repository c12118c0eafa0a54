"""Keypoint files in COCO's form: what is optional is filled in, what is wrong is one sentence."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._errors import DataError
from .._inputs import is_box, is_number, read_json, warn_once

__all__ = ["read_annotations", "read_detections"]


def read_annotations(path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a keypoint file.

    ``area``, ``iscrowd`` and ``num_keypoints`` may be left out: areas come from the boxes, nothing is a crowd.

    Returns:
        What it holds, of the categories with keypoints alone, and the names of the keypoints, which these share.

    Raises:
        DataError: It is missing, has not the form of COCO's, or its categories have different keypoints.
    """
    data = _read(path)
    try:
        ids = {part: _ids(path, data[part], part) for part in ("images", "categories")}
        categories = [category for category in data["categories"] if category.get("keypoints")]
        names = _shared_keypoints(path, categories)
        # Objects without keypoints (a car in a file of persons) are neither samples nor truth.
        used = {category["id"] for category in categories}
        annotations, missing = [], Counter[str]()
        for number, one in enumerate(data["annotations"]):
            _require_listed(path, one, f"annotations[{number}]", ids["images"], ids["categories"])
            if one["category_id"] in used:
                missing.update(_fill_in(path, one, f"annotations[{number}]", len(names)))
                # pycocotools takes an object of the number 0 for none, and nothing else asks for numbers.
                annotations.append(dict(one, id=len(annotations) + 1))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"'{path}' is no file of COCO's keypoints: {error!r}.") from error
    if missing:
        keys = ", ".join(f"{key} ({count})" for key, count in missing.items())
        warn_once(f"'{path}' leaves out {keys}; filled in from boxes and keypoints.")
    return dict(data, categories=categories, annotations=annotations), names


def read_detections(path: str, images: Collection[int], categories: Collection[int]) -> list[dict[str, Any]]:
    """Read a file of detections in COCO's form of results.

    Args:
        path: The file.
        images: Numbers of the images there are.
        categories: Which to take.

    Raises:
        DataError: It is missing, or has not the form of COCO's results for these images.
    """
    found = _read(path)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"'{path}' holds no detections in COCO's form, which is a list of objects.")
    taken = [(number, one) for number, one in enumerate(found) if one.get("category_id") in categories]
    for number, one in taken:
        if one.get("image_id") not in images:
            raise DataError(f"'{path}' holds [{number}] of an image {one.get('image_id')!r} that is not listed.")
        if not is_box(one.get("bbox")) or not is_number(one.get("score")):
            raise DataError(f"'{path}' holds [{number}] without a bbox of four numbers or without a score.")
    return [one for _, one in taken]


def _read(path: str) -> Any:
    try:
        return read_json(Path(path))
    except FileNotFoundError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}.") from error


def _ids(path: str, entries: Sequence[Mapping[str, Any]], part: str) -> set[int]:
    ids = [entry["id"] for entry in entries]
    for number, value in enumerate(ids):
        if not is_number(value) or value != int(value):
            raise DataError(f"'{path}' holds {part}[{number}] with the id {value!r}; ids are whole numbers.")
    twice = next((value for value, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"'{path}' gives the id {twice!r} to two {part}.")
    return set(ids)


def _require_listed(path: str, one: Mapping[str, Any], where: str, images: set[int], categories: set[int]) -> None:
    for key, known in (("image_id", images), ("category_id", categories)):
        if one[key] not in known:
            ids = _listed([str(value) for value in sorted(known)])
            raise DataError(f"'{path}' holds {where} with the {key} {one[key]!r}; the ids are {ids}.")


def _fill_in(path: str, one: dict[str, Any], where: str, count: int) -> list[str]:
    """Fill in what an object leaves out, and return its keys."""
    missing = [key for key in ("area", "iscrowd", "num_keypoints") if one.get(key) is None]
    if not is_box(one.get("bbox")):
        raise DataError(f"'{path}' holds {where} without a bbox of four numbers, NaN and infinity not being such.")
    if one.get("keypoints") is None and (one.get("iscrowd") or one.get("num_keypoints") == 0):
        one["keypoints"] = [0] * (3 * count)
    values = one.get("keypoints")
    if not isinstance(values, list) or len(values) != 3 * count or not all(map(is_number, values)):
        raise DataError(f"'{path}' holds {where} without keypoints of (x, y, visible) for each of {count} names.")
    if one.get("area") is None:
        one["area"] = float(one["bbox"][2] * one["bbox"][3])
    if one.get("iscrowd") is None:
        one["iscrowd"] = 0
    if one.get("num_keypoints") is None:
        one["num_keypoints"] = sum(seen > 0 for seen in values[2::3])
    return missing


def _shared_keypoints(path: str, categories: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    if not categories:
        raise DataError(f"'{path}' is no file of COCO's keypoints: none of its categories names keypoints.")
    first = categories[0]
    other = next((one for one in categories if list(one["keypoints"]) != list(first["keypoints"])), None)
    if other is not None:
        kinds = [f"'{one.get('name', one['id'])}' has {_listed(one['keypoints'])}" for one in (first, other)]
        raise DataError(
            f"'{path}' has categories with different keypoints, {' and '.join(kinds)}: an estimator has the same for "
            "all, so give each kind a file of its own."
        )
    return tuple(first["keypoints"])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
