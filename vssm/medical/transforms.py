"""Resizing, and the augmentation of each published recipe.

Every random transform takes the generator it draws from, so that a sample depends on the seed of the run and not on
what else has drawn random numbers. Slices are (H, W); images are float32, labels uint8.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from ..engine.config import ConfigError

Pair = tuple[np.ndarray, np.ndarray]


def resize(array: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
    """Resize a slice as the published protocols do: by SciPy's corner-aligned spline, order 3 for images, 0 for labels.

    Args:
        array: (H, W).
        size: Height and width to give it.
        order: Of the spline.

    Returns:
        (``size[0]``, ``size[1]``), the same dtype; ``array`` itself where it has that size.
    """
    if array.shape == tuple(size):
        return array
    return ndimage.zoom(array, (size[0] / array.shape[0], size[1] / array.shape[1]), order=order)


def check_side(size: Any) -> int:
    """Return the side of square slices or images.

    Raises:
        ConfigError: It is no whole number from 1.
    """
    if type(size) is not int or size < 1:
        raise ConfigError(f"The size of slices and images is a whole number from 1, their side, not {size!r}.")
    return size


def check_scaling(mean: Any, std: Any, own: bool = False) -> None:
    """Refuse a normalisation that cannot be computed.

    Args:
        mean: Subtracted.
        std: Divided by.
        own: Whether None stands for a volume's own.

    Raises:
        ConfigError: The mean is no number, or the deviation no number above 0.
    """
    none = " or None" if own else ""
    if not (own and mean is None) and not (isinstance(mean, Real) and isfinite(mean)):
        raise ConfigError(f"The mean of the normalisation is a number{none}, not {mean!r}.")
    if not (own and std is None) and not (isinstance(std, Real) and isfinite(std) and std > 0):
        raise ConfigError(f"The std of the normalisation is a number above 0{none}, not {std!r}.")


class TransUNetAugment:
    """TransUNet's augmentation, which VM-UNet uses on Synapse.

    Half of the slices are turned by a multiple of 90 degrees and then mirrored on a random axis. Half of the others are
    turned by a whole angle in [-20, 20), nearest neighbour for the image too.
    """

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Augment a slice and its label, both (H, W)."""
        if rng.random() < 0.5:
            k, axis = int(rng.integers(4)), int(rng.integers(2))
            return tuple(np.flip(np.rot90(a, k), axis) for a in (image, label))
        if rng.random() < 0.5:
            angle = int(rng.integers(-20, 20))
            return tuple(ndimage.rotate(a, angle, order=0, reshape=False) for a in (image, label))
        return image, label


class MSVMUNetAugment:
    """MSVM-UNet's augmentation: none to four operations of a list of ten, in random order.

    The official code draws them with a library that does not run with NumPy 2. The list and its ranges are the same:
    mirroring (each with probability 0.5), additive noise of 0.005 x 255, blur of sigma 1, contrast 0.5 to 1.5 (about 0,
    the centre of a float image's range there), zoom 0.5 to 2 per axis, rotation by up to 40 degrees, shear by up to 16
    degrees, displacement of a 4 x 4 grid by 0.008 to 0.03 of the side, shift by up to 20 %. Images are interpolated
    linearly, labels by nearest neighbour; outside of both is 0.
    """

    def __init__(self, most: int = 4):
        self.most = most

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """Augment a slice and its label, both (H, W)."""
        count = int(rng.integers(self.most + 1))
        for number in rng.permutation(len(MSVM_UNET_OPERATIONS))[:count]:
            image, label = MSVM_UNET_OPERATIONS[number](image, label, rng)
        return image, label


def _mirror(image: np.ndarray, label: np.ndarray, axis: int, rng: np.random.Generator) -> Pair:
    return (np.flip(image, axis), np.flip(label, axis)) if rng.random() < 0.5 else (image, label)


def _rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s], [s, c]])


def _shear(degrees: float) -> np.ndarray:
    return np.array([[1.0, 0.0], [np.tan(np.deg2rad(degrees)), 1.0]])


def _affine(image: np.ndarray, label: np.ndarray, matrix: np.ndarray, shift: np.ndarray | float = 0.0) -> Pair:
    """Sample both at ``matrix @ (position - centre) + centre + shift``."""
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ centre + shift
    return (
        ndimage.affine_transform(image, matrix, offset, order=1),
        ndimage.affine_transform(label, matrix, offset, order=0),
    )


