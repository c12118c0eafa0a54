"""Read the data of a config as a run would, before there is a run."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, init_default_scope
from torch.utils.data import DataLoader, IterableDataset

from .._cli import say
from .._errors import DataError
from .._progress import track
from .._tasks import Task
from .checks import check_run
from .models import without_pretrained
from .runner import Runner

__all__ = ["look_at_data"]

PARTS = ("train", "val", "test")


def look_at_data(cfg: Config, task: Task | None, samples: int) -> None:
    """Read samples of each part of a config's data through their transforms, and say what is in them.

    The run's own checks are made too. No weights are fetched.

    Args:
        cfg: The config.
        task: What it is for; None: classes are not counted.
        samples: How many of each part to read, evenly spread; 0: all.

    Raises:
        UserError: What would stop a run: a part cannot be built or read, or does not fit the model.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    model = MODELS.build(without_pretrained(cfg.model))
    seen: list[Any] = []
    for part in PARTS:
        name, loader_cfg = f"{part}_dataloader", cfg.get(f"{part}_dataloader")
        if loader_cfg is None or loader_cfg in seen:
            continue
        seen.append(loader_cfg)
        loader = _build(loader_cfg)
        check_run(model, loader, name)
        if cfg.get(f"{part}_evaluator"):
            Evaluator(cfg[f"{part}_evaluator"])
        classes = _classes(loader.dataset)
        found: Counter[int] = Counter()
        total, chosen = len(loader.dataset), _chosen(loader, samples)
        read = 0
        for sample in track(chosen, part):
            read += 1
            for number in set(task.classes_in(sample)) if task else ():
                if classes and not 0 <= number < len(classes):
                    raise DataError(
                        f"{name}: sample {read} of those read has the class number {number}, but there are "
                        f"{len(classes)} classes, numbered from 0: {', '.join(map(str, classes[:5]))}"
                        f"{', ...' if len(classes) > 5 else ''}."
                    )
                found[number] += 1
        say(f"{name}: {total} samples, {len(classes) or 'unnamed'} classes; {read} read")
        if found:
            names = classes or range(max(found) + 1)
            say("  samples with each class: " + ", ".join(f"{name} {found[i]}" for i, name in enumerate(names)))
            absent = [str(one) for i, one in enumerate(names) if not found[i]]
            if absent and part == "train":
                say(f"Warning: of {len(names)} classes, none of the samples read has {', '.join(absent)}.", error=True)


def _build(cfg: Mapping[str, Any]) -> DataLoader:
    """A loader that reads in this process."""
    own = {key: value for key, value in cfg.items() if key not in ("prefetch_factor", "persistent_workers")}
    return Runner.build_dataloader({**own, "num_workers": 0, "pin_memory": False}, seed=0)


def _classes(dataset: Any) -> Sequence[str]:
    while not (getattr(dataset, "metainfo", None) or {}).get("classes"):
        inner = getattr(dataset, "dataset", None) or next(iter(getattr(dataset, "datasets", ())), None)
        if inner is None:
            return ()
        dataset = inner
    return dataset.metainfo["classes"]


def _chosen(loader: DataLoader, samples: int) -> Sequence[Any] | Iterator[Any]:
    dataset, count = loader.dataset, len(loader.dataset)
    if isinstance(dataset, IterableDataset):
        return itertools.islice(iter(dataset), samples or None)
    if not samples or samples >= count:
        numbers = range(count)
    else:
        numbers = np.linspace(0, count - 1, samples).round().astype(int).tolist()
    return _Some(dataset, numbers)


class _Some:
    """Samples of a data set by their numbers, read when it is their turn."""

    def __init__(self, dataset: Any, numbers: Sequence[int]):
        self.dataset, self.numbers = dataset, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return (self.dataset[number] for number in self.numbers)
