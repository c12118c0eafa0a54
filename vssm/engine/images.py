"""Find image files and read them."""

import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from .._errors import DataError
from .._inputs import list_files, picture_suffixes, read_rgb

__all__ = ["DataError", "find_images", "open_image"]


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file completely.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        The image in RGB.

    Raises:
        DataError: The file is missing, no ordinary file, truncated, no image, or has too many pixels.
    """
    return read_rgb(path)


def find_images(paths: Iterable[str | os.PathLike]) -> list[str]:
    """List image files; what a folder holds besides is counted in the log.

    Args:
        paths: Files, taken as they are, and folders, searched through for files with an image's suffix in either case.
            Names that begin with a dot are no images there.

    Returns:
        The files, those of each folder in sorted order.

    Raises:
        DataError: A folder holds no image, or cannot be looked into.
    """
    files: list[str] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(str(path))
            continue
        found = sorted(map(str, list_files(path, picture_suffixes(), deep=True)))
        if not found:
            raise DataError(f"The folder '{path}' holds no images.")
        files += found
    return files
