"""Open files that other people made: what is no ordinary file, or unfolds without bound, is refused in one sentence."""

import functools
import io
import json
import logging
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ._cli import printable
from ._errors import DataError

# Pillow's own bound, twice the size it warns of: a picture of 13,400 x 13,400 pixels, half a gigabyte in RGB.
MOST_PIXELS = 178_956_970

# PostScript is a program that Pillow hands to another one; of films it reads the size alone.
_NO_PICTURES = {"EPS", "MPEG"}
# What other systems and programs leave beside pictures, besides names that begin with a dot.
_LITTER = {"__MACOSX", "@eaDir"}

_logger = logging.getLogger("vssm")
_said: set[str] = set()


def warn_once(text: str) -> None:
    """Log a line about somebody's data, if it has not been said before; inside a run it goes to the run's log."""
    if text not in _said:
        _said.add(text)
        _logger.warning(printable(text))


def require_file(path: str | os.PathLike, what: str = "File") -> Path:
    """Return ``path`` if it is an ordinary file; a link to one is.

    Opening a named pipe waits until somebody writes into it, and a device may never end.

    Args:
        path: The file.
        what: What it is for the message, its first letter a capital.

    Raises:
        DataError: There is nothing, a folder, a pipe, a socket or a device, or it cannot be looked at.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{what} '{path}' does not exist.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{what} '{path}' cannot be read: {reason}.") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise DataError(f"{what} '{path}' is {kinds.get(stat.S_IFMT(mode), 'a device')}, not an ordinary file.")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It is no ordinary file, or no JSON.
        FileNotFoundError: There is none.
    """
    if path.exists():
        require_file(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except RecursionError as error:
        raise DataError(f"'{path}' cannot be read: its brackets are nested too deep.") from error
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"'{path}' cannot be read: {str(error).rstrip('.') or type(error).__name__}.") from error


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that can be reckoned with.

    Neither NaN nor infinity; nor whole numbers that floats cannot hold, sums of which overflow.
    """
    return type(value) in (int, float) and abs(value) < 2**62


def is_box(value: Any) -> bool:
    """Whether a value of a JSON file is a list of four numbers, see `is_number`."""
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(is_number, value))


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's formats whose pixels it reads by itself; of a few it knows no more than the name."""
    Image.init()

    def is_picture(kind: str) -> bool:
        factory = Image.OPEN[kind][0]
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        return kind not in _NO_PICTURES and not stub

    return tuple(filter(is_picture, Image.ID))


@functools.cache
def picture_suffixes() -> tuple[str, ...]:
    """Return the suffixes of picture files, in lower case and with the dot."""
    formats = _formats()
    return tuple(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats)


def is_litter(name: str) -> bool:
    """Return whether a file or folder is no data by its name: hidden (``._a.png``), or of another system or program."""
    return name.startswith(".") or name in _LITTER


def sort_files(folder: str | os.PathLike, suffixes: Sequence[str], deep: bool = False) -> tuple[list[str], list[str]]:
    """Look through a folder for files with given suffixes in either case.

    Litter is never taken, see :func:`is_litter`.

    Args:
        folder: Where to look.
        suffixes: In lower case, with the dot.
        deep: Look into folders inside too, litter apart; links to folders are followed.

    Returns:
        The paths of the files, and the names of all other files; without ``deep`` those of folders too, with a slash.

    Raises:
        DataError: A folder does not exist or cannot be looked into.
    """
    taken: list[str] = []
    left: list[str] = []
    endings = tuple(suffixes)

    def visit(place: str, litter: bool, above: frozenset[tuple[int, int]]) -> None:
        try:
            status = os.stat(place)
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"The folder '{place}' cannot be looked into: {error.strerror or error}.") from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            return  # a link to a folder that this one is in
        for entry in found:
            no_data = litter or is_litter(entry.name)
            if entry.is_dir() and deep:
                visit(entry.path, no_data, above | {here})
            elif not no_data and entry.name.lower().endswith(endings) and entry.is_file():
                taken.append(entry.path)
            else:
                left.append(entry.name + ("/" if entry.is_dir() else ""))

    if not os.path.isdir(folder):
        raise DataError(f"The folder '{os.fspath(folder)}' does not exist.")
    visit(os.fspath(folder), False, frozenset())
    return taken, left


