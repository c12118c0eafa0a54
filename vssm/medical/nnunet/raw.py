"""NIfTI folders in nnU-Net's raw layout: the work of ``vssm prepare nnunet``."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..._cli import say
from ..._errors import DataError, UserError
from ..._files import whole_folder, write_beside
from ..._progress import track
from ..files import NIFTI_SUFFIXES, all_or_none, read_nifti, read_nifti_labels, write_nifti
from ..listing import pair_channels
from ..nifti_data import read_nifti_channels

# A case's name, the files of its channels, and that of its labels.
Case = tuple[str, list[Path], Path]


def prepare_nnunet(args: argparse.Namespace) -> None:
    """Make the set of ``vssm prepare nnunet``."""
    if not re.fullmatch(r"Dataset\d{3}_\w+", args.out.name):
        raise UserError(f"nnU-Net wants a folder like Dataset501_Brain in nnUNet_raw, not '{args.out.name}'.")
    record = {"command": "nnunet", "classes": args.classes, "train": args.train, "test": args.test}
    with whole_folder(args.out, record, args.overwrite) as out:
        counts = write_raw(args.folder, out, args.classes, args.channels, args.train, args.test)
    say(f"{args.out}: {counts[0]} cases to train on, {counts[1]} to test")


def write_raw(
    folder: Path,
    out: Path,
    classes: Sequence[str],
    channels: Sequence[str] | None = None,
    train: Sequence[str] = ("train",),
    test: Sequence[str] = (),
) -> tuple[int, int]:
    """Write a data set as nnU-Net reads it. All files are checked before the first is written.

    Args:
        folder: Holds ``<split>/{images,labels}``, see :class:`~vssm.medical.nifti_data.NiftiFolder`.
        out: Folder to write: ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs`` and ``dataset.json``.
        classes: Names of the labels 0, 1 and so on, the background first.
        channels: Names of the channels; ``CT`` makes nnU-Net normalise over the whole data set. None: their numbers.
        train: Splits to train on.
        test: Splits to test on.

    Returns:
        How many cases there are to train on, and to test.

    Raises:
        DataError: Files are missing or broken, two splits have cases of one name, or a label has no class.
    """
    parts: dict[str, list[Case]] = {"Tr": [], "Ts": []}
    where: dict[str, str] = {}
    for part, splits in (("Tr", train), ("Ts", test)):
        for split in splits:
            for name, (images, label) in pair_channels(
                folder / split / "images", folder / split / "labels", NIFTI_SUFFIXES
            ).items():
                if name in where:
                    raise DataError(
                        f"The case '{name}' is in {where[name]} and in {split}: nnU-Net wants one name each."
                    )
                where[name] = split
                parts[part].append((name, images, label))
    cases = parts["Tr"] + parts["Ts"]
    count = len(cases[0][1])
    if any(len(images) != count for _, images, _ in cases):
        raise DataError(f"'{folder}' has splits of different numbers of channels.")
    names = list(channels or map(str, range(count)))
    if len(names) != count:
        raise DataError(f"'{folder}' has {count} channels, and {len(names)} names are given: {', '.join(names)}.")
    mapping = {number: number for number in range(len(classes))}
    all_or_none(lambda case: read_nifti_channels(case[1], case[2], mapping) and None, cases, title="checking")
    for part, members in parts.items():
        for name, images, label in track(members, "writing"):
            for number, path in enumerate(images):
                volume, image = read_nifti(path)
                write_nifti(out / f"images{part}" / f"{name}_{number:04d}.nii.gz", volume, image.affine, image.header)
            truth, image = read_nifti_labels(label)
            write_nifti(out / f"labels{part}" / f"{name}.nii.gz", truth.astype(np.uint8), image.affine, image.header)
    about = {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {name: number for number, name in enumerate(classes)},
        "numTraining": len(parts["Tr"]),
        "file_ending": ".nii.gz",
    }
    text = json.dumps(about, indent=1) + "\n"
    write_beside(out / "dataset.json", lambda path: path.write_text(text, encoding="utf-8"))
    return len(parts["Tr"]), len(parts["Ts"])
