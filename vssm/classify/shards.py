"""Labelled images in tar shards, in the layout of webdataset that timm's ``wds/`` data sets have.

A folder holds ``_info.json`` and tar files. In these the files of one sample follow one another and differ in the part
after the first dot: ``00000017.jpg`` and ``00000017.cls``, whose text is the number of the class. ``_info.json`` names
for each split the shards and how many samples each holds.

Shards lie on a disk or on a mounted store and are read at any place, so a sample has a number like a file of a folder,
and mmengine's own samplers, evaluation and resuming hold for them. :class:`ShardSampler` keeps the places that are
read at a time close together.
"""

import bisect
import io
import itertools
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from PIL import Image
from torch.utils.data import Sampler

from .._errors import DataError, did_you_mean
from .._inputs import picture_suffixes, read_json, read_rgb, require_file, warn_once
from ..engine.config import ConfigError

__all__ = ["INFO", "ShardSampler", "Shards", "write_shards"]

INFO = "_info.json"
# Names that timm looks for.
_INFOS = (INFO, "info.json")
_READ_AT = hasattr(os, "pread")


@dataclass(frozen=True)
class _Sample:
    """Where a sample lies in its shard: byte offsets and sizes."""

    name: str
    image: tuple[int, int] | None
    label: tuple[int, int] | None


