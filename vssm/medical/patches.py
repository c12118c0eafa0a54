"""Random patches of volumes, to train networks of volumes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import Dataset

from ..engine.config import ConfigError
from .dataset import MedicalDataset, random_generator
from .files import all_or_none
from .transforms import check_scaling

__all__ = ["VolumePatches", "normalize", "patch_size"]

# Voxels of each class that patches are centred on; more would not be drawn in a run.
_MOST_CENTRES = 20_000


def patch_size(patch: Any) -> tuple[int, int, int]:
    """Return the size of a patch.

    Raises:
        ConfigError: It is not three whole numbers from 1.
    """
    if not isinstance(patch, (tuple, list)) or len(patch) != 3 or any(type(n) is not int or n < 1 for n in patch):
        raise ConfigError(f"The patch of a network of volumes is three whole numbers (D, H, W), not {patch!r}.")
    return tuple(patch)


def normalize(volume: np.ndarray, mean: float | None = 0.0, std: float | None = 1.0) -> np.ndarray:
    """Give a volume as a network takes it.

    Args:
        volume: (D, H, W) or (C, D, H, W).
        mean: Subtracted; None: each channel's own mean.
        std: Divided by, after that; None: each channel's own deviation.

    Returns:
        (C, D, H, W), float32.
    """
    volume = np.asarray(volume, dtype=np.float32)
    volume = volume[None] if volume.ndim == 3 else volume
    own = dict(axis=(1, 2, 3), keepdims=True, dtype=np.float64)
    low = volume.mean(**own) if mean is None else mean
    scale = np.maximum(volume.std(**own), 1e-6) if std is None else std
    return ((volume - low) / scale).astype(np.float32)


@DATASETS.register_module()
class VolumePatches(Dataset):
    """Patches at random places of the volumes of another data set.

    Args:
        dataset: A data set of volumes, or its config: Synapse, ACDC or NiftiFolder with ``volumes=True``. Volumes keep
            their own spacing.
        patch: Size of the patches (D, H, W) in voxels. A smaller volume is extended by repeating its last voxels.
        per_volume: Patches of each volume in an epoch.
        foreground: Probability that a patch has a voxel of a class other than 0 at its centre: of each class that is
            there alike, however small.
        mirror: Mirror along (D, H, W), each with probability 0.5; one value for all three.
        turn: Turn by a multiple of 90 degrees in the plane (H, W); for patches with H = W.
        intensity: Multiply by up to 1 +- this, and add up to +- this, once a patch and channel.
        noise: Deviation of noise, drawn for each patch from 0 to this.
        mean: See :func:`normalize`.
        std: See :func:`normalize`.
        cache: Keep the volumes in memory; they are then read, and checked, when training starts. Without it a volume is
            read for each patch.

    Raises:
        ConfigError: An option is none of its values, or the data set gives slices.
        DataError: A file cannot be used, with ``cache``.
    """

    def __init__(
        self,
        dataset: MedicalDataset | Mapping[str, Any],
        patch: Sequence[int],
        per_volume: int = 1,
        foreground: float = 0.5,
        mirror: bool | Sequence[bool] = False,
        turn: bool = False,
        intensity: float = 0.0,
        noise: float = 0.0,
        mean: float | None = 0.0,
        std: float | None = 1.0,
        cache: bool = True,
    ):
        self.patch = patch_size(patch)
        check_scaling(mean, std, own=True)
        if type(per_volume) is not int or per_volume < 1:
            raise ConfigError(f"VolumePatches' per_volume is a whole number from 1, not {per_volume!r}.")
        if not 0 <= foreground <= 1:
            raise ConfigError(f"VolumePatches' foreground is a probability from 0 to 1, not {foreground!r}.")
        if turn and self.patch[1] != self.patch[2]:
            raise ConfigError(f"VolumePatches' turn needs a patch with H = W, not {self.patch}.")
        self.volumes = dataset if isinstance(dataset, Dataset) else DATASETS.build(dict(dataset))
        if getattr(self.volumes, "transform", None) is not None:
            raise ConfigError("VolumePatches needs a data set of volumes, but this one gives slices: say volumes=True.")
        self.metainfo = self.volumes.metainfo
        self.per_volume, self.foreground = per_volume, foreground
        self.mirror = tuple(mirror) if isinstance(mirror, (tuple, list)) else (mirror,) * 3
        self.turn, self.intensity, self.noise = turn, intensity, noise
        self.mean, self.std = mean, std
        self.kept: list[tuple] | None = None
        if cache:
            self.kept = all_or_none(self._read, range(len(self.volumes)), title="reading volumes")

    def __len__(self) -> int:
        return len(self.volumes) * self.per_volume

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], str]:
        """A volume (C, D, H, W), its label (D, H, W), flat places of each class that is there, and its name."""
        sample = self.volumes[number]
        label = sample["label"].numpy()
        places = []
        for value in np.unique(label[label != 0]):
            found = np.flatnonzero(label == value)
            places.append(found[:: max(1, len(found) // _MOST_CENTRES)])
        return normalize(sample["image"].numpy(), self.mean, self.std), label, places, sample["meta"]["case"]

    def _corner(self, shape: Sequence[int], places: list[np.ndarray], rng: np.random.Generator) -> list[int]:
        """The first voxel of a patch, inside of the volume wherever the volume is as large."""
        room = [max(size - side, 0) for size, side in zip(shape, self.patch, strict=True)]
        if not places or rng.random() >= self.foreground:
            return [int(rng.integers(most + 1)) for most in room]
        of_class = places[rng.integers(len(places))]
        centre = np.unravel_index(of_class[rng.integers(len(of_class))], shape)
        return [int(np.clip(c - side // 2, 0, m)) for c, side, m in zip(centre, self.patch, room, strict=True)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one patch: image (C, D, H, W) float32, label (D, H, W) int64, and the name of the volume.

        Raises:
            DataError: A file cannot be read.
        """
        number = index % len(self.volumes)
        image, label, places, case = self.kept[number] if self.kept else self._read(number)
        rng = random_generator()
        corner = self._corner(label.shape, places, rng)
        cut = tuple(slice(first, first + side) for first, side in zip(corner, self.patch, strict=True))
        image, label = image[(slice(None), *cut)], label[cut]
        missing = [(0, side - size) for side, size in zip(self.patch, label.shape, strict=True)]
        if any(behind for _, behind in missing):
            image, label = np.pad(image, [(0, 0), *missing], mode="edge"), np.pad(label, missing, mode="edge")
        pixels, truth = self._augment(image, label, rng)
        return {"image": pixels, "label": truth, "meta": {"case": case}}

    def _augment(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        axes = [axis for axis, allowed in enumerate(self.mirror) if allowed and rng.random() < 0.5]
        image, label = np.flip(image, [axis + 1 for axis in axes]), np.flip(label, axes)
        if self.turn:
            quarters = int(rng.integers(4))
            image, label = np.rot90(image, quarters, (2, 3)), np.rot90(label, quarters, (1, 2))
        image = np.array(image, dtype=np.float32)  # a copy: what is kept stays as it is
        if self.intensity:
            factors = rng.uniform(-self.intensity, self.intensity, (2, len(image), 1, 1, 1)).astype(np.float32)
            image = image * (1 + factors[0]) + factors[1]
        if self.noise:
            image += rng.normal(0, rng.uniform(0, self.noise), image.shape).astype(np.float32)
        return torch.from_numpy(image), torch.from_numpy(np.array(label, dtype=np.int64))
