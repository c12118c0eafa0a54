"""Data sets by timm's names: tar shards, Hugging Face's data sets, TensorFlow's, torchvision's.

:class:`TimmDataset` has samples with numbers, which mmengine's samplers deal out. :class:`TimmStream` has an order of
its own and deals itself out. Both give what :class:`~vssm.classify.classifier.TimmClassifier` takes once batched.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.dist import get_world_size
from mmengine.registry import DATASETS
from PIL import Image
from timm.data import ImageDataset, create_dataset, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .._errors import DataError, MissingExtraError, UserError
from .._inputs import read_rgb, warn_once
from .._optional import require
from ..engine.config import ConfigError, check_options
from .shards import Shards

__all__ = ["TimmDataset", "TimmStream"]

# What a prefix of timm's names needs besides timm: the module, and the extra that holds it.
_PACKAGES = {
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "tfds": ("tensorflow_datasets", None),
}
_STREAMS = ("hfids", "tfds")


class _Labelled:
    """What both kinds of data set have in common.

    Attributes:
        metainfo: ``classes``, the names of the classes, where the data know them.
    """

    def _name_classes(self, where: str, names: tuple[str, ...]) -> None:
        self._where = where
        self._most = len(names) or None
        self.metainfo = {"classes": names} if names else {}

    def expect_classes(self, count: int) -> None:
        """Refuse labels that a model with ``count`` classes has not; where the data name their classes, these count."""
        self._most = self._most or count

    def _sample(self, image: Image.Image, label: Any) -> dict[str, Any]:
        label = int(label)
        if label < 0 or (self._most is not None and label >= self._most):
            bounds = "below 0" if label < 0 else f"but the classes end at {self._most - 1}"
            raise DataError(f"{self._where} has a sample of the class {label}, {bounds}.")
        return {"inputs": self.transform(image), "labels": label}

    @staticmethod
    def transform_from(cfg: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return the transform of a data set's config, without looking at the data.

        Raises:
            ConfigError: An option of ``cfg["transform"]`` is unknown.
        """
        options = cfg.get("transform") or {}
        check_options(create_transform, options, "dataset.transform")
        return create_transform(**options)


@DATASETS.register_module()
class TimmDataset(_Labelled, Dataset):
    """A data set by timm's name whose samples can be read in any order.

    ``wds/`` stands for tar shards in a folder, see :class:`~vssm.classify.shards.Shards`: timm itself reads them as
    a stream, in which a process that got fewer samples repeats some and one that got more leaves some out, and passes
    over what it cannot read. ``hfds/NAME`` is a data set of Hugging Face's hub, or a local folder of Parquet files;
    ``torch/NAME`` one of torchvision's. Classes keep their numbers.

    Args:
        name: timm's name. That of shards is only a name: ``"wds/imagenet"``.
        root: The folder of shards; for the others where downloads are kept. None: the environment variable ``env``,
            else ``default_root``.
        split: A split that the data have.
        transform: Arguments of ``timm.data.create_transform``.
        input_key: The field with the image, where it is not the usual one; for shards its suffixes, ``"jpg;png"``.
        target_key: The field with the class, where it is not the usual one.
        class_map: A file with the names of the classes in the order of their numbers, as timm takes it; not for shards.
        download: Download the data where they are missing.
        env: Environment variable that holds the root where the config does not say it.
        default_root: The root where neither says it.

    Attributes:
        shard_lengths: How many samples each shard holds; None for data without shards.

    Raises:
        MissingExtraError: What the name needs is not installed.
        DataError: The data cannot be opened, or lack the split.
        ConfigError: The name is one of a stream, or an option is unknown.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        split: str = "train",
        transform: Mapping[str, Any] | None = None,
        input_key: str | None = None,
        target_key: str | None = None,
        class_map: str | None = None,
        download: bool = False,
        env: str | None = None,
        default_root: str | None = None,
    ):
        self.transform = self.transform_from({"transform": transform})
        root = root or (os.environ.get(env) if env else None) or default_root
        root = None if root is None else os.path.expanduser(root)
        prefix = _prefix(name)
        if prefix in _STREAMS:
            raise ConfigError(f"'{name}' is a stream: say type='TimmStream' and sampler=None for it.")
        self.shard_lengths: list[int] | None = None
        if prefix == "wds":
            if root is None:
                raise ConfigError(f"'{name}' needs a root, the folder with the shards.")
            if class_map or download:
                raise ConfigError(f"'{name}' takes no {'class_map' if class_map else 'download'}.")
            self.source = Shards(root, split, input_key, target_key)
            self.shard_lengths = self.source.lengths
            classes = self.source.classes
        else:
            options = dict(class_map=class_map, download=download, input_key=input_key, target_key=target_key)
            self.source = _open(name, root, split, {key: value for key, value in options.items() if value})
            classes = _classes_of(getattr(self.source, "reader", self.source))
        self._name_classes(f"The split '{split}' of '{name}'" + (f" in '{root}'" if root else ""), classes)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        timm replaces an unreadable sample by its neighbour, which would count the neighbour twice in an evaluation.

        Raises:
            DataError: The sample cannot be read, or is of a class that there is not; the message names it.
        """
        if not isinstance(self.source, ImageDataset):
            image, label = self.source[index]
            return self._sample(image.convert("RGB"), label)
        name = f"{self._where}, sample {index}"
        with _one_sentence(f"{name}, cannot be read"):
            file, label = self.source.reader[index]
            with file:
                data = file.read()
        return self._sample(read_rgb(name, "Image", data), label)


