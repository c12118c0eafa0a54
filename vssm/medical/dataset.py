"""What the data sets of medical images share: items that are read, and what becomes of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.registry import FUNCTIONS
from torch.utils.data import Dataset

from .._errors import DataError
from ..engine.config import ConfigError
from .transforms import SliceTransform, build_transform

__all__ = ["Item", "MedicalDataset", "Read", "check_choice", "check_classes", "list_collate", "random_generator"]

Read = tuple[np.ndarray, np.ndarray, tuple[float, float, float] | None]


@dataclass(frozen=True)
class Item:
    """One slice, image or volume of a data set.

    Attributes:
        case: Its name in tables.
        read: Gives image, label and the size of a voxel; no lambda, because data workers may have to pickle it.
    """

    case: str
    read: Callable[[], Read]


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value of an option that is none of those known.

    Raises:
        ConfigError: As above.
    """
    if value not in known:
        raise ConfigError(f"dataset.{name} is one of {tuple(known)}, not '{value}'.")


def check_classes(classes: Any) -> tuple[str, ...]:
    """Return the names of classes.

    Raises:
        ConfigError: They are one text, or no list of texts.
    """
    if isinstance(classes, str):
        raise ConfigError(
            f"dataset.classes is the text '{classes}', whose letters would be the classes; one class is written "
            f"('{classes}',), with the comma."
        )
    if not isinstance(classes, Sequence) or not classes or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"dataset.classes is a list of names, the background's first, not {classes!r}.")
    return tuple(classes)


def random_generator() -> np.random.Generator:
    """Return a generator whose seed is drawn from torch, which EpochSeedHook and torch's data workers seed."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


@FUNCTIONS.register_module()
def list_collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """Batch volumes of any size: a list for each key.

    mmengine's collate functions reach into tuples and dicts.
    """
    return {key: [sample[key] for sample in samples] for key in samples[0]}


class MedicalDataset(Dataset):
    """Items of a data set, as slices or as volumes.

    Args:
        items: Slices, or volumes.
        classes: Names of the classes, the background first.
        transform: What turns a slice and its label into tensors; None: the items are volumes and stay as they are.

    Raises:
        ConfigError: See :func:`check_classes`.
        DataError: There are no items.
    """

    transform_kind: type = SliceTransform

    def __init__(self, items: Sequence[Item], classes: Sequence[str], transform: Any = None):
        self.items = list(items)
        if not self.items:
            raise DataError(f"The data set {type(self).__name__} has no samples.")
        self.metainfo = {"classes": check_classes(classes)}
        self.transform = transform

    @classmethod
    def transform_from(cls, cfg: Mapping[str, Any]) -> Any:
        """Return the transform of a data set's config, without looking at the data.

        Raises:
            ConfigError: An option of ``cfg["transform"]`` is unknown.
        """
        return build_transform(cls.transform_kind, cfg.get("transform"))

    @classmethod
    def nifti_options(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return how NIfTI volumes become like its own: ``axis`` and ``window``, see NiftiFolder."""
        return {"axis": 2, "window": None}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Raises:
            DataError: A file cannot be read, or does not hold what it should; the message names it.
        """
        item = self.items[index]
        image, label, spacing = item.read()
        if self.transform is None:
            volume = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
            truth = torch.from_numpy(np.ascontiguousarray(label))
            return {"image": volume, "label": truth, "meta": {"case": item.case, "spacing": spacing}}
        image, label = self.transform(image, label, random_generator())
        return {"image": image, "label": label, "meta": {"case": item.case}}