class Shards(Sized):
    """The samples of a split, in the order of the shards.

    What is read of a shard's table of contents is kept for the shards read last.

    Args:
        root: The folder with ``_info.json``.
        split: A split that it names.
        input_key: Suffixes that the image of a sample may have, as timm writes them: ``"jpg;png"``; None: those of any
            picture.
        target_key: The field of the sample's ``json`` file that holds the class; None: the field that ``_info.json``
            names as ``alt_label``, else the ``cls`` file.
        kept_samples: Of how many samples the places are kept.
        kept_files: How many shards stay open.

    Attributes:
        lengths: How many samples each shard holds.
        classes: Names of the classes, where ``_info.json`` has ``class_names``.

    Raises:
        DataError: A file is missing or makes no sense, the split is unknown, or it has no samples.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "train",
        input_key: str | None = None,
        target_key: str | None = None,
        kept_samples: int = 200_000,
        kept_files: int = 64,
    ):
        if re.match(r"[a-z0-9]+://|pipe:", str(root)):
            raise DataError(f"'{root}' is an address; shards are read from a folder: mount the store, or copy them.")
        self.root = Path(root)
        source, info = _read_info(self.root)
        splits = info.get("splits")
        if not isinstance(splits, Mapping) or split not in splits:
            names = list(splits) if isinstance(splits, Mapping) else []
            raise DataError(
                f"'{source}' has no split '{split}'{did_you_mean(split, names)}; it has {', '.join(names) or 'none'}."
            )
        part = splits[split]
        try:
            self.names = [str(name) for name in part["filenames"]]
            self.lengths = [_count(length) for length in part["shard_lengths"]]
            total = _count(part.get("num_samples", sum(self.lengths)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"'{source}' does not give the split '{split}' as filenames and shard_lengths: {error!r}."
            ) from error
        if len(self.names) != len(self.lengths) or sum(self.lengths) != total or min(self.lengths, default=0) < 0:
            raise DataError(
                f"'{source}' contradicts itself: the split '{split}' has {len(self.names)} filenames, "
                f"{len(self.lengths)} shard_lengths with the sum {sum(self.lengths)}, and num_samples {total}."
            )
        if not total:
            raise DataError(f"The split '{split}' of '{source}' has no samples.")
        for name in self.names:
            if os.path.isabs(name) or ".." in Path(name).parts:
                # Whoever made the folder would choose which files of this machine are read.
                raise DataError(f"'{source}' names the shard '{name}'; shards lie in the folder of that file.")
            require_file(self.root / name, "Shard")
        classes = info.get("class_names") or ()
        if not isinstance(classes, list | tuple):
            raise DataError(f"'{source}' gives class_names as {classes!r}, which is no list of names.")
        self.classes = tuple(map(str, classes))
        self._ends = list(itertools.accumulate(self.lengths))
        self._suffixes = (
            {suffix.removeprefix(".") for suffix in picture_suffixes()}
            if input_key is None
            else {suffix.strip().lower() for suffix in input_key.split(";")}
        )
        self._field = target_key or part.get("alt_label") or None
        self._kept_samples, self._kept_files = kept_samples, kept_files
        self._forget()

    def _forget(self) -> None:
        self._tables: OrderedDict[int, list[_Sample]] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._looks: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are started by spawning: open files do not travel.
        return {key: value for key, value in vars(self).items() if key not in ("_tables", "_files", "_looks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __del__(self) -> None:
        for handle in getattr(self, "_files", {}).values():
            os.close(handle)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an image in RGB and its class number.

        Raises:
            DataError: The shard is damaged or is not the one that ``_info.json`` describes, or the sample cannot be
                read; the message names both.
            IndexError: There are fewer samples.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} samples, not {index + 1}.")
        shard = bisect.bisect_right(self._ends, index)
        sample = self._table(shard)[index - self._ends[shard] + self.lengths[shard]]
        name = f"{sample.name}' of shard '{self.root / self.names[shard]}"
        if sample.image is None or sample.label is None:
            lacks = "image" if sample.image is None else f"label (a {'json' if self._field else 'cls'} file)"
            raise DataError(f"Sample '{name}' has no {lacks}.")
        label = self._label(name, self._read(shard, *sample.label))
        return read_rgb(name, "Sample", self._read(shard, *sample.image)), label

    def _label(self, name: str, text: bytes) -> int:
        try:
            if self._field is None:
                return int(text)
            value = json.loads(text)
            for key in self._field.split("/"):
                value = value[key]
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"the field '{self._field}' is {value!r}")
            return value
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"Sample '{name}' has no class number: {error}.") from error

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        path = self.root / self.names[shard]
        try:
            handle = self._files.pop(shard, None)
            if handle is None:
                handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._files[shard] = handle
            while len(self._files) > self._kept_files:
                os.close(self._files.popitem(last=False)[1])
            if _READ_AT:
                # Workers that were started by forking share the file's position with the main process.
                return os.pread(handle, size, offset)
            os.lseek(handle, offset, os.SEEK_SET)
            return os.read(handle, size)
        except OSError as error:
            raise DataError(f"Shard '{path}' cannot be read: {error.strerror or error}.") from error

    def _table(self, shard: int) -> list[_Sample]:
        table = self._tables.pop(shard, None)
        if table is None:
            self._looks[shard] = self._looks.get(shard, 0) + 1
            if self._looks[shard] == 5:
                warn_once(
                    f"'{self.root}': the order of the samples jumps between too many shards, which is slow; a sampler "
                    "of type ShardSampler reads near places together."
                )
            table = list(_samples(self.root / self.names[shard], self._suffixes, "json" if self._field else "cls"))
            if len(table) != self.lengths[shard]:
                raise DataError(
                    f"Shard '{self.root / self.names[shard]}' holds {len(table)} samples, and not the "
                    f"{self.lengths[shard]} that {INFO} says: it is damaged, incomplete or another."
                )
        self._tables[shard] = table
        while len(self._tables) > 1 and sum(map(len, self._tables.values())) > self._kept_samples:
            self._tables.popitem(last=False)
        return table


def _count(value: Any) -> int:
    # Sums and positions are numbers of 64 bits.
    if not isinstance(value, int) or isinstance(value, bool) or not abs(value) < 2**40:
        raise ValueError(f"{value!r} is no number of samples")
    return value


def _read_info(root: Path) -> tuple[Path, Mapping[str, Any]]:
    path = next((root / name for name in _INFOS if (root / name).exists()), None)
    if path is None:
        raise DataError(f"'{root}' has no {INFO}, which names the splits and their shards.")
    try:
        info = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist.") from error
    if not isinstance(info, Mapping):
        raise DataError(f"'{path}' holds no table of splits.")
    return path, info


def _samples(path: Path, suffixes: set[str], label: str) -> Iterator[_Sample]:
    """Read a shard's headers; the contents of its files are passed over."""
    size = require_file(path, "Shard").stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for name, members in itertools.groupby(_members(archive), key=lambda member: _split_name(member.name)[0]):
                places: dict[str, tuple[int, int]] = {}
                for member in members:
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"it ends within '{member.name}'")
                    suffix = _split_name(member.name)[1]
                    kind = "image" if suffix in suffixes else "label" if suffix == label else ""
                    if kind:
                        places.setdefault(kind, (member.offset_data, member.size))
                yield _Sample(name, places.get("image"), places.get("label"))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"Shard '{path}' is damaged or no plain tar file: {str(error).rstrip('.')}.") from error


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        # tarfile would keep them all.
        archive.members = []
        # Names that begin so are notes about the archive, in webdataset's layout and in macOS's.
        if member.isreg() and not member.issparse() and not os.path.basename(member.name).startswith(("__", ".")):
            yield member


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


