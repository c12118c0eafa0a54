"""Make tar shards from a folder of images, for ``vssm prepare shards``."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .._cli import say
from .._errors import DataError
from .._files import whole_folder
from .._inputs import is_litter
from .._progress import track
from .data import ImageFolder
from .shards import INFO, write_shards

__all__ = ["prepare_shards"]


def prepare_shards(args: argparse.Namespace) -> None:
    """Write each split of a folder of images as shards.

    Args:
        args: ``images`` and ``out``, folders; ``splits``, names or None; ``samples`` and ``megabytes``, the most in a
            shard, or None; ``seed``; ``overwrite``.

    Raises:
        UserError: The images cannot be used, the folder may not be written, or a number is out of range.
    """
    images, out = Path(args.images).expanduser(), Path(args.out).expanduser()
    for name, value in (("samples", args.samples), ("megabytes", args.megabytes)):
        if value is not None and not value > 0:
            raise DataError(f"--{name} is more than 0, not {value}.")
    if args.seed < 0:
        raise DataError(f"--seed is 0 or more, not {args.seed}.")
    if out.resolve().is_relative_to(images.resolve()):
        raise DataError(f"'{out}' lies in '{images}'; give a folder outside of it.")
    per_shard = args.samples or (None if args.megabytes else 10_000)
    most_bytes = None if args.megabytes is None else int(args.megabytes * 2**20)
    record = dict(data="shards", images=str(images), samples=per_shard, megabytes=args.megabytes, seed=args.seed)
    with whole_folder(out, record, args.overwrite) as folder:
        # Listing millions of files takes its time: only where the folder is free.
        parts = _parts(images, args.splits)
        names = {split: part.metainfo["classes"] for split, part in parts.items()}
        if len(set(names.values())) > 1:
            one, other = next((one, other) for one in names for other in names if names[one] != names[other])
            raise DataError(
                f"'{images}': the splits '{one}' and '{other}' have different classes, and none is 'train'."
            )
        splits = {}
        for split, part in parts.items():
            splits[split] = write_shards(
                folder, split, part.reader.samples, per_shard, most_bytes, args.seed, partial(track, title=split)
            )
        # `class_names` is ours, the rest is what timm reads.
        info = dict(name=images.resolve().name, splits=splits, class_names=next(iter(names.values())))
        (folder / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    for split, entry in splits.items():
        say(f"{out}: {split}: {entry['num_samples']} images in {len(entry['filenames'])} shards.")


def _parts(images: Path, wanted: Sequence[str] | None) -> dict[str, ImageFolder]:
    """The splits of a folder; one whose folders are the classes themselves is ``train``, or what was wanted."""
    if not images.is_dir():
        raise DataError(f"The folder '{images}' does not exist.")
    folders = sorted(entry.name for entry in images.iterdir() if entry.is_dir() and not is_litter(entry.name))
    missing = [name for name in wanted or () if name not in folders]
    if "train" in folders or "val" in folders or not missing and wanted:
        if missing:
            raise DataError(f"'{images}' has no folder '{missing[0]}'; it has {', '.join(folders)}.")
        return {split: ImageFolder(str(images), split) for split in wanted or folders}
    if wanted and len(wanted) > 1:
        raise DataError(f"'{images}' has no folder '{missing[0]}', and its own folders are one split.")
    name = wanted[0] if wanted else "train"
    images = images.resolve()
    return {name: ImageFolder(str(images.parent), images.name)}
