"""Small volumes, slices and photographs in the layouts of the data sets, made on the fly."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..engine.conftest import REPO

CONFIGS = REPO / "configs" / "medical"


# Voxels of the organs 1 to 8 in TransUNet's order; each pair that is swapped in the other order is (small, large).
ORGANS = (4, 3, 9, 10, 60, 5, 12, 14)


def abdomen(depth: int = 4, side: int = 24, seed: int = 0, order=tuple(range(1, 9))):
    """A volume of noise with eight organs of different sizes: image float32, label uint8, both (D, H, W)."""
    random = np.random.default_rng(seed)
    label = np.zeros((depth, side * side), dtype=np.uint8)
    place = 40
    for number, size in zip(order, ORGANS, strict=True):
        label[:, place : place + size] = number
        place += size + 2
    label = label.reshape(depth, side, side)
    image = random.random(label.shape, dtype=np.float32) * 0.2 + label / 10
    return image.astype(np.float32), label


def write_synapse(
    root: Path, order=tuple(range(1, 9)), train=("0005", "0010", "0027", "0034"), test=("0008", "0022")
) -> Path:
    """TransUNet's layout with list files."""
    h5py = pytest.importorskip("h5py")
    lists = root / "lists" / "lists_Synapse"
    for folder in (root / "train_npz", root / "test_vol_h5", lists):
        folder.mkdir(parents=True)
    names = []
    for seed, case in enumerate(train):
        image, label = abdomen(seed=seed, order=order)
        for number in range(len(image)):
            names.append(f"case{case}_slice{number:03d}")
            # TransUNet's files hold labels as floats.
            np.savez(
                root / "train_npz" / f"{names[-1]}.npz", image=image[number], label=label[number].astype(np.float32)
            )
    for seed, case in enumerate(test):
        image, label = abdomen(depth=3, seed=10 + seed, order=order)
        with h5py.File(root / "test_vol_h5" / f"case{case}.npy.h5", "w") as file:
            file["image"], file["label"] = image, label.astype(np.float32)
    (lists / "train.txt").write_text("\n".join(names) + "\n")
    (lists / "test_vol.txt").write_text("\n".join(f"case{case}" for case in test) + "\n")
    return root


def write_nifti(path: Path, array: np.ndarray, affine=None) -> Path:
    """A NIfTI file; by default 0.5 x 1 x 3 mm voxels in the orientation left, posterior, superior."""
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-0.5, -1.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def write_nifti_folder(root: Path, splits=("train", "val", "test"), classes: int = 3) -> Path:
    """Bright cubes in noise, class 1 and class 2, in three folders."""
    for seed, split in enumerate(splits):
        random = np.random.default_rng(seed)
        label = np.zeros((40, 36, 8), dtype=np.uint8)
        label[6:20, 8:22, 1:7] = 1
        label[22:36, 12:30, 2:8] = 2 if classes > 2 else 1
        image = (random.random(label.shape) * 0.3 + label / 2).astype(np.float32)
        write_nifti(root / split / "images" / f"v{seed}.nii.gz", image)
        write_nifti(root / split / "labels" / f"v{seed}.nii.gz", label)
    return root


def write_isic(root: Path, train: int = 20, val: int = 3) -> Path:
    """Photographs of 40 x 30 pixels with a dark spot, and the spot's mask."""
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            random = np.random.default_rng(number)
            y, x = np.mgrid[:30, :40]
            spot = (y - 15) ** 2 + (x - random.integers(15, 25)) ** 2 < 80
            photo = (random.integers(150, 200, (30, 40, 3)) - 100 * spot[..., None]).astype(np.uint8)
            Image.fromarray(photo).save(root / split / "images" / f"ISIC_{number:07d}.jpg", quality=95)
            Image.fromarray((spot * 255).astype(np.uint8)).save(
                root / split / "masks" / f"ISIC_{number:07d}_segmentation.png"
            )
    return root
