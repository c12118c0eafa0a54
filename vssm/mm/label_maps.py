"""Data sets whose labels are maps of classes: where their files lie, what the numbers are, how they are prepared.

A pixel's number in the published files is not the one that a segmentor learns, but for ADE20K: `vssm prepare` writes
maps of the latter, whose names end in `_labelTrainIds.png`, beside the published ones.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmseg.datasets import BaseSegDataset
from PIL import Image
from torch import nn

from .._cli import say
from .._errors import DataError
from .._files import whole_folder, write_beside
from .._inputs import decode_image, require_file
from .._optional import require
from .._progress import track
from ..engine.checks import register_check
from .loading import LoadLabelMap

__all__ = ["LAYOUTS", "MapLayout", "check_label_maps", "prepare_cityscapes", "prepare_coco_10k", "prepare_coco_164k"]

_TRAIN_IDS = "_labelTrainIds.png"
# Cityscapes' own table: the 19 classes that are evaluated have these ids, in this order.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# COCO numbers things and stuff from 1 to 182 and leaves these out; the maps of the 164k version count from 0.
_COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
_COCO_IDS = tuple(number for number in range(1, 183) if number not in _COCO_GAPS)


@dataclass(frozen=True)
class MapLayout:
    """How the images and label maps of a data set lie on disk.

    Attributes:
        splits: The folders of images and of label maps by the split's name, for training first.
        counts: Images for training and for validation.
        image_suffix: What an image's name ends in; the rest is the name of its label map, too.
        map_suffix: What a label map's name ends in.
        highest: The largest number of a class.
        unlabelled: The number of pixels that nobody labelled.
        deep: Whether a split's folders hold folders, one for each city.
        command: What makes the label maps; empty where they are published.
    """

    splits: Mapping[str, tuple[str, str]]
    counts: tuple[int, int]
    image_suffix: str
    map_suffix: str
    highest: int
    unlabelled: int
    deep: bool = False
    command: str = ""


LAYOUTS = {
    "ade20k": MapLayout(
        {split: (f"images/{split}", f"annotations/{split}") for split in ("training", "validation")},
        *((20210, 2000), ".jpg", ".png", 150, 0),
    ),
    "cityscapes": MapLayout(
        {split: (f"leftImg8bit/{split}", f"gtFine/{split}") for split in ("train", "val")},
        *((2975, 500), "_leftImg8bit.png", f"_gtFine{_TRAIN_IDS}", 18, 255),
        deep=True,
        command="vssm prepare cityscapes FOLDER",
    ),
    "coco-stuff164k": MapLayout(
        {split: (f"images/{split}", f"annotations/{split}") for split in ("train2017", "val2017")},
        *((118287, 5000), ".jpg", _TRAIN_IDS, 170, 255),
        command="vssm prepare coco-stuff164k FOLDER",
    ),
    "coco-stuff10k": MapLayout(
        {split: (f"images/{split}", f"annotations/{split}") for split in ("train2014", "test2014")},
        *((9000, 1000), ".jpg", _TRAIN_IDS, 171, 0),
        command="vssm prepare coco-stuff10k SOURCE FOLDER",
    ),
}
# The layouts by mmseg's classes of data sets, and whether 0 is unlabelled.
_LAYOUT_OF = {
    ("CityscapesDataset", False): "cityscapes",
    ("COCOStuffDataset", False): "coco-stuff164k",
    ("COCOStuffDataset", True): "coco-stuff10k",
}

# Where steps of a pipeline that hold others have these.
_HOLDERS = ("transforms", "subroutines")


@register_check
def check_label_maps(model: nn.Module, dataset: Any) -> None:
    """Refuse a data set of mmseg whose first or last label map is not there: mmseg notices when it is opened.

    What reads the maps is told how many classes there are, so that it refuses numbers of none.

    Raises:
        DataError: It is not; the message says what makes it.
    """
    if not isinstance(dataset, BaseSegDataset) or len(dataset) == 0:
        return
    for number in (0, len(dataset) - 1):
        path = dataset.get_data_info(number).get("seg_map_path")
        if path and "://" not in path and not Path(path).exists():
            layout = LAYOUTS.get(_LAYOUT_OF.get((type(dataset).__name__, bool(dataset.reduce_zero_label)), ""))
            made = f"; `{layout.command}` makes the label maps" if layout else ""
            raise DataError(f"The label map '{path}' does not exist{made}.")
    classes = dataset.metainfo.get("classes")
    for loader in _loaders(dataset.pipeline):
        loader.classes = len(classes) if classes else None
        loader.ignored = tuple({255, dataset.ignore_index})


def _loaders(step: Any) -> Iterator[LoadLabelMap]:
    """What reads label maps in a pipeline, inside of steps that hold others too."""
    if isinstance(step, LoadLabelMap):
        yield step
        return
    parts = step if isinstance(step, list | tuple) else [getattr(step, name, ()) for name in _HOLDERS]
    for part in parts:
        yield from _loaders(part)


def _table(numbers: Sequence[int], first: int, unlabelled: int, known: Sequence[int]) -> np.ndarray:
    """What each number of a published map becomes, int64 (256,); -1 where it is none of the data set's.

    Args:
        numbers: Of the classes, in order.
        first: What the first of them becomes.
        unlabelled: What the others become.
        known: The others.
    """
    table = np.full(256, -1)
    table[list(known)] = unlabelled
    table[list(numbers)] = np.arange(first, first + len(numbers))
    return table


def _save_renumbered(labels: np.ndarray, table: np.ndarray, source: Path, target: Path) -> None:
    known = np.issubdtype(labels.dtype, np.integer) and labels.ndim == 2 and labels.size
    values = np.unique(labels) if known else np.empty(0, dtype=int)
    wrong = [int(value) for value in values if not 0 <= value < 256 or table[value] < 0]
    if not known or wrong:
        what = f"holds {wrong[0]}, which is the number of no class" if wrong else "is no map of whole numbers"
        raise DataError(f"The label map '{source}' {what}.")
    write_beside(target, Image.fromarray(table[labels].astype(np.uint8)).save)


def _renumber(root: Path, folder: str, source: str, target: str, table: np.ndarray, overwrite: bool) -> int:
    """Write each published map of a folder once more, with a segmentor's numbers; return how many are there."""
    where = root / folder
    if not where.is_dir():
        raise DataError(f"The folder '{where}' does not exist.")
    files = sorted(path for path in where.rglob(f"*{source}") if not path.name.endswith(target))
    if not files:
        raise DataError(f"The folder '{where}' holds no files that end in {source}.")
    for path in track(files, folder):
        made = path.with_name(path.name.removesuffix(source) + target)
        if overwrite or not made.exists():
            _save_renumbered(np.asarray(decode_image(path, "Label map", turn=False)), table, path, made)
    return len(files)


