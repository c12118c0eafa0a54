"""Data sets of medical images: Synapse multi-organ CT, ACDC, ISIC skin lesions, and folders of NIfTI volumes.

A data set gives either slices, ``dict(image=(C, H, W) float32, label=(H, W) int64, meta=dict(case=str))``, to train on,
or whole volumes, ``dict(image=(D, H, W) float32, label=(D, H, W) uint8, meta=dict(case=str, spacing=...))``, to
evaluate with :class:`~vssm.medical.inference.VolumeTestLoop`, or to train and evaluate networks of volumes with, see
:mod:`vssm.medical.patches` and :mod:`vssm.medical.windows`. ``spacing`` is the size of a voxel in mm along (D, H, W),
or None where the files do not say it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .._errors import DataError
from ..engine.config import ConfigError
from ..engine.images import open_image
from .dataset import Item, MedicalDataset, Read, check_choice, check_classes, list_collate
from .files import all_or_none, read_arrays, stem
from .labels import (
    ACDC_CLASSES,
    LABEL_ORDERS,
    SYNAPSE_CLASSES,
    check_label_map,
    check_label_order,
    detect_label_order,
    load_split,
    remap,
)
from .listing import by_name, find_root, list_files, pair_files, read_list, require_all
from .masks import read_mask
from .nifti_data import NiftiFolder, read_nifti_pair
from .transforms import SkinTransform

__all__ = [
    "ACDC",
    "CT_WINDOW",
    "ISIC",
    "PROTOCOLS",
    "Item",
    "MedicalDataset",
    "NiftiFolder",
    "Synapse",
    "list_collate",
    "read_nifti_pair",
]

# Hounsfield units that become 0 and 1 in TransUNet's preprocessing.
CT_WINDOW = (-125.0, 275.0)
PROTOCOLS = ("validation", "published")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def _read_arrays(path: Path, mapping: Mapping[int, int], ndim: int) -> Read:
    image, label = read_arrays(path)
    if image.ndim != ndim:
        wanted = "a slice (H, W)" if ndim == 2 else "a volume (D, H, W)"
        raise DataError(f"'{path}' has the shape {image.shape}, but {wanted} is needed.")
    return image, remap(label, mapping, str(path)), None


def _read_stack(paths: Sequence[Path], mapping: Mapping[int, int]) -> Read:
    slices = [_read_arrays(path, mapping, 2) for path in paths]
    shapes = {image.shape for image, _, _ in slices}
    if len(shapes) > 1:
        raise DataError(f"The slices of one volume, '{paths[0]}' and so on, have different shapes: {sorted(shapes)}.")
    return np.stack([image for image, _, _ in slices]), np.stack([label for _, label, _ in slices]), None


def _stacks(paths: Sequence[Path], mapping: Mapping[int, int]) -> list[Item]:
    """Volumes of slices whose names end in the slice's number."""
    cases: dict[str, list[tuple[int, Path]]] = {}
    for path in paths:
        match = re.fullmatch(r"(.*?)_?(?:slice)?_?(\d+)", stem(path))
        if match is None:
            raise DataError(f"The name of '{path}' does not end in the number of a slice.")
        cases.setdefault(match[1], []).append((int(match[2]), path))
    stacks = {case: [path for _, path in sorted(numbered)] for case, numbered in cases.items()}
    return [Item(case, partial(_read_stack, files, mapping)) for case, files in stacks.items()]


def _slices(paths: Sequence[Path], mapping: Mapping[int, int]) -> list[Item]:
    return [Item(stem(path), partial(_read_arrays, path, mapping, 2)) for path in paths]


def _volumes(paths: Sequence[Path], mapping: Mapping[int, int]) -> list[Item]:
    return [Item(stem(path), partial(_read_arrays, path, mapping, 3)) for path in paths]


