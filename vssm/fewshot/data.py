"""Which classes come in which session, and which images of them are shown: by lists, or from a seed."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .._errors import DataError
from ..engine.config import ConfigError, check_options

__all__ = ["SessionClasses", "Split", "draw_shots", "labels_of", "make_split"]


@dataclass(frozen=True)
class Split:
    """The sessions of a data set.

    Attributes:
        order: The data set's class numbers in the order of learning; a class's place in it is its number in the model.
        sizes: How many classes each session has, the base session first.
        listed: Numbers of the training images of each session, where lists say them; else empty, and they are drawn.
        shots: Images of a new class where they are drawn.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    listed: tuple[tuple[int, ...], ...] = ()
    shots: int = 5

    def seen(self, session: int) -> int:
        """How many classes are known after a session."""
        return sum(self.sizes[: session + 1])


def labels_of(dataset: Any) -> list[int]:
    """Return the class of every image without reading it.

    Raises:
        DataError: The data set does not say.
    """
    for owner in (dataset, getattr(dataset, "source", None)):
        for name in ("labels", "targets", "_labels"):
            labels = getattr(owner, name, None)
            if labels is not None:
                return [int(label) for label in labels]
        samples = getattr(getattr(owner, "reader", None), "samples", None) or getattr(owner, "samples", None)
        if samples is not None:
            return [int(label) for _, label in samples]
    raise DataError(f"A {type(dataset).__name__} does not say which classes its images have; sessions need that.")


def make_split(
    dataset: Any,
    base: int = 0,
    ways: int = 0,
    sessions: int = 0,
    shots: int = 5,
    seed: int | None = None,
    lists: str | None = None,
) -> Split:
    """Divide the classes of a data set into sessions.

    Args:
        dataset: The training images.
        base: Classes of the base session.
        ways: Classes of each later session.
        sessions: Later sessions.
        shots: Training images of each new class.
        seed: Shuffles the classes; None: they come in the order of their numbers.
        lists: A folder with ``session_1.txt``, ``session_2.txt`` and so on, one training image a line: its number in
            the data set, or its path, of which the folder of the class and the file's name count. These are the lists
            of CEC and NC-FSCIL. They say everything, so nothing else may be given.

    Raises:
        ConfigError: The numbers make no sessions, or lists come with numbers.
        DataError: A list is missing, or names an image that the data set lacks or a class of an earlier session.
    """
    labels = labels_of(dataset)
    if lists is not None:
        if base or ways or sessions or seed is not None:
            raise ConfigError("split.lists say the sessions: leave out base, ways, sessions and seed.")
        return _listed(Path(lists), dataset, labels)
    classes = sorted(set(labels))
    if min(base, ways, sessions, shots) < 1 or base + ways * sessions > len(classes):
        raise ConfigError(
            f"split has {base} base classes, {sessions} sessions of {ways} classes and {shots} shots, but each is 1 or "
            f"more, and the data have {len(classes)} classes."
        )
    if seed is not None:
        classes = [classes[i] for i in np.random.default_rng(seed).permutation(len(classes))]
    return Split(tuple(classes[: base + ways * sessions]), (base, *[ways] * sessions), shots=shots)


def _listed(folder: Path, dataset: Any, labels: Sequence[int]) -> Split:
    files = [folder / f"session_{number}.txt" for number in range(1, len(list(folder.glob("session_*.txt"))) + 1)]
    if len(files) < 2 or not all(file.is_file() for file in files):
        raise DataError(f"'{folder}' needs the lists session_1.txt, session_2.txt and so on, without gaps.")
    reader = getattr(dataset, "reader", None)
    places = {Path(path).parts[-2:]: number for number, (path, _) in enumerate(getattr(reader, "samples", ()))}
    order: list[int] = []
    sizes, listed = [], []
    for file in files:
        numbers = []
        for line in filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())):
            number = int(line) if line.isdecimal() else places.get(Path(line).parts[-2:], -1)
            if not 0 <= number < len(labels):
                raise DataError(f"'{file}' lists '{line}', which the training images lack.")
            numbers.append(number)
        classes = sorted({labels[number] for number in numbers})
        again = set(classes) & set(order)
        if again or not classes:
            what = f"images of the class {min(again)}, which an earlier session has" if again else "no images"
            raise DataError(f"'{file}' lists {what}.")
        order += classes
        sizes.append(len(classes))
        listed.append(tuple(numbers))
    return Split(tuple(order), tuple(sizes), tuple(listed))


def draw_shots(split: Split, labels: Sequence[int], session: int, seed: int = 0) -> list[int]:
    """Choose the training images of a later session.

    Args:
        split: The sessions.
        labels: The data set's class of every training image.
        session: Number of the session, 1 or more.
        seed: Of the choice; lists leave none.

    Raises:
        DataError: A class has fewer images than are shown.
    """
    if split.listed:
        return list(split.listed[session])
    by_class = defaultdict(list)
    for number, label in enumerate(labels):
        by_class[label].append(number)
    generator = np.random.default_rng([seed, session])
    chosen: list[int] = []
    for label in split.order[split.seen(session - 1) : split.seen(session)]:
        if len(by_class[label]) < split.shots:
            raise DataError(f"The class {label} has {len(by_class[label])} images, but {split.shots} are to be shown.")
        chosen += sorted(generator.choice(by_class[label], split.shots, replace=False).tolist())
    return chosen


@DATASETS.register_module()
class SessionClasses(Dataset):
    """The images of the classes that are known after a session, numbered in the order of learning.

    Args:
        dataset: Config of a data set that gives ``dict(inputs, labels)`` and knows its labels.
        split: Arguments of `make_split`.
        session: The last session whose classes are there; 0: the base classes; None: all sessions.
        of: Config of the training images that the split is made from; None: this data set. Needed with lists, and for
            test images, whose own numbers lists do not mean.

    Raises:
        ConfigError: An option of the split is unknown, or there is no such session.
        DataError: See `make_split`.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        split: Mapping[str, Any],
        session: int | None = 0,
        of: Mapping[str, Any] | None = None,
    ):
        self.source = DATASETS.build(dataset)
        check_options(make_split, {"dataset": None, **split}, "dataset.split")
        self.split = make_split(self.source if of is None else DATASETS.build(of), **split)
        if session is None:
            session = len(self.split.sizes) - 1
        if not 0 <= session < len(self.split.sizes):
            raise ConfigError(f"dataset.session is 0 to {len(self.split.sizes) - 1}, not {session}.")
        self.number = {label: place for place, label in enumerate(self.split.order[: self.split.seen(session)])}
        all_labels = labels_of(self.source)
        self.indices = [index for index, label in enumerate(all_labels) if label in self.number]
        if of is None and self.split.listed:
            kept = {index for numbers in self.split.listed[: session + 1] for index in numbers}
            self.indices = [index for index in self.indices if index in kept]
        self.labels = [self.number[all_labels[index]] for index in self.indices]
        names = (getattr(self.source, "metainfo", None) or {}).get("classes")
        self.metainfo = {"classes": tuple(names[label] if names else str(label) for label in self.number)}

    @staticmethod
    def transform_from(cfg: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return the transform of the data set inside."""
        return DATASETS.get(cfg["dataset"]["type"]).transform_from(cfg["dataset"])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[self.indices[index]]
        return {**sample, "labels": self.labels[index]}
