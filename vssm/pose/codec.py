"""Boxes to crops, keypoints to heatmaps, and back.

Points are (x, y) in pixels. Shapes: B samples, K keypoints, H x W a crop, h x w its heatmap.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._errors import UserError

__all__ = [
    "HeatmapCodec",
    "box_to_region",
    "crop_image",
    "crop_matrix",
    "flip_back",
    "map_points",
    "mirrored_order",
    "region_to_points",
]


def box_to_region(box: Sequence[float], size: Sequence[int], padding: float = 1.25) -> np.ndarray:
    """The region around a box that a crop shows: centre and sides, float64 (4,).

    Args:
        box: Left, top, width, height.
        size: (H, W) of the crop, whose shape the region gets.
        padding: How much larger than the box it is.
    """
    left, top, width, height = map(float, box)
    aspect = size[1] / size[0]
    wide = max(width, height * aspect) * padding
    return np.array([left + width / 2, top + height / 2, wide, wide / aspect])


def crop_matrix(region: np.ndarray, size: Sequence[int], degrees: float = 0.0) -> np.ndarray:
    """The affine map from points of the image to points of the crop, float64 (2, 3).

    Args:
        region: See `box_to_region`.
        size: (H, W) of the crop.
        degrees: By how much what the crop shows is turned, clockwise as one sees it.
    """
    x, y, wide, _ = region
    scale = size[1] / wide
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return np.array([[c, -s, size[1] / 2 - c * x + s * y], [s, c, size[0] / 2 - s * x - c * y]])


def map_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply an affine map (2, 3) to points (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def crop_image(image: Image.Image, matrix: np.ndarray, size: Sequence[int]) -> Image.Image:
    """Cut a crop (H, W) out of an image; what lies outside is black."""
    # Pillow wants the way from the crop to the image, and counts from the corner of a pixel, not from its middle.
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    inverse[:, 2] += 0.5 - inverse[:, :2] @ np.array([0.5, 0.5])
    return image.transform((size[1], size[0]), Image.Transform.AFFINE, inverse.ravel(), Image.Resampling.BILINEAR)


def region_to_points(points: np.ndarray, region: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Points of a crop that is not turned (..., 2) to those of the image."""
    return points * (region[2] / size[1]) + region[:2] - region[2:] / 2


class HeatmapCodec:
    """Heatmaps of MSRA's kind (arXiv 1804.06208): a Gaussian of height 1 around the nearest pixel of each keypoint.

    Args:
        size: (H, W) of the crop.
        stride: Pixels of the crop to a pixel of the heatmap.
        sigma: Deviation of the Gaussian in pixels of the heatmap. It ends after three.

    Raises:
        UserError: The stride does not divide the size.
    """

    def __init__(self, size: Sequence[int], stride: int = 4, sigma: float = 2.0):
        if size[0] % stride or size[1] % stride:
            raise UserError(f"A crop of {size[0]} x {size[1]} pixels is not divisible by the stride {stride}.")
        self.size = tuple(size)
        self.stride = stride
        self.sigma = sigma

    def encode(self, points: np.ndarray, visible: np.ndarray) -> tuple[Tensor, Tensor]:
        """Draw heatmaps.

        Args:
            points: Of the crop, (K, 2).
            visible: Which of them count, (K,).

        Returns:
            Heatmaps (K, h, w); weights (K,), 1 for those that count and whose Gaussian touches the map, else 0.
        """
        height, width = (side // self.stride for side in self.size)
        middle = torch.as_tensor(np.floor(points / self.stride + 0.5), dtype=torch.float32)
        radius = 3 * self.sigma
        far = torch.tensor([width, height]) + radius
        seen = ((middle >= -radius) & (middle < far)).all(-1) & torch.as_tensor(visible, dtype=torch.bool)
        x = torch.arange(width) - middle[:, :1]
        y = torch.arange(height) - middle[:, 1:]
        across, down = ((-(d**2) / (2 * self.sigma**2)).exp() * (d.abs() <= radius) for d in (x, y))
        weights = seen.float()
        return down[:, :, None] * across[:, None, :] * weights[:, None, None], weights

    def decode(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Find the highest pixel of each heatmap, and go a quarter of a pixel towards its higher neighbours.

        Args:
            heatmaps: (B, K, h, w).

        Returns:
            Points of the crop (B, K, 2); heights (B, K).
        """
        height, width = heatmaps.shape[-2:]
        scores, where = heatmaps.flatten(2).max(-1)
        x, y = where % width, where.div(width, rounding_mode="floor")

        def at(dx: int, dy: int) -> Tensor:
            index = (y + dy).clamp(0, height - 1) * width + (x + dx).clamp(0, width - 1)
            return heatmaps.flatten(2).gather(2, index[..., None])[..., 0]

        inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
        steps = torch.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1).sign() * 0.25 * inside[..., None]
        return (torch.stack([x, y], -1) + steps) * self.stride, scores


def mirrored_order(count: int, pairs: Sequence[Sequence[int]]) -> list[int]:
    """Say for each of ``count`` keypoints which one is in its place in a mirror, given those that change places."""
    order = list(range(count))
    for a, b in pairs:
        order[a], order[b] = b, a
    return order


def flip_back(heatmaps: Tensor, pairs: Sequence[Sequence[int]], shift: bool = True) -> Tensor:
    """Heatmaps of a mirrored image as those of the image itself.

    Args:
        heatmaps: (B, K, h, w).
        pairs: Keypoints that change places in a mirror.
        shift: Move them by a pixel to the right: of an even number of pixels, the strided convolutions of a mirrored
            image see others.
    """
    heatmaps = heatmaps[:, mirrored_order(heatmaps.shape[1], pairs)].flip(-1)
    if shift:
        heatmaps = torch.cat([heatmaps[..., :1], heatmaps[..., :-1]], dim=-1)
    return heatmaps