@DATA_SAMPLERS.register_module()
class ShardSampler(Sampler):
    """Shuffle shards, and samples among those that lie near one another.

    In each epoch the shards are put into a new order and their samples numbered through. Every process takes an equal
    range of these numbers, the last ones filled up from the first as in mmengine's DefaultSampler, and shuffles blocks
    of ``shuffle_size``. The order follows from the run's seed, the epoch and the number of processes alone.

    Args:
        dataset: A data set with ``shard_lengths``.
        shuffle: Shuffle; without it the samples come in their own order.
        shuffle_size: Samples in a block: how far apart samples of different shards can meet, and how many are read
            from at a time.
        seed: None: one on which the processes agree.

    Raises:
        ConfigError: The data set has no shards, or a block no sample.
    """

    def __init__(self, dataset: Any, shuffle: bool = True, shuffle_size: int = 16384, seed: int | None = None):
        lengths = getattr(dataset, "shard_lengths", None)
        if lengths is None:
            raise ConfigError(f"ShardSampler needs data in shards; for {type(dataset).__name__} use DefaultSampler.")
        if shuffle_size < 1:
            raise ConfigError(f"ShardSampler's shuffle_size is 1 or more, not {shuffle_size}.")
        self.rank, self.world_size = get_dist_info()
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.shuffle = shuffle
        self.shuffle_size = shuffle_size
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-int(self.lengths.sum()) // self.world_size)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        ends = np.cumsum(self.lengths[order])
        # What to add to a number to get from its place in the new order to the one in the data set.
        shifts = (np.cumsum(self.lengths) - self.lengths)[order] - (ends - self.lengths[order])
        first, last = self.rank * len(self), (self.rank + 1) * len(self)
        for start in range(first, last, self.shuffle_size):
            numbers = np.arange(start, min(start + self.shuffle_size, last)) % ends[-1]
            if self.shuffle:
                random.shuffle(numbers)
            yield from (numbers + shifts[np.searchsorted(ends, numbers, side="right")]).tolist()


def write_shards(
    folder: Path,
    split: str,
    samples: Sequence[tuple[str, int]],
    per_shard: int | None = 10_000,
    most_bytes: int | None = None,
    seed: int = 0,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Write labelled images as tar shards, in an order drawn once for all; the files go in as they are.

    Args:
        folder: Where to write; it exists.
        split: Name of the split, with which the shards' names begin.
        samples: Paths of image files, and their class numbers.
        per_shard: Samples in a shard, at most; None: any number.
        most_bytes: Size of a shard's images, at most, unless a single one is larger; None: any size.
        seed: The same seed and files give the same bytes.
        progress: Takes the numbers of the samples and returns an iterable of them.

    Returns:
        The split's entry of ``_info.json``.

    Raises:
        DataError: A file cannot be read.
    """
    order = np.random.default_rng(seed).permutation(len(samples))
    steps = iter(progress(range(len(samples))))
    lengths: dict[str, int] = {}
    for group in _groups([samples[index] for index in order], per_shard, most_bytes):
        shard = f"{split}-{len(lengths):05d}.tar"
        lengths[shard] = len(group)
        with tarfile.open(folder / shard, "w", format=tarfile.USTAR_FORMAT) as archive:
            for path, label in group:
                stem, suffix = os.path.splitext(os.path.basename(path))
                # A first dot would begin the suffix, and the number keeps equal names apart.
                name = f"{next(steps):08d}-{re.sub('[^A-Za-z0-9_-]', '_', stem)[:60]}"
                try:
                    data = require_file(path, "Image").read_bytes()
                except OSError as error:
                    raise DataError(f"Image '{path}' cannot be read: {error.strerror or error}.") from error
                _add(archive, ((name + suffix.lower(), data), (f"{name}.cls", str(label).encode())))
    # Its end is what a progress bar waits for.
    next(steps, None)
    return dict(name=split, num_samples=len(samples), filenames=list(lengths), shard_lengths=list(lengths.values()))


def _groups(
    samples: Sequence[tuple[str, int]], per_shard: int | None, most_bytes: int | None
) -> Iterator[list[tuple[str, int]]]:
    group: list[tuple[str, int]] = []
    filled = 0
    for path, label in samples:
        size = require_file(path, "Image").stat().st_size if most_bytes else 0
        if group and (len(group) == per_shard or (most_bytes is not None and filled + size > most_bytes)):
            yield group
            group, filled = [], 0
        group.append((path, label))
        filled += size
    if group:
        yield group


def _add(archive: tarfile.TarFile, files: Iterable[tuple[str, bytes]]) -> None:
    for name, data in files:
        # Times and owners stay at zero, so that the same files give the same bytes.
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