def _prepare(args: argparse.Namespace, name: str, source: str, target: str, table: np.ndarray) -> None:
    layout, root = LAYOUTS[name], Path(args.path).expanduser()
    folders = [maps for _, maps in layout.splits.values()]
    counts = [_renumber(root, folder, source, target, table, args.overwrite) for folder in folders]
    say(f"{root}: label maps of {' + '.join(map(str, counts))} images end in {target}.")


def prepare_cityscapes(args: argparse.Namespace) -> None:
    """Write maps of the 19 classes beside those of the 34 ids of Cityscapes; the arguments are of `vssm prepare`.

    Raises:
        DataError: A folder is missing or empty, or a map holds numbers that are none of the data set's.
    """
    table = _table(_CITYSCAPES_IDS, 0, 255, [*range(34), 255])
    _prepare(args, "cityscapes", "_labelIds.png", _TRAIN_IDS, table)


def prepare_coco_164k(args: argparse.Namespace) -> None:
    """Write maps of the 171 classes beside the published ones of COCO-Stuff 164k; as above."""
    table = _table([number - 1 for number in _COCO_IDS], 0, 255, [255])
    _prepare(args, "coco-stuff164k", ".png", _TRAIN_IDS, table)


def prepare_coco_10k(args: argparse.Namespace) -> None:
    """Lay COCO-Stuff 10k out as mmseg reads it, from the published archive; as above.

    Raises:
        DataError: Something is missing from the archive, or damaged.
        FileError: The folder may not be written.
    """
    source, table = Path(args.source).expanduser(), _table(_COCO_IDS, 1, 0, [0])
    splits = {split: _listed(source / "imageLists" / f"{split}.txt") for split in ("train", "test")}
    with whole_folder(args.out, {"data": "coco-stuff10k"}, args.overwrite) as folder:
        for split, names in splits.items():
            for kind in ("images", "annotations"):
                (folder / kind / f"{split}2014").mkdir(parents=True)
            for name in track(names, split):
                image = require_file(source / "images" / f"{name}.jpg", "Image")
                shutil.copyfile(image, folder / "images" / f"{split}2014" / image.name)
                labels = source / "annotations" / f"{name}.mat"
                made = folder / "annotations" / f"{split}2014" / f"{name}{_TRAIN_IDS}"
                _save_renumbered(_matlab_labels(labels), table, labels, made)
    say(f"{args.out}: {len(splits['train'])} + {len(splits['test'])} images of COCO-Stuff 10k.")


def _listed(path: Path) -> list[str]:
    """The names in a list, a line each."""
    names = [line.strip() for line in require_file(path, "List").read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    if not names or any("/" in name or "\\" in name for name in names):
        raise DataError(f"'{path}' is no list of images' names.")
    return names


def _matlab_labels(path: Path) -> np.ndarray:
    """The labels in a file of MATLAB's, (H, W)."""
    loadmat = require("scipy.io", "data").loadmat
    try:
        return np.asarray(loadmat(require_file(path, "Label map"))["S"])
    except DataError:
        raise
    except Exception as error:  # a reader of many formats, each with errors of its own
        raise DataError(f"The label map '{path}' cannot be read.") from error
