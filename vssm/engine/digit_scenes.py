"""Handwritten digits on photographs: real images that installed packages ship, composed into scenes with exact masks.

The scans are scikit-learn's ``load_digits`` (8 x 8, 1,797 of them), the photographs those in the wheels of scikit-learn
and scikit-image. Nothing is downloaded. Training and validation share neither scans nor photographs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .._errors import UserError
from .._optional import require
from .images import open_image

CLASSES = tuple(str(digit) for digit in range(10))
# Of scikit-image's files only photographs, each scene in one part.
PHOTOGRAPHS = {
    "train": (
        "china.jpg",
        "astronaut.png",
        "chelsea.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "grass.png",
        "gravel.png",
        "moon.png",
        "hubble_deep_field.jpg",
    ),
    "val": ("flower.jpg", "coffee.png", "camera.png", "brick.png", "coins.png", "retina.jpg"),
}
_OF_SKLEARN = ("china.jpg", "flower.jpg")
# Share of each class that is held out, and the seed that says which: the scenes' own seed does not change them.
_HELD_OUT, _SPLIT_SEED = 0.2, 0
# A scan's ink at which a pixel starts to be covered by the digit, and at which it is covered wholly.
_INK = (0.35, 0.6)


@dataclass(frozen=True)
class Digit:
    """One digit in a scene.

    Attributes:
        label: 0 to 9.
        scan: Number of the scan in ``load_digits``.
        coverage: How much of each pixel the digit covers, from 0 to 1: float32 (h, w).
        top, left: Where in the image ``coverage`` lies.
        crowd: Belongs to the scene's heap of tiny digits.
    """

    label: int
    scan: int
    coverage: np.ndarray
    top: int
    left: int
    crowd: bool = False

    def paste(self, onto: np.ndarray) -> None:
        """Put the coverage into an array of the image's size (H, W), in place."""
        h, w = self.coverage.shape
        part = onto[self.top : self.top + h, self.left : self.left + w]
        np.maximum(part, self.coverage, out=part)


@dataclass(frozen=True)
class Scene:
    """An image with what is in it.

    Attributes:
        image: RGB, uint8 (H, W, 3).
        digits: Its digits; their bounding boxes do not overlap, except in a heap.
        photograph: File name of the photograph.
    """

    image: np.ndarray
    digits: tuple[Digit, ...]
    photograph: str


def load_photographs(split: str) -> dict[str, Image.Image]:
    """Read the photographs of a part from the installed packages.

    Raises:
        MissingExtraError: scikit-learn or scikit-image is not installed.
        DataError: The installed scikit-image lacks one of the files.
    """
    # Its fetching functions would download what is missing; the folder of the wheel is read instead.
    folder = Path(require("skimage", "data").__file__).parent / "data"
    photographs = {}
    for name in PHOTOGRAPHS[split]:
        if name in _OF_SKLEARN:
            photographs[name] = Image.fromarray(require("sklearn.datasets", "data").load_sample_image(name))
        else:
            photographs[name] = open_image(folder / name)
    return photographs


