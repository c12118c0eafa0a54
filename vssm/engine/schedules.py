"""Go on with the config's schedules after a run was resumed, where they differ from those that it began with."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.optim import _ParamScheduler

from ..checkpoint import CheckpointError

__all__ = ["Schedules"]

# What a scheduler notes on its way; everything else in its state is how it was set.
_PROGRESS = ("last_step", "_global_step", "_last_value", "verbose")
# Settings that one who reads the log knows by name.
_SAID = ("end", "T_max", "begin", "milestones", "gamma", "eta_min", "eta_min_ratio", "base_values")


class Schedules:
    """The schedulers of a config as they were built, before the state of a checkpoint is loaded into them.

    Args:
        schedulers: A list, a dict of lists for several optimisers, or None.
    """

    def __init__(self, schedulers: Any):
        lists = schedulers.values() if isinstance(schedulers, Mapping) else [schedulers or ()]
        self._settings = [[dict(one.state_dict()) for one in some] for some in lists]
        # What the parameter groups hold at the first step.
        self._values = [[_values(one) for one in some] for some in lists]

    def differences(self, schedulers: Any) -> list[str]:
        """Name what the schedulers, after loading, do otherwise than the config says; an empty list: nothing."""
        lists = schedulers.values() if isinstance(schedulers, Mapping) else [schedulers or ()]
        found = []
        for some, settings in zip(lists, self._settings, strict=True):
            for one, own in zip(some, settings, strict=True):
                stored = one.state_dict()
                keys = [key for key in own if key not in _PROGRESS and own[key] != stored.get(key)]
                if _depends_on_results(one):
                    keys = [key for key in keys if key in ("factor", "patience", "threshold", "cooldown", "min_values")]
                found += [_difference(one, key, stored.get(key), own[key]) for key in sorted(keys, key=_place)]
        return found

    def replay(self, schedulers: Any, epochs: int, iterations: int, path: str) -> None:
        """Bring the schedulers as the config has them, and what they set, to where the run stands.

        Args:
            schedulers: Of the run, in the state that the checkpoint left them in.
            epochs: Epochs done.
            iterations: Iterations done.
            path: The checkpoint, for the message.

        Raises:
            CheckpointError: One of them goes by the results of the run, which cannot be had again.
        """
        lists = list(schedulers.values() if isinstance(schedulers, Mapping) else [schedulers or ()])
        by_results = next((one for one in itertools.chain(*lists) if _depends_on_results(one)), None)
        if by_results is not None:
            raise CheckpointError(
                f"Checkpoint '{path}' cannot be resumed from with other schedules: {type(by_results).__name__} goes by "
                "the results of the epochs before. Leave the schedules as they were, or start from its weights with "
                "load_from."
            )
        for some, settings, values in zip(lists, self._settings, self._values, strict=True):
            for one, own, first in zip(some, settings, values, strict=True):
                one.load_state_dict(own)
                for group, value in zip(one.optimizer.param_groups, first, strict=True):
                    group.update(value)
            _walk(some, epochs, iterations)


def _walk(schedulers: Sequence[_ParamScheduler], epochs: int, iterations: int) -> None:
    every_epoch = [one for one in schedulers if one.by_epoch]
    every_iteration = [one for one in schedulers if not one.by_epoch]
    length = iterations // epochs if epochs else 0
    with warnings.catch_warnings():
        # They warn that the optimiser has made no step.
        warnings.simplefilter("ignore", UserWarning)
        for number in range(1, iterations + 1):
            for one in every_iteration:
                one.step()
            if length and number % length == 0 and number // length <= epochs:
                for one in every_epoch:
                    one.step()


def _values(scheduler: _ParamScheduler) -> list[dict[str, Any]]:
    """The values that a scheduler sets in each group, and those it began with."""
    names = (scheduler.param_name, f"initial_{scheduler.param_name}")
    return [{name: group[name] for name in names if name in group} for group in scheduler.optimizer.param_groups]


def _depends_on_results(scheduler: _ParamScheduler) -> bool:
    return hasattr(scheduler, "monitor")


def _place(key: str) -> tuple[int, str]:
    return (_SAID.index(key) if key in _SAID else len(_SAID), key)


def _difference(scheduler: _ParamScheduler, key: str, old: Any, new: Any) -> str:
    if key == "base_values":
        key, old, new = f"first {scheduler.param_name}", _first(old), _first(new)
    return f"{type(scheduler).__name__}'s {key.lstrip('_')} {old} -> {new}"


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else values
