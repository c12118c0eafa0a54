"""Class names, the label orders that circulate for Synapse, and the lists of cases of the published splits."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from .._errors import DataError, UserError
from ..engine.config import ConfigError

SYNAPSE_CLASSES = (
    "background",
    "aorta",
    "gallbladder",
    "left kidney",
    "right kidney",
    "liver",
    "pancreas",
    "spleen",
    "stomach",
)
ACDC_CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")

# Each order says which of SYNAPSE_CLASSES a file's number stands for; numbers that are not listed do not occur.
LABEL_ORDERS: dict[str, dict[int, int]] = {
    # TransUNet's files, which VM-UNet and MSVM-UNet use.
    "transunet": {number: number for number in range(9)},
    # The same file names and organs in the order of the original challenge, its gaps closed: spleen, right kidney,
    # left kidney, gallbladder, liver, stomach, aorta, pancreas.
    "btcv8": dict(enumerate((0, 7, 4, 3, 2, 5, 8, 1, 6))),
    # The original challenge: 13 organs; eight of them are kept.
    "btcv": dict.fromkeys(range(14), 0) | {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8},
}


class LabelOrderError(UserError):
    """Synapse's label order is unknown, or cannot be determined from the labels."""


def load_split(name: str) -> dict[str, Any]:
    """Return the list of cases of a published split, ``"synapse"`` or ``"acdc"``."""
    return json.loads((resources.files(__package__) / "splits" / f"{name}.json").read_text(encoding="utf-8"))


def check_label_order(order: str) -> None:
    """Refuse an unknown label order.

    Raises:
        LabelOrderError: ``order`` is neither ``"auto"`` nor a key of ``LABEL_ORDERS``.
    """
    if order != "auto" and order not in LABEL_ORDERS:
        raise LabelOrderError(f"label_order is 'auto' or one of {sorted(LABEL_ORDERS)}, not '{order}'.")


def detect_label_order(counts: Sequence[int] | np.ndarray, where: str) -> str:
    """Find Synapse's label order by counting the voxels of each number.

    Liver and left kidney have the same numbers in both eight-organ orders. The other six are swapped in pairs of a
    small and a large organ: the gallbladder and the right kidney, the aorta and the spleen, the pancreas and the
    stomach. All pairs have to agree.

    Args:
        counts: Voxels of each number, from 0 up, over slices of several patients.
        where: The data, for the message.

    Returns:
        A key of ``LABEL_ORDERS``.

    Raises:
        LabelOrderError: The pairs disagree, or organs are absent.
    """
    counts = np.asarray(counts)
    if len(counts) > 9 and counts[9:].any():
        return "btcv"
    votes = set()
    # Numbers of (smaller, larger) in TransUNet's order.
    for small, large in ((2, 4), (1, 7), (6, 8)):
        if len(counts) <= large or not counts[small] or not counts[large]:
            votes.add(None)
        else:
            votes.add("transunet" if counts[large] > counts[small] else "btcv8")
    if len(votes) != 1 or None in votes:
        raise LabelOrderError(
            f"The order of the labels in '{where}' cannot be told from the organs' sizes (voxels of labels 1 to 8: "
            f"{', '.join(map(str, counts[1:9]))}); choose label_order='transunet' (1 is the aorta), 'btcv8' (1 is the "
            "spleen) or 'btcv' (13 organs)."
        )
    return votes.pop()


class LabelMap(dict[int, int]):
    """Class of each number in the files of a data set that lets its config choose them, see :func:`remap`."""


def check_label_map(label_map: Mapping[int | str, int] | None, classes: int) -> LabelMap:
    """Return the class of each number in the files, as the config key ``dataset.label_map`` says it.

    Args:
        label_map: The config's; None: the numbers are the classes. Numbers may be text, which is what the keys of
            ``--cfg-options`` are.
        classes: How many there are.

    Raises:
        ConfigError: A key is no whole number, or a value no class.
    """
    if not label_map:
        return LabelMap({number: number for number in range(classes)})
    if not isinstance(label_map, Mapping):
        raise ConfigError(f"dataset.label_map gives numbers classes, such as {{0: 0, 4: 1}}; it is {label_map!r}.")
    mapping = LabelMap()
    for key, target in label_map.items():
        try:
            number = int(key)
            if not isinstance(key, str) and number != key:
                raise ValueError
        except (TypeError, ValueError) as error:
            raise ConfigError(f"dataset.label_map has the key {key!r}, which is no whole number.") from error
        if type(target) is not int or target not in range(classes):
            raise ConfigError(f"dataset.label_map maps to the class {target}, but there are {classes} classes.")
        mapping[number] = target
    return mapping


def remap(label: np.ndarray, mapping: Mapping[int, int], where: str) -> np.ndarray:
    """Renumber a label map.

    Args:
        label: Integers, or floats without a fraction, of any shape.
        mapping: New number, 0 to 255, of each number that may occur; for a :class:`LabelMap` the message names the
            config key.
        where: The file, for the message.

    Returns:
        uint8, the same shape.

    Raises:
        DataError: A number that is not in ``mapping`` occurs, or a new number is above 255.
    """
    found = np.unique(label)
    unknown = [value for value in found.tolist() if value not in mapping]
    if unknown:
        known = sorted(mapping)
        allowed = f"{known[0]} to {known[-1]}" if known == list(range(known[0], known[-1] + 1)) else str(known)
        advice = ""
        if isinstance(mapping, LabelMap):
            numbers = ", ".join(f"{value:g}" for value in found[:16].tolist()) + (", ..." if len(found) > 16 else "")
            advice = f"; say with dataset.label_map which class each of the file's numbers ({numbers}) stands for"
        raise DataError(f"'{where}' has the label {unknown[0]:g}, but the classes are {allowed}{advice}.")
    targets = np.array([mapping[int(value)] for value in found])
    if targets.max(initial=0) > 255:
        raise DataError(f"'{where}' has the class {targets.max()}, but label maps hold 0 to 255.")
    if (targets == found).all():
        return label.astype(np.uint8)
    # Not a table of numbers: labels such as 500 or 600 are common and would make it long, and -1 would wrap around.
    return targets.astype(np.uint8)[np.searchsorted(found, label)]