def load_scans(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a part's scans, a fifth of each class being held out for ``"val"``.

    Returns:
        Ink from 0 to 1, float32 (N, 8, 8); labels (N,); their numbers in ``load_digits`` (N,).
    """
    digits = require("sklearn.datasets", "data").load_digits()
    divide = require("sklearn.model_selection", "data").train_test_split
    numbers = np.arange(len(digits.target))
    train, val = divide(numbers, test_size=_HELD_OUT, random_state=_SPLIT_SEED, stratify=digits.target)
    chosen = np.sort(train if split == "train" else val)
    return (digits.images[chosen] / 16).astype(np.float32), digits.target[chosen], chosen


class Scenes(Sequence):
    """A part of a data set of scenes, each made when it is asked for, always the same for the same arguments.

    Args:
        split: ``"train"`` or ``"val"``.
        count: How many scenes.
        image_size: Side of the square images in pixels.
        digit_size: Smallest and largest side of an enlarged scan in pixels; the digit fills most of it.
        digits: Smallest and largest number of digits in a scene; one that finds no free place is left out.
        heaps: Share of the scenes that also have a heap of tiny, overlapping digits of one class.
        seed: Of everything but the division of scans and photographs.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self,
        split: str,
        count: int,
        image_size: int = 128,
        digit_size: tuple[int, int] = (20, 60),
        digits: tuple[int, int] = (2, 6),
        heaps: float = 0.0,
        seed: int = 0,
    ):
        if count < 1:
            raise UserError(f"A part of the data set needs at least one image, not {count}.")
        if not 8 <= digit_size[0] <= digit_size[1]:
            raise UserError(f"The digits' sizes are a smallest of at least 8 and a largest, not {digit_size}.")
        if image_size < digit_size[1]:
            raise UserError(f"Images of {image_size} pixels have no room for digits of {digit_size[1]} pixels.")
        if not 1 <= digits[0] <= digits[1]:
            raise UserError(f"The numbers of digits are a smallest of at least 1 and a largest, not {digits}.")
        if seed < 0:
            raise UserError(f"The seed is 0 or more, not {seed}.")
        self.count = count
        self.image_size = image_size
        self.digit_size = digit_size
        self.heaps = heaps
        self._key = (seed, ("train", "val").index(split))
        self.photographs = load_photographs(split)
        self.ink, self.labels, self.numbers = load_scans(split)

        random = np.random.default_rng(self._key)
        self._digits = random.integers(digits[0], digits[1] + 1, count)
        total = int(self._digits.sum())
        # Ten classes in turn, each in a new order; a class's scans likewise: both stay balanced.
        decks = [random.permutation(10) for _ in range(-(-total // 10))]
        self._classes = np.concatenate(decks)[:total]
        self._scans = np.zeros(total, dtype=int)
        for label in range(10):
            wanted = np.flatnonzero(self._classes == label)
            own = np.flatnonzero(self.labels == label)
            shuffled = [random.permutation(own) for _ in range(-(-len(wanted) // len(own)))]
            self._scans[wanted] = np.concatenate([*shuffled, own])[: len(wanted)]
        self._starts = np.cumsum(self._digits) - self._digits

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Scene]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = np.random.default_rng([*self._key, index])
        name = tuple(self.photographs)[random.integers(len(self.photographs))]
        image = self._background(self.photographs[name], random)
        taken: list[tuple[int, int, int, int]] = []
        digits: list[Digit] = []
        start = self._starts[index]
        if random.random() < self.heaps:
            digits += self._heap(int(random.integers(10)), taken, random)
        for scan in self._scans[start : start + self._digits[index]]:
            coverage = self._render(scan, int(random.integers(self.digit_size[0], self.digit_size[1] + 1)), random)
            corner = self._free(coverage.shape, taken, random)
            if corner:
                digits.append(Digit(int(self.labels[scan]), int(self.numbers[scan]), coverage, *corner))
        for digit in digits:
            _draw(digit, image, random)
        return Scene(np.round(image).astype(np.uint8), tuple(digits), name)

    def _background(self, photograph: Image.Image, random: np.random.Generator) -> np.ndarray:
        """A random square of the photograph, at any scale from its own to the whole, mirrored or not."""
        short = min(photograph.size)
        side = int(random.integers(min(self.image_size, short), short + 1))
        left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        image = photograph.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS, box=box)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image, dtype=np.float32).copy()

    def _render(self, scan: int, size: int, random: np.random.Generator) -> np.ndarray:
        """Enlarge a scan, turn it a little, and cut it out: coverage (h, w), at most (size, size)."""
        ink = Image.fromarray(self.ink[scan]).resize((size, size), Image.Resampling.BICUBIC)
        ink = ink.rotate(random.uniform(-12, 12), Image.Resampling.BICUBIC)
        coverage = np.clip((np.asarray(ink) - _INK[0]) / (_INK[1] - _INK[0]), 0, 1)
        rows, columns = np.flatnonzero(coverage.max(1)), np.flatnonzero(coverage.max(0))
        return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def _free(
        self, shape: tuple[int, int], taken: list[tuple[int, int, int, int]], random: np.random.Generator
    ) -> tuple[int, int] | None:
        """Find a place whose box touches none of those taken, and take it: (top, left)."""
        h, w = shape
        for _ in range(40):
            top, left = (int(random.integers(self.image_size - length + 1)) for length in (h, w))
            if all(top > t + th or left > l + tw or t > top + h or l > left + w for t, l, th, tw in taken):
                taken.append((top, left, h, w))
                return top, left
        return None

    def _heap(self, label: int, taken: list[tuple[int, int, int, int]], random: np.random.Generator) -> Iterator[Digit]:
        """Eight digits of one class, too small and too close to be told apart."""
        height, width = self.digit_size[0], min(2 * self.digit_size[0], self.image_size)
        top, left = self._free((height, width), taken, random)
        for scan in random.choice(np.flatnonzero(self.labels == label), 8, replace=False):
            coverage = self._render(scan, max(8, self.digit_size[0] // 2), random)
            h, w = coverage.shape
            corner = top + int(random.integers(height - h + 1)), left + int(random.integers(width - w + 1))
            yield Digit(label, int(self.numbers[scan]), coverage, *corner, crowd=True)


def _draw(digit: Digit, image: np.ndarray, random: np.random.Generator) -> None:
    """Blend a digit into an image (H, W, 3), in any colour that is far from what lies under it in brightness."""
    h, w = digit.coverage.shape
    part = image[digit.top : digit.top + h, digit.left : digit.left + w]
    under = float(part.mean())
    bright = under + 90 < 255 and (under - 90 < 0 or random.random() < 0.5)
    brightness = random.uniform(under + 90, 255) if bright else random.uniform(0, under - 90)
    colour = random.uniform(0, 255, 3)
    colour = np.clip(colour - colour.mean() + brightness, 0, 255).astype(np.float32)
    part += digit.coverage[..., None] * (colour - part)
