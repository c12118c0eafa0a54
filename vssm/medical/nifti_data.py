"""Folders of NIfTI volumes as a data set."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .._errors import DataError
from .._inputs import list_files
from ..engine.config import ConfigError
from .dataset import Item, MedicalDataset, Read, check_choice, check_classes
from .files import NIFTI_SUFFIXES, all_or_none, check_pair, read_nifti, read_nifti_labels
from .labels import check_label_map, remap
from .listing import by_name, find_root, pair_channels
from .nifti import check_window, slice_spacing, to_slices, window_intensities

__all__ = ["NiftiFolder", "read_nifti_channels", "read_nifti_pair", "read_unlabelled"]


def read_nifti_pair(
    image_path: Path,
    label_path: Path,
    mapping: Mapping[int, int],
    axis: int = 2,
    window: Sequence[float] | str | None = None,
) -> Read:
    """Read an image and its label as slices, see :func:`~vssm.medical.nifti.to_slices`.

    Raises:
        DataError: A file cannot be read, or the two do not belong together.
    """
    (pixels,), label, spacing = _read_labelled([image_path], label_path, mapping, axis, window)
    return pixels, label, spacing


def read_nifti_channels(
    image_paths: Sequence[Path],
    label_path: Path,
    mapping: Mapping[int, int],
    axis: int = 2,
    window: Sequence[float] | str | None = None,
) -> Read:
    """Read an image of several channels and its label: (C, D, H, W) and (D, H, W); see :func:`read_nifti_pair`.

    Raises:
        DataError: A file cannot be read, or they do not belong together.
    """
    channels, label, spacing = _read_labelled(image_paths, label_path, mapping, axis, window)
    return np.stack(channels), label, spacing


def _read_labelled(
    image_paths: Sequence[Path],
    label_path: Path,
    mapping: Mapping[int, int],
    axis: int,
    window: Sequence[float] | str | None,
) -> tuple[list[np.ndarray], np.ndarray, tuple[float, float, float]]:
    """The images, their one label, and the size of a voxel."""
    images = [read_nifti(path) for path in image_paths]
    truth, labelled = read_nifti_labels(label_path)
    for path, (volume, image) in zip(image_paths, images, strict=True):
        check_pair(volume, truth, f"{path}' with '{label_path}")
        if not np.allclose(image.affine, labelled.affine, atol=1e-2):
            raise DataError(f"'{path}' and '{label_path}' have different affines, so they do not lie on each other.")
    pixels = [window_intensities(to_slices(volume, image, axis), window) for volume, image in images]
    first = images[0][1]
    return pixels, remap(to_slices(truth, first, axis), mapping, str(label_path)), slice_spacing(first, axis)


def read_unlabelled(image_path: Path, axis: int = 2, window: Sequence[float] | str | None = None) -> Read:
    """Read an image without a label, whose voxels are all of class 0; see :func:`read_nifti_pair`.

    Raises:
        DataError: The file cannot be read.
    """
    volume, image = read_nifti(image_path)
    pixels = window_intensities(to_slices(volume, image, axis), window)
    return pixels, np.zeros(pixels.shape, dtype=np.uint8), slice_spacing(image, axis)


def _slice_of(pixels: np.ndarray, label: np.ndarray, number: int) -> Read:
    return pixels[number], label[number], None


@DATASETS.register_module()
class NiftiFolder(MedicalDataset):
    """Folders of NIfTI volumes and their label volumes, paired by name: ``root/split/{images,labels}/*.nii.gz``.

    An image of several channels has a file for each, ``<case>_0000.nii.gz``, ``<case>_0001.nii.gz`` and so on, as
    nnU-Net names them; such volumes are (C, D, H, W), networks of volumes take them, and ``volumes=True`` says that one
    does. nnU-Net's own folders are read by ``split="."``, ``images="imagesTr"`` and ``labels="labelsTr"``.

    To train on slices, all volumes are read into memory once; large data sets are better turned into slices first
    (``vssm prepare synapse-nifti``).

    Args:
        root: The folder. None: the environment variable ``env``, else ``default_root``.
        split: Name of the folder in ``root``; ``"train"`` gives slices, all others volumes.
        classes: Names of the classes, the background first.
        label_map: Class of each number in the files; None: the numbers are the classes.
        ids: Names of the volumes to use, without suffix; None: all.
        axis: Across which to cut: 0 sagittal, 1 coronal, 2 axial, whatever the orientation of the files.
        window: Intensities (low, high) that become 0 and 1, ``"extremes"`` or None, see
            :func:`~vssm.medical.nifti.window_intensities`.
        transform: Arguments of :class:`~vssm.medical.transforms.SliceTransform`, for slices.
        images: Name of the images' folder.
        labels: Name of the labels' folder; None: there are none, as pre-training needs none, and all is of class 0.
            Each file is then a volume of one channel.
        env: Environment variable that holds the root where the config does not say it.
        default_root: The root where neither says it.
        volumes: Volumes for ``split="train"``, too; needed for several channels.

    Raises:
        ConfigError: An option is none of its values, or volumes of several channels are there without ``volumes``.
        DataError: A folder, one of a pair, a channel, or a volume in ``ids`` is missing; to train on slices also
            whatever is wrong inside a file.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "train",
        classes: Sequence[str] = ("background", "foreground"),
        label_map: Mapping[int, int] | None = None,
        ids: Sequence[str] | None = None,
        axis: int = 2,
        window: Sequence[float] | str | None = None,
        transform: Mapping[str, Any] | None = None,
        images: str = "images",
        labels: str | None = "labels",
        env: str = "VSSM_NIFTI",
        default_root: str = "data/nifti",
        volumes: bool = False,
    ):
        check_choice("axis", axis, (0, 1, 2))
        check_window(window)
        # Before volumes are read by them.
        classes = check_classes(classes)
        folder = find_root(root, env, default_root) / split
        if labels is None:
            files = by_name(list_files(folder / images, NIFTI_SUFFIXES))
            cases: dict[str, Any] = {name: ([path], None) for name, path in sorted(files.items())}
        else:
            cases = pair_channels(folder / images, folder / labels, NIFTI_SUFFIXES)
        if ids is not None:
            absent = [name for name in ids if name not in cases]
            if absent:
                raise DataError(f"'{folder / images}' lacks {len(absent)} of dataset.ids: {', '.join(absent[:5])}.")
            cases = {name: cases[name] for name in ids}
        mapping = check_label_map(label_map, len(classes))
        slices = split == "train" and not volumes
        channels = max((len(files) for files, _ in cases.values()), default=1)
        if channels > 1 and not volumes:
            raise ConfigError(
                f"'{folder / images}' holds volumes of {channels} channels, which networks of slices do not take: "
                "train a network of volumes on them (VolumePatches), with volumes=True in the data sets."
            )
        readers = {
            name: partial(read_unlabelled, files[0], axis, window)
            if label is None
            else partial(read_nifti_pair, files[0], label, mapping, axis, window)
            if channels == 1
            else partial(read_nifti_channels, files, label, mapping, axis, window)
            for name, (files, label) in cases.items()
        }
        if slices:
            stacks = all_or_none(lambda read: read(), readers.values())
            items = [
                Item(f"{name}_{number}", partial(_slice_of, pixels, label, number))
                for name, (pixels, label, _) in zip(readers, stacks, strict=True)
                for number in range(len(pixels))
            ]
        else:
            items = [Item(name, read) for name, read in readers.items()]
        super().__init__(items, classes, self.transform_from({"transform": transform}) if slices else None)

    @classmethod
    def nifti_options(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """See MedicalDataset."""
        return {"axis": cfg.get("axis", 2), "window": check_window(cfg.get("window"))}
