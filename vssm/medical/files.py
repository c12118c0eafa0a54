"""Read and write volumes, slices and masks; whatever is wrong with a file is one sentence that names it."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from .._folders import write_beside
from .._optional import require
from ..engine.images import DataError, open_image

T = TypeVar("T")
NIFTI_SUFFIXES = (".nii", ".nii.gz")


def stem(path: str | os.PathLike) -> str:
    """Return a file's name without its suffix, ``.nii.gz`` and ``.npy.h5`` counting as one."""
    name = Path(path).name
    for suffix in (".nii.gz", ".npy.h5"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return Path(name).stem


def read_arrays(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read image and label of a NumPy archive or an HDF5 file.

    Args:
        path: ``.npz`` or ``.h5`` with ``image`` (or ``img``) and ``label``.

    Returns:
        Image, float32, and label in the file's dtype, both (H, W) or (D, H, W).

    Raises:
        DataError: The file is missing, unreadable, lacks one of the two, or holds something that no image is.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"'{path}' does not exist.")
    try:
        if path.suffix == ".npz":
            # Pickled objects inside would run their code.
            with np.load(path, allow_pickle=False) as file:
                arrays = _pick(file, path)
        else:
            with require("h5py", "medical").File(path, "r") as file:
                arrays = _pick(file, path)
    except DataError:
        raise
    except Exception as error:
        # zipfile, zlib, NumPy and HDF5 raise a dozen unrelated types for damaged files.
        raise DataError(f"'{path}' cannot be read: {_first_line(error)}") from error
    image, label = arrays
    if image.dtype.kind not in "fiub" or label.dtype.kind not in "fiub":
        raise DataError(f"'{path}' holds {image.dtype} and {label.dtype}, not numbers.")
    return check_pair(image.astype(np.float32, copy=False), label, path)


def _pick(file: Mapping[str, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = next((key for key in ("image", "img") if key in file), None)
    if image is None or "label" not in file:
        raise DataError(f"'{path}' holds {sorted(file)}, but 'image' (or 'img') and 'label' are needed.")
    return np.asarray(file[image][()]), np.asarray(file["label"][()])


def read_nifti(path: str | os.PathLike) -> tuple[np.ndarray, Any]:
    """Read a NIfTI volume.

    Args:
        path: ``.nii`` or ``.nii.gz``.

    Returns:
        The volume, float32, in the file's axis order, and nibabel's image, which has the affine and the header.

    Raises:
        DataError: The file is missing, damaged, or no volume of three dimensions.
    """
    nibabel = require("nibabel", "medical")
    path = Path(path)
    if not path.is_file():
        raise DataError(f"'{path}' does not exist.")
    try:
        image = nibabel.load(path)
        volume = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise DataError(f"'{path}' cannot be read: {_first_line(error)}") from error
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3:
        raise DataError(f"'{path}' has the shape {volume.shape}, but a volume of three dimensions is needed.")
    return volume, image


def check_values(image: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Refuse an image without voxels, or with NaN or infinite ones.

    Raises:
        DataError: As above; the message names the file.
    """
    if image.size == 0:
        raise DataError(f"'{path}' is empty: its shape is {image.shape}.")
    if not np.isfinite(image).all():
        raise DataError(f"'{path}' has {int((~np.isfinite(image)).sum())} voxels that are NaN or infinite.")
    return image


def check_pair(image: np.ndarray, label: np.ndarray, path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Refuse an image and a label that do not belong together, see :func:`check_values`.

    Raises:
        DataError: Also for shapes that differ and for labels that are no integers.
    """
    check_values(image, path)
    if image.shape != label.shape:
        raise DataError(f"'{path}' has an image of the shape {image.shape} and a label of the shape {label.shape}.")
    if label.dtype.kind == "f" and not (np.isfinite(label).all() and (label == np.rint(label)).all()):
        raise DataError(f"'{path}' has labels that are not whole numbers.")
    return image, label


def open_mask(path: str | os.PathLike) -> Image.Image:
    """Read a mask as 8-bit grey.

    Raises:
        DataError: See :func:`~vssm.engine.images.open_image`.
    """
    return open_image(path).convert("L")


def write_nifti(path: str | os.PathLike, volume: np.ndarray, affine: np.ndarray, header: Any = None) -> None:
    """Write a volume atomically.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        volume: (X, Y, Z), in the dtype that the file shall have.
        affine: (4, 4), index to millimetres.
        header: A header to take units and codes from.
    """
    nibabel = require("nibabel", "medical")
    image = nibabel.Nifti1Image(volume, affine, header)
    image.set_data_dtype(volume.dtype)
    # What scaled the stored numbers of the volume that the header is from.
    image.header.set_slope_inter(1, 0)
    write_beside(path, lambda part: nibabel.save(image, part))


def write_npz(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write a NumPy archive atomically."""
    write_beside(path, lambda part: np.savez(part, **arrays))


def write_h5(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write an HDF5 file atomically."""

    def write(part: Path) -> None:
        with require("h5py", "medical").File(part, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip")

    write_beside(path, write)


def all_or_none(job: Callable[[T], Any], items: Iterable[T], workers: int = 2) -> list[Any]:
    """Do a job on many files, and report every one that is broken, not only the first.

    Args:
        job: Reads one item; raises a DataError where it is broken.
        items: The items.
        workers: How many threads read.

    Returns:
        The job's results, in order.

    Raises:
        DataError: At least one item is broken; the message has a sentence for each.
    """

    def attempt(item: T) -> tuple[Any, str | None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return job(item), None
        except DataError as error:
            return None, str(error)

    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(attempt, items))
    errors = [error for _, error in outcomes if error]
    if len(errors) == 1:
        raise DataError(errors[0])
    if errors:
        raise DataError(f"{len(errors)} files cannot be used. " + " ".join(errors))
    return [result for result, _ in outcomes]


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].rstrip(".")
    return f"{text or type(error).__name__}."
