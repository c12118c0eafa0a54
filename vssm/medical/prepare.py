"""Turn NIfTI volumes into the layouts that the data sets read: the work of ``vssm prepare``."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._cli import say
from .._errors import DataError
from .._files import whole_folder, write_beside
from .._inputs import require_file
from .._optional import require
from .._progress import track
from .data import CT_WINDOW, read_nifti_pair
from .files import NIFTI_SUFFIXES, all_or_none, write_h5, write_nifti, write_npz
from .labels import ACDC_CLASSES, LABEL_ORDERS, load_split
from .listing import by_name, list_files
from .nifti import window_intensities

# The template's axial slices (index = MNI's z in mm + 72), with gaps of eight slices between the parts.
MNI152_SLABS = {"train": (40, 96), "val": (104, 114), "test": (122, 138)}


def prepare_synapse(args: argparse.Namespace) -> None:
    """Make the set of ``vssm prepare synapse-nifti``."""
    record = {"command": "synapse-nifti", "label_order": args.label_order}
    with whole_folder(args.out, record, args.overwrite) as out:
        synapse_from_nifti(args.images, args.labels, out, args.label_order)


def prepare_acdc(args: argparse.Namespace) -> None:
    """Make the set of ``vssm prepare acdc-nifti``."""
    with whole_folder(args.out, {"command": "acdc-nifti"}, args.overwrite) as out:
        acdc_from_nifti(args.root, out)


def prepare_mni152(args: argparse.Namespace) -> None:
    """Make the set of ``vssm prepare mni152``."""
    with whole_folder(args.out, {"command": "mni152", "slabs": MNI152_SLABS}, args.overwrite) as out:
        mni152(out)
    say(f"{args.out}: slices " + ", ".join(f"{a} to {b - 1} ({name})" for name, (a, b) in MNI152_SLABS.items()))


def _case_number(path: Path) -> str:
    match = re.search(r"(\d{4})", path.name)
    if match is None:
        raise DataError(f"'{path}' has no case number of four digits in its name.")
    return match[1]


def synapse_from_nifti(images: Path, labels: Path, out: Path, label_order: str = "btcv") -> None:
    """Make TransUNet's layout of BTCV's volumes, all of them or those of the 30 that are there.

    Intensities are clipped to [-125, 275] HU and scaled to 0 to 1, labels are put in TransUNet's order. Every file is
    read once before the first is written.

    Args:
        images: Folder with volumes whose names hold the case's number (``img0001.nii.gz``).
        labels: Folder with their labels (``label0001.nii.gz``).
        out: Folder to write.
        label_order: A key of ``LABEL_ORDERS``.

    Raises:
        DataError: Volumes have no partner, or are broken; the message has a sentence for each.
    """
    split = load_split("synapse")
    where = dict.fromkeys(split["train_slices"], "train") | dict.fromkeys(split["test"], "test")
    found = []
    for folder in (images, labels):
        found.append(by_name(list_files(folder, NIFTI_SUFFIXES), _case_number))
    lonely = sorted(set(found[0]) ^ set(found[1]))
    if lonely or not found[0]:
        raise DataError(
            f"'{images}' and '{labels}' do not hold the same cases; only one has {', '.join(lonely)}."
            if lonely
            else f"'{images}' holds no NIfTI volume."
        )
    strangers = sorted(set(found[0]) - set(where))
    if strangers:
        raise DataError(
            f"'{found[0][strangers[0]]}' is no case of the split (cases 0001 to 0040, 30 of them labelled)."
        )

    def read(case: str):
        return read_nifti_pair(found[0][case], found[1][case], LABEL_ORDERS[label_order], window=CT_WINDOW)

    cases = sorted(found[0])
    # Read twice instead of kept in memory: thirty volumes are 16 GB.
    all_or_none(lambda case: read(case) and None, cases, title="checking")
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for case in track(cases, "writing"):
        image, label, _ = read(case)
        if where[case] == "train":
            lists["train"] += _write_slices(out / "train_npz", f"case{case}_slice{{:03d}}", image, label)
        else:
            write_h5(out / "test_vol_h5" / f"case{case}.npy.h5", image=image, label=label)
            lists["test"].append(f"case{case}")
        say(f"case {case}: {len(image)} slices, {where[case]}")
    _write_lists(out, lists["train"], lists["test"])
    absent = sorted(set(where) - set(cases))
    if absent:
        say(f"{len(absent)} of the split's 30 cases are not there: {', '.join(absent)}")


def _write_slices(folder: Path, name: str, image: np.ndarray, label: np.ndarray, keys=("image", "label")) -> list[str]:
    names = [name.format(number) for number in range(len(image))]
    for slice_name, pixels, truth in zip(names, image, label, strict=True):
        write_npz(folder / f"{slice_name}.npz", **dict(zip(keys, (pixels, truth), strict=True)))
    return names


def _write_lists(out: Path, train: Sequence[str], test: Sequence[str]) -> None:
    folder = out / "lists" / "lists_Synapse"
    for name, entries in (("train.txt", train), ("test_vol.txt", test)):
        text = "".join(f"{entry}\n" for entry in entries)
        write_beside(folder / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))


def acdc_from_nifti(root: Path, out: Path) -> None:
    """Make MT-UNet's layout of ACDC's 100 training patients: end diastole and end systole, intensities from -1 to 1.

    MT-UNet's own preprocessing was never published; its files are reported to lie in [-1, 1]. Here each volume is
    stretched to that range by its own extremes.

    Args:
        root: Folder with ``patient001/patient001_frame01.nii.gz``, ``..._frame01_gt.nii.gz`` and ``Info.cfg``.
        out: Folder to write.

    Raises:
        DataError: Files are missing or broken; the message has a sentence for each.
    """
    split = load_split("acdc")
    part = dict.fromkeys(split["valid"], "valid") | dict.fromkeys(split["test"], "test")
    patients = sorted(path for path in root.glob("patient[0-9][0-9][0-9]") if path.is_dir())
    if not patients:
        raise DataError(f"'{root}' holds no folder patient001, patient002 and so on.")
    mapping = {number: number for number in range(len(ACDC_CLASSES))}
    jobs = [job for jobs in all_or_none(_phases, patients) for job in jobs]

    def read(job: tuple[str, str, Path, Path]):
        return read_nifti_pair(*job[2:], mapping)

    all_or_none(lambda job: read(job) and None, jobs, title="checking")
    for number, phase, image_path, label_path in track(jobs, "writing"):
        image, label, _ = read((number, phase, image_path, label_path))
        image = window_intensities(image, "extremes")
        folder = out / part.get(number, "train")
        if folder.name == "test":
            write_npz(folder / f"case_{number}_volume_{phase}.npz", img=image, label=label)
        else:
            _write_slices(folder, f"case_{number}_slice{phase}_{{}}", image, label, keys=("img", "label"))
    say(f"{len(patients)} patients, {len(jobs)} volumes")


def _phases(folder: Path) -> list[tuple[str, str, Path, Path]]:
    info = folder / "Info.cfg"
    try:
        text = require_file(info).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{info}' cannot be read.") from error
    # The challenge's own folders hold more than the two volumes that are looked for by name.
    volumes = by_name(list_files(folder, NIFTI_SUFFIXES, say=False))
    jobs = []
    for phase in ("ED", "ES"):
        match = re.search(rf"^{phase}\s*:\s*(\d+)", text, re.MULTILINE)
        if match is None:
            raise DataError(f"'{info}' does not say which frame is {phase}.")
        name = f"{folder.name}_frame{int(match[1]):02d}"
        files = [volumes.get(name), volumes.get(f"{name}_gt")]
        if None in files:
            raise DataError(f"'{folder / name}.nii.gz' or its label '{folder / name}_gt.nii.gz' does not exist.")
        jobs.append((folder.name.removeprefix("patient"), phase, *files))
    return jobs


def mni152(out: Path) -> None:
    """Make a small segmentation data set of the MNI152 brain template.

    The template (symmetric, 1 mm, T1 without skull) is cut across the body's axis into three slabs with gaps, so that
    no slice of one is a neighbour of another's; not across left and right, which are mirror images here. Where
    the maps of grey and white matter sum up to more than a half, a voxel belongs to the larger of the two.

    Args:
        out: Folder to write: ``nifti/{train,val,test}/{images,labels}/mni152_<split>.nii.gz``, and the same as slices
            and volumes in TransUNet's layout in ``synapse/``.

    Raises:
        UserError: nilearn is not installed.
    """
    datasets = require("nilearn.datasets", "medical")
    template = datasets.load_mni152_template(resolution=1)
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    volume = template.get_fdata(dtype=np.float32)
    label = np.where(grey + white > 0.5, np.where(grey >= white, 1, 2), 0).astype(np.uint8)
    for name, (first, last) in MNI152_SLABS.items():
        affine = template.affine.copy()
        affine[:3, 3] += affine[:3, 2] * first
        slab = slice(first, last)
        for kind, array in (("images", volume), ("labels", label)):
            write_nifti(out / "nifti" / name / kind / f"mni152_{name}.nii.gz", array[:, :, slab], affine)
    train: list[str] = []
    for name in MNI152_SLABS:
        paths = [out / "nifti" / name / kind / f"mni152_{name}.nii.gz" for kind in ("images", "labels")]
        image, truth, _ = read_nifti_pair(*paths, {number: number for number in range(3)})
        if name == "test":
            write_h5(out / "synapse" / "test_vol_h5" / "mni152_test.npy.h5", image=image, label=truth)
        else:
            train += _write_slices(out / "synapse" / "train_npz", f"mni152_{name}_slice{{:03d}}", image, truth)
    _write_lists(out / "synapse", train, ["mni152_test"])