def list_files(folder: str | os.PathLike, suffixes: Sequence[str], deep: bool = False, say: bool = True) -> list[Path]:
    """Return the files that :func:`sort_files` takes, sorted, and log once how many others there are.

    Args:
        folder: Where to look.
        suffixes: In lower case, with the dot.
        deep: Look into folders inside too.
        say: Log what is left.

    Raises:
        DataError: A folder does not exist or cannot be looked into.
    """
    taken, left = sort_files(folder, suffixes, deep)
    if say:
        warn_of_unused(folder, len(taken), left)
    return sorted(map(Path, taken))


def warn_of_unused(folder: str | os.PathLike, used: int, left: Sequence[str]) -> None:
    """Log once how many files of a folder are used, and which are not, if there are such."""
    if left:
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        warn_once(f"'{os.fspath(folder)}': {used} files are used, {len(left)} others are not ({names}).")


def decode_image(
    path: str | os.PathLike, what: str = "Image", turn: bool = True, data: bytes | None = None
) -> Image.Image:
    """Read an image file completely, as its pixels are stored: mode and depth are the file's.

    Args:
        path: A file in any format whose pixels Pillow reads by itself.
        what: What it is for the message, its first letter a capital.
        turn: Turn the image as its EXIF data say.
        data: The file's content where it lies inside another file; ``path`` is then its name in messages.

    Returns:
        The image.

    Raises:
        DataError: The file is missing, no ordinary file, truncated, larger than ``MOST_PIXELS``, or no image.
    """
    source = require_file(path, what) if data is None else io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            # Sizes that Pillow warns of are still within the bound.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=_formats()) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return ImageOps.exif_transpose(image) if turn else image
    except Image.DecompressionBombError as error:
        raise DataError(f"{what} '{path}' cannot be read: it has more than {MOST_PIXELS:,} pixels.") from error
    except MemoryError as error:
        raise DataError(f"{what} '{path}' cannot be read: it does not fit the memory.") from error
    except Exception as error:
        # Pillow's decoders raise a dozen unrelated types, depending on the format and on where the damage is.
        text = (str(error).splitlines() or [""])[0].rstrip(".")
        raise DataError(f"{what} '{path}' cannot be read: {text or type(error).__name__}.") from error


def read_rgb(path: str | os.PathLike, what: str = "Image", data: bytes | None = None) -> Image.Image:
    """Read an image file as 8-bit RGB; deeper pixels are scaled, not clipped.

    Deeper pixels have no range that all programs agree on: cameras and scanners store 10, 12 or 14 bits in 16, and
    floats may end at 1. The range is the first of 0 to 1 (floats) and 8, 10, 12, 14 and 16 bits that holds all values,
    else from the lowest to the highest value.

    Args:
        path: A file in any format that Pillow reads.
        what: What it is for the message, its first letter a capital.
        data: The file's content where it lies inside another file.

    Raises:
        DataError: See :func:`decode_image`; also for pixels that are NaN or infinite.
    """
    image = decode_image(path, what, data=data)
    if image.mode[0] not in "IF":
        return image.convert("RGB")
    pixels = np.asarray(image).astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DataError(f"{what} '{path}' has pixels that are NaN or infinite.")
    low, high = pixels.min(), pixels.max()
    usual = [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    whole = next((most for most in ([1, *usual] if image.mode == "F" else usual) if high <= most), None)
    low, high = (low, high) if low < 0 or whole is None else (0, whole)
    grey = np.rint((pixels - low) * (255 / max(high - low, 1e-12)))
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
