"""Open files that other people made: what is no ordinary file, or unfolds without bound, is refused in one sentence."""

import logging
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ._errors import DataError

# Pillow's own bound, twice the size it warns of: a picture of 13,400 x 13,400 pixels, half a gigabyte in RGB.
MOST_PIXELS = 178_956_970


_logger = logging.getLogger("vssm")
_said: set[str] = set()


def warn_once(text: str) -> None:
    """Log a line about somebody's data, if it has not been said before; inside a run it goes to the run's log."""
    if text not in _said:
        _said.add(text)
        _logger.warning(text)


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


def decode_image(path: str | os.PathLike, what: str = "Image", turn: bool = True) -> Image.Image:
    """Read an image file completely, as its pixels are stored: mode and depth are the file's.

    Args:
        path: A file in any format that Pillow reads.
        what: What it is for the message, its first letter a capital.
        turn: Turn the image as its EXIF data say.

    Returns:
        The image.

    Raises:
        DataError: The file is missing, no ordinary file, truncated, larger than ``MOST_PIXELS``, or no image.
    """
    path = require_file(path, what)
    try:
        with warnings.catch_warnings():
            # Sizes that Pillow warns of are still within the bound.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
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


def read_rgb(path: str | os.PathLike, what: str = "Image") -> Image.Image:
    """Read an image file as 8-bit RGB; deeper pixels are scaled, not clipped.

    16-bit pixels are scaled by 65535. Whole numbers of 32 bits and floats have no range that all programs agree on:
    theirs is 0 to 1 (floats), 0 to 255 or 0 to 65535, the first that holds all values, else from the lowest to the
    highest value.

    Args:
        path: A file in any format that Pillow reads.
        what: What it is for the message, its first letter a capital.

    Raises:
        DataError: See :func:`decode_image`; also for pixels that are NaN or infinite.
    """
    image = decode_image(path, what)
    if image.mode[0] not in "IF":
        return image.convert("RGB")
    pixels = np.asarray(image).astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DataError(f"{what} '{path}' has pixels that are NaN or infinite.")
    low, high = pixels.min(), pixels.max()
    if image.mode.startswith("I;16"):
        low, high = 0, 65535
    else:
        usual = [1, 255, 65535] if image.mode == "F" else [255, 65535]
        whole = next((most for most in usual if high <= most), None)
        low, high = (low, high) if low < 0 or whole is None else (0, whole)
    grey = np.rint((pixels - low) * (255 / max(high - low, 1e-12)))
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
