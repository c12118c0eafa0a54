"""Read masks of two classes, in whichever of the many ways they are stored."""

import os

import numpy as np
from PIL import Image
from scipy import ndimage

from .._errors import DataError
from .._inputs import decode_image

# Grey between these shares of the range is neither black nor white.
_DARK, _BRIGHT = 0.1, 0.9
_ADVICE = "store it in grey, 0 for the background and 255 for the foreground"


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Read a mask of a background and a foreground.

    Two values, one of them 0, are the two classes: 0 and 1, 0 and 255, 0 and 65535, true and false, two indices of a
    palette (its colours do not matter), black and one colour. All other masks have to be grey pictures, black and white
    but for their edges. Transparent parts are background.

    Args:
        path: An image file.

    Returns:
        (H, W), uint8, 0 to 255: the foreground is what is at least a half.

    Raises:
        DataError: The file cannot be read, see :func:`~vssm._inputs.decode_image`, or has no two such classes.
    """
    image = decode_image(path, "Mask")
    values = _indices(image, path) if image.mode == "P" else _one_channel(image, path)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"Mask '{path}' has pixels that are NaN or infinite.")
    found = np.unique(values)
    low, high = found[0], found[-1]
    if low == high and high in (0, 1) or low == 0 and len(found) == 2 and high > 0:
        return np.where(values > 0, np.uint8(255), np.uint8(0))
    whole = next((most for most in (1, 255, 65535) if high <= most), None)
    if low < 0 or whole is None or _is_label_map(grey := values / np.float32(whole), len(found)):
        raise DataError(
            f"Mask '{path}' has the values {', '.join(f'{value:g}' for value in found[:8].tolist())}"
            f"{', ...' if len(found) > 8 else ''}, which are no two classes: {_ADVICE}."
        )
    return np.rint(grey * 255).astype(np.uint8)


def _is_label_map(grey: np.ndarray, levels: int) -> bool:
    """Whether grey values, 0 to 1, are more than black, white and the blurred or compressed edges between them."""
    if grey.max() < (_BRIGHT if levels <= 16 else 0.5):
        return True
    between = (grey > _DARK) & (grey < _BRIGHT)
    # No edge has 5 x 5 pixels of the same grey.
    flat = between.any() and ndimage.maximum_filter(grey, 5) == ndimage.minimum_filter(grey, 5)
    return bool(np.any(flat & between))


def _indices(image: Image.Image, path: str | os.PathLike) -> np.ndarray:
    numbers = np.asarray(image)
    found = np.unique(numbers).tolist()
    palette = np.array(image.getpalette("RGB"), dtype=int).reshape(-1, 3)

    def is_grey(number: int, level: int) -> bool:
        return number < len(palette) and (palette[number] == level).all()

    if all(is_grey(number, number) for number in found):
        return numbers
    if len(found) > 2 or found not in ([0], [1]) and found[0] != 0:
        raise DataError(
            f"Mask '{path}' has a palette and its indices {', '.join(map(str, found[:8]))}"
            f"{', ...' if len(found) > 8 else ''}, which are no two classes: {_ADVICE}."
        )
    if is_grey(0, 255) and is_grey(found[-1] or 1, 0):
        raise DataError(
            f"Mask '{path}' has a palette whose index 0 is white and whose index {found[-1] or 1} is black, so nobody "
            f"can tell which is the background: {_ADVICE}."
        )
    return (numbers > 0).astype(np.uint8)


def _one_channel(image: Image.Image, path: str | os.PathLike) -> np.ndarray:
    if image.mode in ("1", "L") or image.mode[0] in "IF":
        return np.asarray(image).astype(np.uint8) if image.mode == "1" else np.asarray(image)
    if "A" in image.mode.upper().removeprefix("LAB"):
        pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)
        alpha = pixels[..., 3]
        colours = (pixels[..., :3] * alpha[..., None] // 255).astype(np.uint32)
        if alpha.min() < alpha.max() and not colours.any():
            raise DataError(
                f"Mask '{path}' is black and transparent, so nobody can tell which is the background: {_ADVICE}."
            )
    else:
        colours = np.asarray(image.convert("RGB")).astype(np.uint32)
    if (colours == colours[..., :1]).all():
        return colours[..., 0]
    packed = colours @ np.array([65536, 256, 1], dtype=np.uint32)
    found = np.unique(packed)
    if len(found) > 2 or found[0] != 0:
        raise DataError(f"Mask '{path}' has {len(found)} colours, not black and one other: {_ADVICE}.")
    return (packed > 0).astype(np.uint8)
