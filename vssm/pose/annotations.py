"""Keypoint files in COCO's form, read and checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._errors import DataError
from .._inputs import read_json

__all__ = ["read_annotations", "read_list"]


def read_list(path: str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It is missing or no JSON.
    """
    try:
        return read_json(Path(path))
    except FileNotFoundError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}.") from error


def read_annotations(path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a keypoint file.

    Returns:
        What it holds, of the categories with keypoints alone, and the names of the keypoints, which these share.

    Raises:
        DataError: It is missing, has not the form of COCO's, or its categories have different keypoints.
    """
    data = read_list(path)
    try:
        categories = [category for category in data["categories"] if category.get("keypoints")]
        names = _shared_keypoints(path, categories)
        # Objects without keypoints (a car in a file of persons) are neither samples nor truth.
        bare = {category["id"] for category in data["categories"] if not category.get("keypoints")}
        annotations = [one for one in data["annotations"] if one["category_id"] not in bare]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"'{path}' is no file of COCO's keypoints: {error!r}.") from error
    return dict(data, categories=categories, annotations=annotations), names


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
