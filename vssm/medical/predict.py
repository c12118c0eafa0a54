"""Label NIfTI volumes and images with a trained run."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image

from .._errors import UserError
from .._files import write_beside
from .._progress import track
from ..engine.config import test_data
from ..engine.images import DataError, find_images, open_image
from ..engine.models import build_trained, require_checkpoint
from .files import NIFTI_SUFFIXES, all_or_none, check_values, read_nifti, stem, write_nifti
from .inference import predict_volume
from .listing import list_files
from .nifti import from_slices, to_slices, window_intensities
from .report import plot_masks, plot_overlays
from .transforms import SliceTransform


def find_volumes(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """List NIfTI files: files as they are, folders searched through for ``.nii`` and ``.nii.gz``.

    Raises:
        DataError: A folder holds none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        found = list_files(path, NIFTI_SUFFIXES, deep=True)
        if not found:
            raise DataError(f"The folder '{path}' holds no NIfTI volume.")
        files += found
    return files


def slice_transform(cfg: Config) -> SliceTransform | None:
    """Return the transform of a run that is tested on volumes, whose loop has it; None for other runs."""
    test_cfg = cfg.get("test_cfg") or {}
    if test_cfg.get("type") != "VolumeTestLoop":
        return None
    return SliceTransform(**{key: test_cfg[key] for key in ("size", "mean", "std") if key in test_cfg})


def label_files(
    cfg: Config, checkpoint: str | os.PathLike, paths: Sequence[str], out: str | os.PathLike, device: str | None = None
) -> list[Path]:
    """Label volumes, or images, and draw the labels over them.

    Every input is read once before the network runs, so that all that are broken are reported together and nothing is
    written then.

    Args:
        cfg: A run's config. One that is tested on volumes labels NIfTI volumes, any other images.
        checkpoint: A checkpoint of that config's model.
        paths: Files and folders.
        out: Folder for ``<name>_label.nii.gz`` (uint8, with the volume's affine) or ``<name>_mask.png`` (class numbers;
            0 and 255 where there is one class), of the input's size, and ``<name>_overlay.png``.
        device: Where to run; None: a GPU if there is one.

    Returns:
        The files written.

    Raises:
        UserError: The config, the checkpoint or an input cannot be used, or two inputs have the same name.
    """
    require_checkpoint(checkpoint)
    kind, dataset = test_data(cfg, "nifti_options")
    transform = slice_transform(cfg)
    volumes = transform is not None
    files = find_volumes(paths) if volumes else [Path(file) for file in find_images(paths)]
    names = [stem(file) for file in files]
    twice = min((name for name, count in Counter(names).items() if count > 1), default=None)
    if twice is not None:
        raise UserError(f"Two inputs are named '{twice}', and their labels would have the same name.")
    all_or_none(_read_volume if volumes else _read_image, files, title="checking")

    model, stored = build_trained(cfg, checkpoint)
    model.eval().to(device or get_device())
    classes = (stored.get("meta", {}).get("dataset_meta") or {}).get("classes")
    if volumes:
        slices = cfg.test_cfg.get("slices", 8)
        job = _volume_job(model, transform, slices, kind.nifti_options(dataset), classes, Path(out))
    else:
        job = _image_job(model, kind.transform_from(dataset), Path(out))
    written: list[Path] = []
    for file in track(files, "labelling"):
        written += job(file)
    return written


def _read_volume(path: Path) -> tuple[np.ndarray, Any]:
    volume, image = read_nifti(path)
    return check_values(volume, path), image


def _read_image(path: Path) -> Image.Image:
    return open_image(path)


def _volume_job(
    model: torch.nn.Module,
    transform: SliceTransform,
    slices: int,
    options: dict[str, Any],
    classes: Sequence[str] | None,
    out: Path,
) -> Callable[[Path], list[Path]]:
    def job(path: Path) -> list[Path]:
        volume, image = _read_volume(path)
        stack = window_intensities(to_slices(volume, image, options["axis"]), options["window"])
        label = predict_volume(model, stack, transform, slices, track)
        targets = [out / f"{stem(path)}_label.nii.gz", out / f"{stem(path)}_overlay.png"]
        write_nifti(targets[0], from_slices(label, image, options["axis"]), image.affine, image.header)
        names = classes or ["background", *(f"class {number}" for number in range(1, int(label.max()) + 1 or 2))]
        plot_overlays(stack, {"prediction": label}, names, targets[1], title=stem(path))
        return targets

    return job


def _image_job(model: torch.nn.Module, transform: Any, out: Path) -> Callable[[Path], list[Path]]:
    device = next(model.parameters()).device

    @torch.no_grad()
    def job(path: Path) -> list[Path]:
        photo = _read_image(path)
        inputs = transform.image(np.asarray(photo))[None].to(device)
        mask = model(inputs, mode="predict")[0]["prediction"].to(torch.uint8).cpu().numpy()
        # The nearest pixel's class, at the photograph's own size.
        mask = np.asarray(Image.fromarray(mask).resize(photo.size, Image.Resampling.NEAREST))
        targets = [out / f"{stem(path)}_mask.png", out / f"{stem(path)}_overlay.png"]
        grey = Image.fromarray(mask * np.uint8(255) if model.model.num_classes == 1 else mask)
        write_beside(targets[0], lambda part: grey.save(part))
        plot_masks(photo, mask, targets[1])
        return targets

    return job
