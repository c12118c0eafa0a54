"""Make small data sets from what installed packages ship, pack large ones, and check local copies.

vssm prepare digits-coco data/digits-coco
vssm prepare shards data/imagenet data/imagenet-shards
vssm prepare check coco data/coco
"""

import argparse
from collections.abc import Callable
from pathlib import Path


def _digits_coco(args: argparse.Namespace) -> None:
    from ..mm.prepare import digits_coco

    digits_coco(args)


def _digits_ade(args: argparse.Namespace) -> None:
    from ..mm.prepare import digits_ade

    digits_ade(args)


def _cityscapes(args: argparse.Namespace) -> None:
    from ..mm.label_maps import prepare_cityscapes

    prepare_cityscapes(args)


def _coco_164k(args: argparse.Namespace) -> None:
    from ..mm.label_maps import prepare_coco_164k

    prepare_coco_164k(args)


def _coco_10k(args: argparse.Namespace) -> None:
    from ..mm.label_maps import prepare_coco_10k

    prepare_coco_10k(args)


def _check(args: argparse.Namespace) -> int:
    from ..mm.prepare import check

    return check(args)


def _shards(args: argparse.Namespace) -> None:
    from ..classify.prepare import prepare_shards

    prepare_shards(args)


def _synapse_nifti(args: argparse.Namespace) -> None:
    from ..medical.prepare import prepare_synapse

    prepare_synapse(args)


def _acdc_nifti(args: argparse.Namespace) -> None:
    from ..medical.prepare import prepare_acdc

    prepare_acdc(args)


def _mni152(args: argparse.Namespace) -> None:
    from ..medical.prepare import prepare_mni152

    prepare_mni152(args)


def _nnunet(args: argparse.Namespace) -> None:
    from ..medical.nnunet.raw import prepare_nnunet

    prepare_nnunet(args)


def _add_digits(parser: argparse.ArgumentParser, train: int, digits: tuple[int, int], sides: tuple[int, int]) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--train", type=int, default=train, metavar="N", help=f"training images (default: {train})")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="held-out images (default: 200)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of an image (default: 128)")
    parser.add_argument(
        "--digit-size",
        type=int,
        nargs=2,
        default=sides,
        metavar=("MIN", "MAX"),
        help=f"sides of the enlarged scans in pixels (default: {sides[0]} {sides[1]})",
    )
    parser.add_argument(
        "--digits",
        type=int,
        nargs=2,
        default=digits,
        metavar=("MIN", "MAX"),
        help=f"digits in an image, as far as they find a place (default: {digits[0]} {digits[1]})",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    _add_overwrite(parser)


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that this command made")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    kinds = parser.add_subparsers(required=True, metavar="WHAT")

    def command(name: str, function: Callable, help: str) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=help, description=help)
        sub.set_defaults(prepare=function)
        return sub

    digits = "handwritten digits on photographs, in {}'s layout; downloads nothing"
    _add_digits(command("digits-coco", _digits_coco, digits.format("COCO")), 1200, digits=(2, 6), sides=(20, 60))
    # A segmentor learns the classes from single pixels: more digits in an image make it learn in fewer steps.
    _add_digits(command("digits-ade", _digits_ade, digits.format("ADE20K")), 2400, digits=(6, 12), sides=(26, 44))

    about = "label maps of the classes that a segmentor learns, beside those of {}"
    for name, function, whose in (
        ("cityscapes", _cityscapes, "Cityscapes (gtFine/{train,val}/CITY)"),
        ("coco-stuff164k", _coco_164k, "COCO-Stuff 164k (annotations/{train,val}2017)"),
    ):
        sub = command(name, function, about.format(whose))
        sub.add_argument("path", metavar="FOLDER", help="the data set's folder")
        sub.add_argument("--overwrite", action="store_true", help="make the maps anew that are there")

    sub = command("coco-stuff10k", _coco_10k, "COCO-Stuff 10k as mmseg reads it, from the published archive")
    sub.add_argument("source", metavar="SOURCE", help="the unpacked archive: images, annotations, imageLists")
    sub.add_argument("out", metavar="FOLDER", help="the folder to make")
    _add_overwrite(sub)

    sub = command("check", _check, "check a local copy of a data set, or of one in its layout")
    sub.add_argument("layout", choices=("coco", "ade20k", "cityscapes", "coco-stuff164k", "coco-stuff10k"))
    sub.add_argument("path", metavar="PATH", help="the data set's folder")
    sub.add_argument(
        "--counts",
        type=int,
        nargs=2,
        metavar=("TRAIN", "VAL"),
        help="images expected (default: as many as were published)",
    )
    sub.add_argument("--sample", type=int, default=200, metavar="N", help="files of each part to open (default: 200)")

    sub = command("shards", _shards, "a folder of labelled images to tar shards, for training sets of many files")
    sub.add_argument("images", metavar="IMAGES", help="IMAGES/<split>/<class>/<image>, or IMAGES/<class>/<image>")
    sub.add_argument("out", metavar="OUT", help="the folder to make")
    sub.add_argument("--splits", nargs="+", metavar="NAME", help="the splits to take (default: all folders)")
    sub.add_argument("--samples", type=int, metavar="N", help="most images in a shard (default: 10000)")
    sub.add_argument("--megabytes", type=float, metavar="MB", help="most megabytes of images in a shard (default: any)")
    sub.add_argument("--seed", type=int, default=0, help="the order; the same seed gives the same shards (default: 0)")
    _add_overwrite(sub)

    about = "BTCV's abdominal CT (NIfTI) to slices and volumes as TransUNet lays them out"
    sub = command("synapse-nifti", _synapse_nifti, about)
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder with img0001.nii.gz and so on")
    sub.add_argument("labels", type=Path, metavar="LABELS", help="folder with label0001.nii.gz and so on")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    sub.add_argument(
        "--label-order",
        choices=("btcv", "btcv8", "transunet"),
        default="btcv",
        help="what the numbers in LABELS stand for (default: btcv, the challenge's 13 organs)",
    )
    _add_overwrite(sub)

    sub = command("acdc-nifti", _acdc_nifti, "ACDC's training patients (NIfTI) to slices and volumes")
    sub.add_argument("root", type=Path, metavar="ROOT", help="folder with patient001/ to patient100/")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    _add_overwrite(sub)

    about = "the MNI152 brain template that nilearn ships, in slabs, with grey and white matter"
    sub = command("mni152", _mni152, about)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder to write: OUT/nifti and OUT/synapse")
    _add_overwrite(sub)

    sub = command("nnunet", _nnunet, "a folder of NIfTI volumes in nnU-Net's raw layout")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="folder with train/images, train/labels and so on")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder to write, such as nnUNet_raw/Dataset501_Brain")
    sub.add_argument("--classes", nargs="+", required=True, metavar="NAME", help="of the labels 0, 1, ...; 0 first")
    sub.add_argument("--channels", nargs="+", metavar="NAME", help="of the channels, such as CT (default: numbers)")
    sub.add_argument("--train", nargs="+", default=["train"], metavar="SPLIT", help="to train on (default: train)")
    sub.add_argument("--test", nargs="+", default=[], metavar="SPLIT", help="to test on (default: none)")
    _add_overwrite(sub)


def run(args: argparse.Namespace) -> int | None:
    """Do what the arguments say; return the exit code or None."""
    return args.prepare(args)
