"""Read and write volumes and slices; whatever is wrong with a file is one sentence that names it."""

import gzip
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import numpy as np

from .._errors import DataError
from .._files import write_atomically, write_beside
from .._inputs import MOST_PIXELS, require_file
from .._optional import require
from .._progress import track

T = TypeVar("T")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
# 1024 voxels a side: 4 GB as float32.
MOST_VOXELS = 2**30
# Bytes before a volume's voxels, which nibabel keeps in memory: programs put a DICOM header there at most.
MOST_HEADER = 2**26


def stem(path: str | os.PathLike) -> str:
    """Return a file's name without its suffix, ``.nii.gz`` and ``.npy.h5`` counting as one, in either case."""
    name = Path(path).name
    for suffix in (".nii.gz", ".npy.h5"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def read_arrays(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read image and label of a NumPy archive or an HDF5 file.

    Args:
        path: ``.npz`` or ``.h5`` with ``image`` (or ``img``) and ``label``.

    Returns:
        Image, float32, and label in the file's dtype, both (H, W) or (D, H, W).

    Raises:
        DataError: The file is missing, unreadable, damaged, too large, lacks one of the two, holds something that no
            image is, or points at data outside of it.
    """
    path = require_file(path)
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as file:
                members = {name.removesuffix(".npy"): name for name in file.namelist()}
                arrays = [_read_member(file, members[key], path) for key in _keys(members, path)]
        else:
            with require("h5py", "medical").File(path, "r") as file:
                arrays = [_read_dataset(file, key, path) for key in _keys(file.keys(), path)]
    except DataError:
        raise
    except Exception as error:
        # zipfile, zlib, NumPy and HDF5 raise a dozen unrelated types for damaged files.
        raise DataError(f"'{path}' cannot be read: {_first_line(error)}") from error
    image, label = arrays
    return check_pair(image.astype(np.float32, copy=False), label, path)


def _keys(present: Collection[str], path: Path) -> tuple[str, str]:
    image = next((key for key in ("image", "img") if key in present), None)
    if image is None or "label" not in present:
        raise DataError(f"'{path}' holds {sorted(present)}, but 'image' (or 'img') and 'label' are needed.")
    return image, "label"


def _read_member(file: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    with file.open(name) as member:
        version = np.lib.format.read_magic(member)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise DataError(f"'{path}' holds '{name}' in version {version} of NumPy's format, which no image needs.")
        # NumPy reads all of a header before it looks how long it is; a number's has some hundred bytes.
        if version == (2, 0) and int.from_bytes(member.peek(4)[:4], "little") > 2**16:
            raise DataError(f"'{path}' holds '{name}' with a header that is too long.")
        shape, _, dtype = headers[version](member)
        _check_array(name, shape, dtype, path)
    with file.open(name) as member:
        # Pickled objects inside would run their code.
        array = np.lib.format.read_array(member, allow_pickle=False)
        # The checksum is compared where the member ends.
        if member.read(1):
            raise DataError(f"'{path}' is damaged: '{name}' is longer than its header says.")
    return array


def _read_dataset(file: Any, key: str, path: Path) -> np.ndarray:
    h5py = require("h5py", "medical")
    # Links of other kinds, external storage and virtual data sets can name any file of the machine.
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise DataError(f"'{path}' holds '{key}' as a link, which may point at another file: store the data itself.")
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"'{path}' holds '{key}' as a group, not as an array.")
    if dataset.external or dataset.is_virtual:
        raise DataError(f"'{path}' keeps the data of '{key}' in other files: store them in the file itself.")
    if dataset.shape is None:
        raise DataError(f"'{path}' holds nothing in '{key}'.")
    # HDF5 unfolds whole chunks, which may be larger than the data set.
    for shape in (dataset.shape, dataset.chunks or ()):
        _check_array(key, shape, dataset.dtype, path)
    return np.asarray(dataset[()])


def _check_array(name: str, shape: Sequence[int], dtype: np.dtype, path: Path) -> None:
    """Refuse what is no array of numbers or too large a one, before it is read."""
    # Texts, records, and arrays as elements, which are not part of the shape, are of any size.
    if dtype.kind not in "fiub":
        raise DataError(f"'{path}' holds {shorten(str(dtype), 80)} in '{name}', not numbers.")
    _check_size(shape, dtype, path)


def _check_size(shape: Sequence[int], dtype: np.dtype, path: Path) -> None:
    """Refuse shapes that a small compressed file may unfold to; longer numbers than doubles count by their length."""
    most = MOST_PIXELS if len(shape) == 2 else MOST_VOXELS
    if math.prod(shape) * max(dtype.itemsize, 8) > 8 * most:
        raise DataError(f"'{path}' says that its shape is {tuple(shape)}, which is more than an image may have.")


class _ShortHeader:
    """A stream whose ``read``, by which nibabel gets the header and its extensions, ends at ``MOST_HEADER`` bytes.

    It gets the voxels by ``readinto``.
    """

    def __init__(self, stream: Any, path: Path):
        self._stream, self._path, self._left = stream, path, MOST_HEADER

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes."""
        self._left -= size
        # A negative size stands for all of the stream.
        if size < 0 or self._left < 0:
            raise DataError(f"'{self._path}' has a header that is damaged, or longer than {MOST_HEADER:,} bytes.")
        return self._stream.read(size)


def read_nifti(path: str | os.PathLike) -> tuple[np.ndarray, Any]:
    """Read a NIfTI volume.

    Args:
        path: ``.nii`` or ``.nii.gz``.

    Returns:
        The volume, float32, in the file's axis order, and nibabel's image, which has the affine and the header.

    Raises:
        DataError: The file is missing, damaged, no volume of three dimensions and real numbers, or its affine does not
            say where the voxels lie.
    """
    return _load_nifti(path, np.float32)


def read_nifti_labels(path: str | os.PathLike) -> tuple[np.ndarray, Any]:
    """Read a NIfTI volume of labels, exactly.

    Programs that store labels as floats may choose a scale factor for them, so that 2 is read as 1.9922. Labels of such
    a file are whole within half of its step.

    Args:
        path: ``.nii`` or ``.nii.gz``.

    Returns:
        The labels, integers, in the file's axis order, and nibabel's image.

    Raises:
        DataError: See :func:`read_nifti`; or the values are no whole numbers.
    """
    labels, image = _load_nifti(path, None)
    if labels.dtype.kind != "f":
        return labels, image
    if not np.isfinite(labels).all():
        raise DataError(f"'{path}' has labels that are not whole numbers, but NaN or infinite.")
    step = abs(image.dataobj.slope) if image.get_data_dtype().kind in "iu" else 0.0
    whole = np.rint(labels)
    # Steps of one or more cannot round whole numbers. The rest is what float32 leaves.
    allowed = 0.5 * step if step < 1 else 0.0
    if (np.abs(labels - whole) > allowed + 1e-5 * np.maximum(np.abs(whole), 1)).any():
        raise DataError(f"'{path}' has labels that are not whole numbers.")
    if np.abs(whole).max(initial=0) > np.iinfo(np.int32).max:
        raise DataError(f"'{path}' has labels that are too large for numbers of classes.")
    return whole.astype(np.int32), image


def _load_nifti(path: str | os.PathLike, dtype: Any) -> tuple[np.ndarray, Any]:
    nibabel = require("nibabel", "medical")
    path = require_file(path)
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as stream:
            first = stream.read(4)
            stream.seek(0)
            second_version = 540 in (int.from_bytes(first, "little"), int.from_bytes(first, "big"))
            kind = nibabel.Nifti2Image if second_version else nibabel.Nifti1Image
            source = nibabel.FileHolder(fileobj=_ShortHeader(stream, path))
            image = kind.from_file_map({"image": source}, mmap=False)
            stored = image.get_data_dtype()
            if stored.kind not in "fiu":
                what = "complex numbers" if stored.kind == "c" else "colours"
                raise DataError(f"'{path}' holds {what}, not one real number for each voxel.")
            _check_size(image.shape, stored, path)
            if image.dataobj.offset > MOST_HEADER:
                raise DataError(f"'{path}' has a header that is damaged, or longer than {MOST_HEADER:,} bytes.")
            volume = np.asanyarray(image.dataobj) if dtype is None else np.asarray(image.dataobj, dtype=dtype)
            # A stream's checksum stands at its end.
            rest = sum(len(stream.read(2**20)) for _ in range(16))
            if opened is gzip.open and rest == 16 * 2**20:
                raise DataError(f"'{path}' is damaged: it is longer than its header says.")
    except DataError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read, its compressed stream is damaged: {_first_line(error)}") from error
    except Exception as error:
        raise DataError(f"'{path}' cannot be read: {_first_line(error)}") from error
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3:
        raise DataError(f"'{path}' has the shape {volume.shape}, but a volume of three dimensions is needed.")
    _check_affine(image.affine, path)
    return volume, image


def _check_affine(affine: np.ndarray, path: Path) -> None:
    if not np.isfinite(affine).all():
        raise DataError(f"'{path}' has an affine with NaN or infinite values, so nobody knows how its voxels lie.")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
        raise DataError(f"'{path}' has a singular affine, by which its voxels have no volume.")


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

    def write(part: Path) -> None:
        # nibabel would go by the temporary name. Without a time in it, the same volume gives the same file.
        compressed = Path(path).name.lower().endswith(".gz")
        with open(part, "wb") as file:
            if compressed:
                with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as stream:
                    image.to_stream(stream)
            else:
                image.to_stream(file)

    write_beside(path, write)


def write_npz(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write a NumPy archive atomically."""
    write_beside(path, lambda part: np.savez(part, **arrays))


def write_h5(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write an HDF5 file atomically."""
    # In memory first: where the disk is full, HDF5 ends the whole program as it closes the file.
    with require("h5py", "medical").File("memory", "w", driver="core", backing_store=False) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")
        file.flush()
        image = file.id.get_file_image()
    write_atomically(path, image)


def all_or_none(job: Callable[[T], Any], items: Iterable[T], workers: int = 2, title: str | None = None) -> list[Any]:
    """Do a job on many files, and report every one that is broken, not only the first.

    Args:
        job: Reads one item; raises a DataError where it is broken.
        items: The items.
        workers: How many threads read.
        title: Of the bar that shows how far it is; None: there is none.

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
        items = list(items)
        done = pool.map(attempt, items)
        outcomes = list(track(done, title, len(items)) if title else done)
    errors = [error for _, error in outcomes if error]
    if len(errors) == 1:
        raise DataError(errors[0])
    if errors:
        raise DataError(f"{len(errors)} files cannot be used. " + " ".join(errors))
    return [result for result, _ in outcomes]


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].rstrip(".")
    return f"{text or type(error).__name__}."
