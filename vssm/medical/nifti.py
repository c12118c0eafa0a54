"""NIfTI volumes as stacks of slices, and back, in any orientation of the file."""

from collections.abc import Sequence
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np

from .._optional import require
from ..engine.config import ConfigError


def to_slices(volume: np.ndarray, image: Any, axis: int = 2) -> np.ndarray:
    """Cut a volume into slices that look the same whatever the orientation of its file.

    Args:
        volume: (X, Y, Z) in the file's axis order.
        image: nibabel's image, for its affine.
        axis: Across which to cut: 0 gives sagittal, 1 coronal, 2 axial slices.

    Returns:
        (D, H, W): after turning the axes to right, anterior, superior, ``axis`` first, and the other two reversed, so
        that axial slices are (anterior, right).
    """
    nibabel = require("nibabel", "medical")
    canonical = nibabel.apply_orientation(volume, nibabel.io_orientation(image.affine))
    return np.moveaxis(canonical, axis, 0).swapaxes(1, 2)


def from_slices(slices: np.ndarray, image: Any, axis: int = 2) -> np.ndarray:
    """Undo :func:`to_slices`: slices (D, H, W) to a volume (X, Y, Z) in the file's axis order."""
    orientations = require("nibabel", "medical").orientations
    canonical = np.moveaxis(slices.swapaxes(1, 2), 0, axis)
    # From right, anterior, superior to the file's own orientation.
    straight = np.array([[0, 1], [1, 1], [2, 1]])
    back = orientations.ornt_transform(straight, orientations.io_orientation(image.affine))
    return np.ascontiguousarray(orientations.apply_orientation(canonical, back))


def slice_spacing(image: Any, axis: int = 2) -> tuple[float, float, float]:
    """Size of a voxel in mm along the axes (D, H, W) of :func:`to_slices`."""
    orientation = require("nibabel", "medical").io_orientation(image.affine)
    zooms = [1.0, 1.0, 1.0]
    # From the affine, not from the header's own sizes, which may be zero or NaN where the affine is sound.
    for size, (where, _) in zip(np.linalg.norm(image.affine[:3, :3], axis=0), orientation, strict=True):
        zooms[int(where)] = float(size)
    first = zooms.pop(axis)
    return first, zooms[1], zooms[0]


def check_window(window: Any) -> Any:
    """Return the window of a config, see :func:`window_intensities`.

    Raises:
        ConfigError: It is none.
    """
    pair = isinstance(window, tuple | list) and len(window) == 2 and all(isinstance(end, Real) for end in window)
    # A reversed window would make every voxel the same.
    if window not in (None, "extremes") and not (pair and all(map(isfinite, window)) and window[0] < window[1]):
        raise ConfigError(f"dataset.window is (low, high) with low < high, 'extremes' or None, not {window!r}.")
    return window


def window_intensities(volume: np.ndarray, window: Sequence[float] | str | None) -> np.ndarray:
    """Rescale a volume.

    Args:
        volume: Any shape.
        window: (low, high): clip to these and scale to 0 to 1. ``"extremes"``: stretch the volume's own extremes to -1
            to 1. None: leave it as it is.

    Returns:
        float32, the same shape.
    """
    if window is None:
        return volume
    low, high = (float(volume.min()), float(volume.max())) if window == "extremes" else window
    scaled = (np.clip(volume, low, high) - low) / max(high - low, 1e-6)
    return (2 * scaled - 1 if window == "extremes" else scaled).astype(np.float32)