@DATASETS.register_module()
class Synapse(MedicalDataset):
    """Synapse multi-organ CT in TransUNet's files, or other data in that layout.

    ``root`` holds slices ``train_npz/caseXXXX_sliceYYY.npz`` (or ``train_slice/``) and volumes
    ``test_vol_h5/caseXXXX.npy.h5`` (or ``test_vol/``), both with ``image`` and ``label``. Which there are is read from
    ``train.txt`` and ``test_vol.txt`` in ``lists/lists_Synapse``, ``lists`` or ``root``; without these files
    TransUNet's split (18 cases with 2211 slices, and 12 cases) is expected.

    There is no published validation split, and the published figures are of the checkpoint that was best on the test
    volumes. ``protocol="validation"`` (the default) keeps three of the 18 cases to choose by; ``"published"`` trains on
    all 18 and gives the test volumes for ``split="val"``.

    Args:
        root: The folder. None: the environment variable VSSM_SYNAPSE, else ``data/synapse``.
        split: ``"train"`` for slices, ``"val"`` or ``"test"`` for volumes.
        transform: Arguments of :class:`~vssm.medical.transforms.SliceTransform`, for slices.
        protocol: ``"validation"`` or ``"published"``.
        volumes: Volumes for ``split="train"``, too.
        label_order: Two orders of the same organs circulate under the same file names: ``"transunet"`` (1 is the aorta)
            and ``"btcv8"`` (1 is the spleen); ``"btcv"`` are the challenge's 13 organs. ``"auto"`` tells them by the
            organs' sizes, or asks. Whatever it is, the data set gives TransUNet's order.
        classes: Names of the classes of other data in this layout; ``label_order`` is then not used.
        validation: Cases to choose by, in place of the three.
        label_map: Class of each number in the files of other data; None: the numbers are the classes.

    Raises:
        ConfigError: An option is none of its values.
        DataError: A folder, or a file that a list names, is missing.
        LabelOrderError: The label order cannot be determined.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "train",
        transform: Mapping[str, Any] | None = None,
        protocol: str = "validation",
        label_order: str = "auto",
        classes: Sequence[str] | None = None,
        validation: Sequence[str] | None = None,
        label_map: Mapping[int, int] | None = None,
        volumes: bool = False,
    ):
        check_choice("split", split, ("train", "val", "test"))
        check_choice("protocol", protocol, PROTOCOLS)
        check_label_order(label_order)
        classes = None if classes is None else check_classes(classes)
        if label_map and classes is None:
            raise ConfigError("dataset.label_map is for other data: name its classes with dataset.classes.")
        folder = find_root(root, "VSSM_SYNAPSE", "data/synapse")
        places = ("lists/lists_Synapse", "lists", ".")
        as_slices = split == "train" or (split == "val" and protocol == "validation")
        published = load_split("synapse")
        if as_slices:
            names = read_list(folder, places, "train.txt")
            if names is None:
                counts = published["train_slices"]
                names = [f"case{case}_slice{n:03d}" for case, count in counts.items() for n in range(count)]
            if protocol == "validation":
                held_out = set(validation or [f"case{case}" for case in published["validation"]])
                absent = held_out - {name.rpartition("_slice")[0] for name in names}
                if absent:
                    raise ConfigError(
                        f"The validation case '{min(absent)}' is not among the training cases of '{folder}'; name "
                        "others with dataset.validation, or choose dataset.protocol='published'."
                    )
                names = [name for name in names if (name.rpartition("_slice")[0] in held_out) == (split == "val")]
            place = _either(folder, "train_npz", "train_slice")
            paths = [place / f"{name}.npz" for name in names]
        else:
            names = read_list(folder, places, "test_vol.txt")
            if names is None:
                names = [f"case{case}" for case in published["test"]]
            place = _either(folder, "test_vol_h5", "test_vol")
            paths = [place / f"{name}.npy.h5" for name in names]
        require_all(paths, f"the {'training' if as_slices else 'test'} list of '{folder}'")

        if classes is None:
            if label_order == "auto":
                label_order = detect_label_order(_count_labels(paths), str(folder))
            mapping = LABEL_ORDERS[label_order]
        else:
            mapping = check_label_map(label_map, len(classes))
        slices = split == "train" and not volumes
        kind = _slices if slices else _stacks if as_slices else _volumes
        super().__init__(
            kind(paths, mapping),
            classes or SYNAPSE_CLASSES,
            self.transform_from({"transform": transform}) if slices else None,
        )

    @classmethod
    def nifti_options(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """See MedicalDataset: CT is clipped and scaled, other data in this layout stays as it is."""
        return {"axis": 2, "window": None if cfg.get("classes") else CT_WINDOW}


def _either(root: Path, usual: str, other: str) -> Path:
    return root / (other if (root / other).is_dir() and not (root / usual).is_dir() else usual)


def _count_labels(paths: Sequence[Path]) -> np.ndarray:
    """Voxels of each label in a sample of files: 96 slices, or four volumes, spread over all of them."""
    most = 96 if paths[0].suffix == ".npz" else 4
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, most).astype(int))]
    counts = np.zeros(256, dtype=np.int64)
    for _, label in all_or_none(read_arrays, chosen):
        if label.min() < 0 or label.max() > 255:
            continue  # the data set says which file it is when it is read
        counts += np.bincount(label.astype(np.uint8).ravel(), minlength=256)
    return counts


@DATASETS.register_module()
class ACDC(MedicalDataset):
    """ACDC cardiac MRI in MT-UNet's layout, as NumPy archives or HDF5 files.

    ``root`` holds ``train/case_001_sliceED_0.npz`` and so on, ``valid/`` (slices) and ``test/case_002_volume_ED.npz``
    (volumes), each with ``img`` (or ``image``) and ``label``; ``.h5`` files work alike. Which there are is read from
    ``train.txt``, ``valid.txt`` and ``test.txt`` in ``lists_ACDC``, ``lists`` or ``root``; without these files each
    folder's patients have to be those of MT-UNet's split (70, 10 and 20 patients).

    Args:
        root: The folder. None: the environment variable VSSM_ACDC, else ``data/acdc``.
        split: ``"train"`` for slices, ``"val"`` or ``"test"`` for volumes.
        transform: Arguments of :class:`~vssm.medical.transforms.SliceTransform`, for slices.
        protocol: ``"validation"`` (the default) chooses by the split made for it; ``"published"`` gives the test
            volumes for ``split="val"``, which is what MSVM-UNet's published figures were chosen by.
        volumes: Volumes for ``split="train"``, too.

    Raises:
        ConfigError: An option is none of its values.
        DataError: A folder or a file is missing, or a patient stands in another split's folder.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "train",
        transform: Mapping[str, Any] | None = None,
        protocol: str = "validation",
        volumes: bool = False,
    ):
        check_choice("split", split, ("train", "val", "test"))
        check_choice("protocol", protocol, PROTOCOLS)
        base = find_root(root, "VSSM_ACDC", "data/acdc")
        name = {"train": "train", "test": "test", "val": "valid" if protocol == "validation" else "test"}[split]
        folder = base / name
        listed = read_list(base, ("lists_ACDC", "lists", "."), f"{name}.txt")
        if listed is None:
            paths = list(by_name(list_files(folder, (".npz", ".h5"))).values())
            _check_patients(folder, name, paths)
        else:
            paths = [_with_suffix(folder / entry) for entry in listed]
            require_all(paths, f"the list {name}.txt of '{base}'")
        mapping = {number: number for number in range(len(ACDC_CLASSES))}
        slices = name == "train" and not volumes
        kind = _slices if slices else _volumes if name == "test" else _stacks
        super().__init__(
            kind(paths, mapping), ACDC_CLASSES, self.transform_from({"transform": transform}) if slices else None
        )

    @classmethod
    def nifti_options(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """See MedicalDataset: the files' values lie between -1 and 1."""
        return {"axis": 2, "window": "extremes"}


def _with_suffix(path: Path) -> Path:
    if path.suffix.lower() in (".npz", ".h5"):
        return path
    h5 = path.with_name(path.name + ".h5")
    return h5 if h5.is_file() else path.with_name(path.name + ".npz")


def _check_patients(folder: Path, name: str, paths: Sequence[Path]) -> None:
    split = load_split("acdc")
    split["train"] = sorted({f"{n:03d}" for n in range(1, 101)} - set(split["valid"]) - set(split["test"]))
    found = {match[1]: path for path in paths if (match := re.match(r"(?:case|patient)_?(\d{3})_", path.name))}
    strangers = sorted(set(found) - set(split[name]))
    if strangers:
        raise DataError(f"'{found[strangers[0]]}' is of a patient that is not in the {name} split.")
    absent = sorted(set(split[name]) - set(found))
    if absent:
        raise DataError(
            f"'{folder}' has no file of {len(absent)} of the {len(split[name])} patients in the {name} split: "
            f"{', '.join(absent)}."
        )


@DATASETS.register_module()
class ISIC(MedicalDataset):
    """ISIC 2017 or 2018 skin lesions in VM-UNet's layout: ``{train,val}/{images,masks}``.

    An image and its mask have the same name, or the mask's ends in ``_segmentation`` or ``_mask`` in addition. Masks
    may be stored in many ways, see :func:`~vssm.medical.masks.read_mask`. The
    authors' 7 : 3 split has two parts; its ``val`` is what the published figures are tested on and chosen by.

    Args:
        root: The folder. None: the environment variable VSSM_ISIC, else ``data/isic``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Arguments of :class:`~vssm.medical.transforms.SkinTransform`.
        protocol: ``"validation"`` (the default) keeps every tenth image of ``train`` to choose by; ``"published"``
            gives the test images for ``split="val"``.

    Raises:
        ConfigError: An option is none of its values.
        DataError: A folder is missing, or an image has no mask, or a mask no image.
    """

    transform_kind = SkinTransform

    def __init__(
        self,
        root: str | None = None,
        split: str = "train",
        transform: Mapping[str, Any] | None = None,
        protocol: str = "validation",
    ):
        check_choice("split", split, ("train", "val", "test"))
        check_choice("protocol", protocol, PROTOCOLS)
        base = find_root(root, "VSSM_ISIC", "data/isic")
        from_train = split == "train" or (split == "val" and protocol == "validation")
        folder = base / ("train" if from_train else "val")
        pairs = pair_files(folder / "images", folder / "masks", PHOTO_SUFFIXES)
        if from_train and protocol == "validation":
            if split == "val" and len(pairs) < 10:
                raise DataError(
                    f"dataset.protocol='validation' keeps every tenth image to choose by, but '{folder}' holds only "
                    f"{len(pairs)}; dataset.protocol='published' chooses by the test images."
                )
            pairs = [pair for number, pair in enumerate(pairs) if (number % 10 == 9) == (split == "val")]
        items = [Item(stem(image), partial(_read_skin, image, mask)) for image, mask in pairs]
        super().__init__(items, ("background", "lesion"), self.transform_from({"transform": transform}))


def _read_skin(image: Path, mask: Path) -> Read:
    pixels, truth = np.asarray(open_image(image)), read_mask(mask)
    if pixels.shape[:2] != truth.shape:
        raise DataError(f"The image '{image}' is {pixels.shape[:2]} pixels, but its mask '{mask}' {truth.shape}.")
    return pixels, truth, None
