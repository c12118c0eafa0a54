"""Check every run before its first step; each task adds its own checks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn
from torch.utils.data import DataLoader

from .._errors import DataError
from .config import ConfigError

Check = Callable[[nn.Module, Any], None]
_CHECKS: list[Check] = []


def register_check(check: Check) -> Check:
    """Register ``check(model, data set)``, which every run calls when its training, validation or test loop is built.

    Args:
        check: Raises a UserError where the two do not fit; it gets the data set inside of wrappers, and the model
            without the wrapper of several processes. It returns at once for models of other tasks.

    Returns:
        ``check``, so that this is a decorator.
    """
    if check not in _CHECKS:
        _CHECKS.append(check)
    return check


def refuse_classes(classes: Sequence[str], outputs: int, option: str) -> NoReturn:
    """Say that the data's classes are not as many as the model's.

    Args:
        classes: Names of the data's.
        outputs: How many the model has.
        option: The key of the config that sets the latter.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"The data has {len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}), "
        f"but the model {outputs}: say --cfg-options {option}={len(classes)}."
    )


def check_run(model: nn.Module, loader: DataLoader, name: str) -> None:
    """Refuse data that a run cannot use.

    Args:
        model: The run's model.
        loader: The loader of its data.
        name: The config key of the loader, for the messages.

    Raises:
        DataError: There are no samples, or fewer than a batch where smaller batches are dropped.
        ConfigError: The names of the classes are one text; or whatever the tasks' checks find.
    """
    count, size = len(loader.dataset), getattr(loader.batch_sampler, "batch_size", loader.batch_size)
    if count == 0:
        raise DataError(f"{name}.dataset has no samples.")
    if not _has_batches(loader):
        raise DataError(
            f"{name} has {count} samples, fewer than one batch of {size} per process, and drop_last leaves smaller "
            f"batches out: say --cfg-options {name}.batch_size={max(1, count // get_world_size())}, or add data."
        )
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    for dataset in _inner(loader.dataset):
        classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
        if isinstance(classes, str):
            raise ConfigError(
                f"{name}.dataset.metainfo.classes is the text '{classes}', whose letters would be the classes; one "
                f"class is written ('{classes}',), with the comma."
            )
        for check in _CHECKS:
            check(model, dataset)


def _has_batches(loader: DataLoader) -> bool:
    # A sampler without end fills batches from several passes, whatever its length says.
    return isinstance(loader.sampler, InfiniteSampler) or len(loader) > 0


def _inner(dataset: Any) -> Iterator[Any]:
    """The data sets that wrappers (repeated, concatenated) are made of."""
    parts = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if parts == [None]:
        yield dataset
    else:
        for part in parts:
            yield from _inner(part)