@DATASETS.register_module()
class TimmStream(_Labelled, IterableDataset):
    """A data set by timm's name whose samples come one after another: ``hfids/NAME`` and ``tfds/NAME``.

    timm deals the samples out to processes and workers. While training each worker gives whole batches, all workers
    equally many, for which it repeats some of its samples or leaves some out; which ones changes with the order, that
    is with the epoch. In an evaluation each sample comes exactly once, and processes may have different numbers of
    them. Its loader has ``sampler=None``.

    Args:
        name: timm's name; a local folder of Parquet files is ``"hfids/" + folder``.
        root: Where downloads are kept.
        split: A split that the data have.
        transform: Arguments of ``timm.data.create_transform``.
        is_training: Shuffle, in another order in each epoch, and give whole batches.
        num_samples: How many samples the split has, where the data do not say it.
        input_key: The field with the image, where it is not the usual one.
        target_key: The field with the class, where it is not the usual one.
        class_map: A file with the names of the classes in the order of their numbers, as timm takes it.
        download: Download the data first instead of streaming them.
        seed: Fixes the order, together with the epoch.

    Raises:
        MissingExtraError: What the name needs is not installed.
        DataError: The data cannot be opened, lack the split, or do not say how many samples they have.
        ConfigError: The name is none of a stream, or an option is unknown.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        split: str = "train",
        transform: Mapping[str, Any] | None = None,
        is_training: bool = False,
        num_samples: int | None = None,
        input_key: str | None = None,
        target_key: str | None = None,
        class_map: str | None = None,
        download: bool = False,
        seed: int = 42,
    ):
        self.transform = self.transform_from({"transform": transform})
        self._prefix = _prefix(name)
        if self._prefix not in _STREAMS:
            raise ConfigError(f"TimmStream reads {' and '.join(f'{one}/' for one in _STREAMS)}, not '{name}'.")
        options = dict(
            input_key=input_key,
            target_key=target_key,
            class_map=class_map,
            num_samples=num_samples,
            download=download,
        )
        options = {key: value for key, value in options.items() if value}
        self.reader = _open(name, root, split, dict(options, is_training=is_training, seed=seed)).reader
        self.is_training, self._seed = is_training, seed
        self._loader: tuple[int, int] | None = None
        self._name_classes(f"The split '{split}' of '{name}'", _classes_of(self.reader))

    def set_loader(self, loader: DataLoader) -> None:
        """Learn the loader's batch size and number of workers, which say how many samples a process gives.

        Raises:
            ConfigError: Several processes read ``tfds/`` without workers: timm would give each of them all samples.
        """
        if self._prefix == "tfds" and get_world_size() > 1 and not loader.num_workers:
            raise ConfigError(f"{self._where} needs a num_workers of 1 or more where several processes read it.")
        self._loader = (loader.batch_size, loader.num_workers)
        self.reader.batch_size = loader.batch_size
        self.reader.set_loader_cfg(num_workers=loader.num_workers)
        total, count = len(self) * get_world_size(), int(self.reader.num_samples)
        # TensorFlow's reader repeats the data before it shuffles them.
        if self.is_training and (total != count or self._prefix == "tfds"):
            warn_once(
                f"{self._where}: an epoch has {total} samples, equally many for each worker, and the data {count}; "
                "some come twice or not at all."
            )

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch."""
        self.reader.set_epoch(epoch)
        # What TensorFlow's reader shuffles with outside of a worker process, which has a seed of its own.
        self.reader.worker_seed = self._seed + epoch

    def __len__(self) -> int:
        """The samples of this process while training; in an evaluation those of all, the most that one may have."""
        if self._loader is None:
            raise ConfigError("A TimmStream needs the runner of this package, not FlexibleRunner.")
        return len(self.reader) if self.is_training else int(self.reader.num_samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        reader, world = self.reader, get_world_size()
        # A reader that was used before would go on with the state of its generators.
        reader.ds = None
        what = f"{self._where}: a sample cannot be read"
        try:
            with _one_sentence(what):
                if not self.is_training:
                    # The samples are dealt out here. A reader that then takes itself for the only one neither repeats
                    # samples for the sake of equal numbers nor leaves any out.
                    reader._lazy_init()
                    reader.dist_num_replicas = 1
                samples = iter(reader)
            while True:
                with _one_sentence(what):
                    sample = next(samples, None)
                if sample is None:
                    return
                yield self._sample(*sample)
        finally:
            reader.dist_num_replicas = world


def _prefix(name: str) -> str:
    prefix, slash, _ = name.partition("/")
    return prefix.lower() if slash else ""


def _open(name: str, root: str | None, split: str, options: Mapping[str, Any]) -> Any:
    """Let timm open a data set."""
    prefix = _prefix(name)
    if prefix in _PACKAGES:
        module, extra = _PACKAGES[prefix]
        if extra is not None:
            require(module, extra)
        elif importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"'{name}' needs {module}: pip install tensorflow {module.replace('_', '-')}")
    with _one_sentence(f"The split '{split}' of '{name}' cannot be opened"):
        return create_dataset(name, root, split=split, **options)


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Turn whatever a reader raises into one sentence: each has types of its own, for the network's faults too."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise DataError(f"{what}: {text or type(error).__name__}.") from error


def _classes_of(source: Any) -> tuple[str, ...]:
    """The names of the classes by their numbers; nothing where they are unknown or have gaps."""
    numbers = getattr(source, "class_to_idx", None) or {}
    names = {number: str(name) for name, number in numbers.items() if isinstance(number, int)}
    return tuple(names[number] for number in range(len(names))) if set(names) == set(range(len(numbers))) else ()
