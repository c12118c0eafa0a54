"""Label NIfTI volumes and images with a trained run."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
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
from .windows import predict_windows


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


def window_options(cfg: Config) -> dict[str, Any] | None:
    """Return the arguments of `predict_windows` of a run that is tested in windows; None for other runs."""
    test_cfg = cfg.get("test_cfg") or {}
    if test_cfg.get("type") != "WindowTestLoop":
        return None
    options = {key: test_cfg[key] for key in ("patch", "overlap", "mean", "std") if key in test_cfg}
    return options | {"batch_size": test_cfg.get("windows", 2)}


def group_channels(files: Sequence[Path], count: int) -> list[list[Path]]:
    """Group the files of volumes of several channels by case: ``<case>_0000``, ``<case>_0001`` and so on.

    Args:
        files: The files.
        count: Channels of each volume.

    Raises:
        DataError: The name of a file does not end in a channel's number, or a case lacks one or has others.
    """
    if count == 1:
        return [[file] for file in files]
    cases: dict[Path, dict[int, Path]] = {}
    for file in files:
        numbered = re.fullmatch(r"(.*)_(\d{4})", stem(file))
        if numbered is None:
            raise DataError(
                f"The network takes volumes of {count} channels, in files '<case>_0000' to '<case>_{count - 1:04d}', "
                f"but the name of '{file}' does not end in such a number."
            )
        cases.setdefault(file.parent / numbered[1], {})[int(numbered[2])] = file
    for case, channels in cases.items():
        if sorted(channels) != list(range(count)):
            absent = next((number for number in range(count) if number not in channels), None)
            what = f"has {len(channels)} channels" if absent is None else f"lacks channel {absent}"
            raise DataError(f"The case '{case}' {what}, but the network takes volumes of {count} channels.")
    return [[channels[number] for number in range(count)] for channels in cases.values()]


def label_files(
    cfg: Config, checkpoint: str | os.PathLike, paths: Sequence[str], out: str | os.PathLike, device: str | None = None
) -> list[Path]:
    """Label volumes, or images, and draw the labels over them.

    Every input is read once before the network runs, so that all that are broken are reported together and nothing is
    written then.

    Args:
        cfg: A run's config. One that is tested on volumes, by slices or in windows, labels NIfTI volumes, any other
            images.
        checkpoint: A checkpoint of that config's model.
        paths: Files and folders. A volume of several channels is a file for each, see :func:`group_channels`.
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
    transform, windows = slice_transform(cfg), window_options(cfg)
    volumes = transform is not None or windows is not None
    if volumes:
        channels = (cfg.model.get("network") or {}).get("in_chans") if windows is not None else None
        inputs: list[Any] = group_channels(find_volumes(paths), channels or 1)
        names = [_case(files) for files in inputs]
    else:
        inputs = [Path(file) for file in find_images(paths)]
        names = [stem(file) for file in inputs]
    twice = min((name for name, count in Counter(names).items() if count > 1), default=None)
    if twice is not None:
        raise UserError(f"Two inputs are named '{twice}', and their labels would have the same name.")
    all_or_none(_read_channels if volumes else _read_image, inputs, title="checking")

    model, stored = build_trained(cfg, checkpoint)
    model.eval().to(device or get_device())
    classes = (stored.get("meta", {}).get("dataset_meta") or {}).get("classes")
    if windows is not None:
        predict: Any = partial(predict_windows, model, **windows, progress=track)
    elif volumes:
        slices = cfg.test_cfg.get("slices", 8)
        predict = partial(predict_volume, model, transform=transform, batch_size=slices, progress=track)
    if volumes:
        job: Any = _volume_job(predict, kind.nifti_options(dataset), classes, Path(out))
    else:
        job = _image_job(model, kind.transform_from(dataset), Path(out))
    written: list[Path] = []
    for item in track(inputs, "labelling"):
        written += job(item)
    return written


def _case(files: Sequence[Path]) -> str:
    return stem(files[0]) if len(files) == 1 else stem(files[0]).removesuffix("_0000")


def _read_volume(path: Path) -> tuple[np.ndarray, Any]:
    """A volume, and nibabel's image of it."""
    volume, image = read_nifti(path)
    check_values(volume, path)
    return volume, image


def _read_channels(paths: Sequence[Path]) -> tuple[list[np.ndarray], Any]:
    """The channels of a volume, and nibabel's image of the first."""
    reads = [_read_volume(path) for path in paths]
    for path, (volume, image) in zip(paths, reads, strict=True):
        if volume.shape != reads[0][0].shape or not np.allclose(image.affine, reads[0][1].affine, atol=1e-2):
            raise DataError(f"'{path}' and '{paths[0]}' do not lie on each other: their grids differ.")
    return [volume for volume, _ in reads], reads[0][1]


def _read_image(path: Path) -> Image.Image:
    return open_image(path)


def _volume_job(
    predict: Callable[[np.ndarray], np.ndarray], options: dict[str, Any], classes: Sequence[str] | None, out: Path
) -> Callable[[Sequence[Path]], list[Path]]:
    def job(paths: Sequence[Path]) -> list[Path]:
        volumes, image = _read_channels(paths)
        stacks = [window_intensities(to_slices(v, image, options["axis"]), options["window"]) for v in volumes]
        label = predict(stacks[0] if len(stacks) == 1 else np.stack(stacks))
        case = _case(paths)
        targets = [out / f"{case}_label.nii.gz", out / f"{case}_overlay.png"]
        write_nifti(targets[0], from_slices(label, image, options["axis"]), image.affine, image.header)
        names = classes or ["background", *(f"class {number}" for number in range(1, int(label.max()) + 1 or 2))]
        plot_overlays(stacks[0], {"prediction": label}, names, targets[1], title=case)
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