def _bend(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
    """Move the points of a 4 x 4 grid at random, and what lies between them with them."""
    scale = rng.uniform(0.008, 0.03)
    positions = np.indices(image.shape, dtype=np.float64)
    for axis, side in enumerate(image.shape):
        moves = rng.normal(0, scale * side, (4, 4))
        positions[axis] += ndimage.zoom(moves, np.array(image.shape) / 4, order=1)
    return (
        ndimage.map_coordinates(image, positions, order=1),
        ndimage.map_coordinates(label, positions, order=0),
    )


# Each maps (image, label, generator) to the pair.
MSVM_UNET_OPERATIONS: tuple[Callable[[np.ndarray, np.ndarray, np.random.Generator], Pair], ...] = (
    lambda image, label, rng: _mirror(image, label, 0, rng),
    lambda image, label, rng: _mirror(image, label, 1, rng),
    lambda image, label, rng: (image + rng.normal(0, 0.005 * 255, image.shape).astype(image.dtype), label),
    lambda image, label, rng: (ndimage.gaussian_filter(image, 1.0), label),
    lambda image, label, rng: (image * np.float32(rng.uniform(0.5, 1.5)), label),
    lambda image, label, rng: _affine(image, label, np.diag(1 / rng.uniform(0.5, 2.0, 2))),
    lambda image, label, rng: _affine(image, label, _rotation(rng.uniform(-40, 40))),
    lambda image, label, rng: _affine(image, label, _shear(rng.uniform(-16, 16))),
    _bend,
    lambda image, label, rng: _affine(image, label, np.eye(2), rng.uniform(-0.2, 0.2, 2) * np.array(image.shape)),
)
AUGMENTATIONS: dict[str, type] = {"transunet": TransUNetAugment, "msvm_unet": MSVMUNetAugment}


class SliceTransform:
    """From a slice and its label to what a network takes: augmentation, resizing, normalisation.

    Args:
        size: Side of the square slices.
        augment: A key of ``AUGMENTATIONS``, or None.
        mean: Subtracted from the resized image.
        std: Divided by, after that.

    Raises:
        ConfigError: ``augment`` is unknown, or see :func:`check_side` and :func:`check_scaling`.
    """

    def __init__(self, size: int = 224, augment: str | None = None, mean: float = 0.0, std: float = 1.0):
        if augment is not None and augment not in AUGMENTATIONS:
            raise ConfigError(f"dataset.transform.augment is one of {sorted(AUGMENTATIONS)} or None, not '{augment}'.")
        check_scaling(mean, std)
        self.size = (check_side(size), size)
        self.augment = AUGMENTATIONS[augment]() if augment else None
        self.mean, self.std = mean, std

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return image (1, ``size``, ``size``), float32, and label (``size``, ``size``), int64."""
        if self.augment is not None:
            image, label = self.augment(image, label, rng)
        label = resize(np.ascontiguousarray(label), self.size, order=0)
        return self.image(image), torch.from_numpy(label.astype(np.int64))

    def image(self, image: np.ndarray) -> Tensor:
        """Resize and normalise a slice (H, W) without augmentation; returns (1, ``size``, ``size``), float32."""
        image = resize(np.ascontiguousarray(image, dtype=np.float32), self.size, order=3)
        return torch.from_numpy((image - np.float32(self.mean)) / np.float32(self.std))[None]


class SkinTransform:
    """VM-UNet's transform for photographs of skin and their masks.

    Each image is stretched to 0 to 255 by its own extremes. (The official code subtracts a mean and divides by a
    deviation first; the stretch undoes both exactly.) Then mirroring on either axis and a rotation, each with
    probability 0.5, and bilinear resizing without antialiasing. The angle is drawn for each image; the official code
    draws one for a whole run. Masks are thresholded at a half after the resizing.

    Args:
        size: Side of the square images.
        augment: Mirror and rotate.

    Raises:
        ConfigError: See :func:`check_side`.
    """

    def __init__(self, size: int = 256, augment: bool = False):
        self.size = [check_side(size), size]
        self.augment = augment

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return image (3, ``size``, ``size``), float32 in 0 to 255, and mask (``size``, ``size``), int64 in 0 to 1.

        Args:
            image: (H, W, 3), any range.
            mask: (H, W), 0 to 255.
            rng: Where the augmentation draws from.
        """
        pair = [self._stretch(image), torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255]
        if self.augment:
            for flip in (tv.hflip, tv.vflip):
                if rng.random() < 0.5:
                    pair = [flip(item) for item in pair]
            if rng.random() < 0.5:
                angle = float(rng.uniform(0, 360))
                pair = [tv.rotate(item, angle) for item in pair]
        image, mask = (tv.resize(item, self.size, InterpolationMode.BILINEAR, antialias=False) for item in pair)
        return image, (mask[0] >= 0.5).long()

    def image(self, image: np.ndarray) -> Tensor:
        """Stretch and resize an image (H, W, 3) without augmentation; returns (3, ``size``, ``size``), float32."""
        return tv.resize(self._stretch(image), self.size, InterpolationMode.BILINEAR, antialias=False)

    @staticmethod
    def _stretch(image: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
        low, high = tensor.min(), tensor.max()
        # An image of one colour has no extremes to stretch.
        return (tensor - low) * (255 / (high - low).clamp(min=1e-6))


def build_transform(kind: type, options: Mapping[str, Any] | None) -> Any:
    """Build a transform from a config's options.

    Raises:
        ConfigError: An option is unknown.
    """
    from ..engine.config import check_options

    options = dict(options or {})
    check_options(kind.__init__, options, "dataset.transform")
    return kind(**options)
