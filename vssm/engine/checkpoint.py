"""Checkpoints of runs: written whole, read by the rules of `vssm.checkpoint`, resumed from if complete."""

import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from .. import checkpoint as checkpoints
from .._files import write_atomically
from ..checkpoint import CheckpointError, about, check_fit, class_layers, inert_names, without_wrappers

__all__ = [
    "AtomicBackend",
    "CheckpointError",
    "check_fits",
    "check_training_state",
    "convert_to_own_names",
    "find_resumable",
    "load_weights",
    "read_checkpoint",
    "restore_histories",
    "saved_steps",
    "to_plain",
    "write_atomically",
]

_STEP = re.compile(r"(epoch|iter)_(\d{1,18})\.pth")
_BUFFER_KEYS = {"log_history", "count_history", "max_length"}
# Moments of optimisers, each of its parameter's shape.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_inf")


@register_backend("atomic")
class AtomicBackend(LocalBackend):
    """mmengine's local storage with atomic writes: ``backend_args=dict(backend="atomic")``."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes atomically."""
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | os.PathLike, encoding: str = "utf-8") -> None:
        """Write text atomically."""
        write_atomically(filepath, obj.encode(encoding))


def to_plain(value: Any) -> Any:
    """Replace what only unpickling could restore (log histories, NumPy values) by tensors and plain containers.

    A file of nothing else can be read with ``weights_only=True`` and no allow-list at all.

    Args:
        value: A checkpoint or a part of it.

    Returns:
        The same structure; state dicts (ordered, with tensors only) are returned as they are.
    """
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {
            "log_history": torch.as_tensor(np.asarray(log, dtype=np.float64)),
            "count_history": torch.as_tensor(np.asarray(count, dtype=np.float64)),
            "max_length": value.max_length,
        }
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if value and all(isinstance(item, Tensor) for item in value.values()):
            return value
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_plain(item) for item in value)
    return value


def restore_histories(message_hub: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`to_plain` for the state of mmengine's MessageHub."""
    scalars = {}
    for name, value in message_hub.get("log_scalars", {}).items():
        if isinstance(value, Mapping) and set(value) == _BUFFER_KEYS:
            log, count = value["log_history"].tolist(), value["count_history"].tolist()
            value = HistoryBuffer(log, count, value["max_length"])
        scalars[name] = value
    return {**message_hub, "log_scalars": scalars}


def read_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a run's checkpoint: :func:`vssm.checkpoint.read_checkpoint`, in the form in which runs use it.

    Args:
        path: A file of any kind that `vssm.checkpoint` reads.
        map_location: Where its tensors go.

    Returns:
        A dict with at least ``state_dict``; a file that is a bare state dict is wrapped into one. The config that
        mmengine would execute on resuming is left out.

    Raises:
        CheckpointError: See there; or the file has no state dict.
    """
    checkpoint = checkpoints.read_checkpoint(path, map_location)
    if "state_dict" not in checkpoint and _is_state_dict(checkpoint):
        checkpoint = {"state_dict": checkpoint}
    if not _is_state_dict(checkpoint.get("state_dict")):
        raise CheckpointError(f"Checkpoint '{path}' has no 'state_dict' of tensors.")
    if isinstance(checkpoint.get("message_hub"), Mapping):
        try:
            checkpoint["message_hub"] = restore_histories(checkpoint["message_hub"])
        except (ValueError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
            raise CheckpointError(f"Checkpoint '{path}' is damaged: its log of numbers cannot be restored.") from error
    if isinstance(checkpoint.get("meta"), dict):
        # mmengine executes a config found under this key as Python when it resumes. It writes 'cfg' itself.
        checkpoint["meta"].pop("config", None)
    return checkpoint


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def convert_to_own_names(
    path: str | os.PathLike, model: nn.Module, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert official names of weights, by the parts of a model (backbones) that know them.

    Args:
        path: Where the weights come from, for the message.
        model: The model that is to take them.
        state_dict: The weights.

    Returns:
        The weights under the model's own names; what no part converts is as it was.

    Raises:
        CheckpointError: A part's weights are not its own.
    """
    weights = dict(state_dict)
    if not weights.keys() & dict(model.named_parameters()).keys():
        weights = without_wrappers(weights, ("module.",))
    for name, part in model.named_modules():
        if hasattr(part, "convert_on_load"):
            try:
                part.convert_on_load(weights, f"{name}." if name else "")
            except ValueError as error:
                raise CheckpointError(about(path, error)) from error
    return weights


def check_fits(
    path: str | os.PathLike, model: nn.Module, state_dict: Mapping[str, Tensor], new: Collection[str] = ()
) -> None:
    """Refuse weights that are not exactly a model's.

    Args:
        path: Where the weights come from, for the message.
        model: The model that is to take them.
        state_dict: The weights.
        new: Names that stay as they are in the model.

    Raises:
        CheckpointError: Keys are missing or unexpected, a shape differs, or values cannot be weights; the message names
            some of each.
    """
    try:
        check_fit(state_dict, model, optional=frozenset(new).__contains__)
    except CheckpointError as error:
        advice = ""
        layers = frozenset(class_layers(model, state_dict))
        if layers:
            try:
                check_fit(state_dict, model, optional=layers.__contains__)
                advice = " To load all but these layers of other classes, say --cfg-options load_classes=False."
            except CheckpointError:
                pass
        raise CheckpointError(about(path, error) + advice) from error


def load_weights(path: str | os.PathLike, model: nn.Module, stored: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a run's checkpoint and load exactly its weights into the run's model.

    Args:
        path: See :func:`read_checkpoint`; official names of a backbone's weights are converted.
        model: The model.
        stored: The checkpoint, where it has been read.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: It cannot be read, or does not fit the model, which is as it was then.
    """
    stored = read_checkpoint(path) if stored is None else stored
    weights = convert_to_own_names(path, model, stored["state_dict"])
    check_fits(path, model, weights)
    model.load_state_dict(weights)
    return stored


def check_training_state(
    path: str | os.PathLike, checkpoint: Mapping[str, Any], optimizer: Any = None, schedulers: Any = None
) -> None:
    """Refuse to resume from a state that is not whole.

    Args:
        path: The file, for the message.
        checkpoint: As :func:`read_checkpoint` gives it.
        optimizer: The run's optimiser, or its wrapper; None: its state is not compared.
        schedulers: The run's schedulers; None: their states are not compared.

    Raises:
        CheckpointError: Names what is missing, damaged, or of another run.
    """
    missing = [key for key in ("meta", "optimizer", "message_hub") if key not in checkpoint]
    if missing:
        raise CheckpointError(
            f"Checkpoint '{path}' cannot be resumed from, it lacks {', '.join(missing)}; "
            "to start from its weights set load_from and leave --resume out."
        )
    state = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    inert = inert_names(state)
    if inert:
        raise CheckpointError(
            f"Checkpoint '{path}' cannot be resumed from: its training state holds objects of {', '.join(inert[:3])}."
        )
    wrong = _wrong_records(checkpoint) or _wrong_optimizer(checkpoint["optimizer"], optimizer)
    wrong = wrong or _wrong_schedulers(checkpoint.get("param_schedulers"), schedulers)
    if wrong:
        raise CheckpointError(f"Checkpoint '{path}' cannot be resumed from: {wrong}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong_records(checkpoint: Mapping[str, Any]) -> str:
    meta, hub = checkpoint["meta"], checkpoint["message_hub"]
    if not isinstance(meta, Mapping) or not all(_is_count(meta.get(key)) for key in ("epoch", "iter")):
        return "its meta does not say how many epochs and iterations are done"
    if meta.get("seed") is not None and not (_is_count(meta["seed"]) and meta["seed"] < 2**32):
        return "the seed in its meta is not a number from 0 to 2**32 - 1"
    if not isinstance(hub, Mapping) or not all(
        isinstance(hub.get(key), Mapping) for key in ("log_scalars", "runtime_info", "resumed_keys")
    ):
        return "its message_hub, the log of numbers, is damaged"
    if not all(isinstance(value, HistoryBuffer) for value in hub["log_scalars"].values()):
        return "its message_hub, the log of numbers, is damaged"
    return ""


def _wrong_optimizer(state: Any, optimizer: Any) -> str:
    if not isinstance(state, Mapping):
        return "the optimiser's state is damaged"
    if isinstance(optimizer, Mapping) or (optimizer is not None and hasattr(optimizer, "optim_wrappers")):
        parts = dict(optimizer.items())
        if not parts.keys() <= state.keys():
            return "it holds the states of other optimisers"
        return next((text for name, part in parts.items() if (text := _wrong_optimizer(state[name], part))), "")
    groups, moments = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not groups or not isinstance(moments, Mapping):
        return "the optimiser's state is damaged"
    for group in groups:
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list):
            return "the optimiser's state is damaged"
        if not isinstance(group.get("lr"), int | float | Tensor) or isinstance(group.get("lr"), bool):
            return "the optimiser's learning rate is not a number"
    inner = getattr(optimizer, "optimizer", optimizer)
    if inner is None:
        return ""
    own = [parameter for group in inner.param_groups for parameter in group["params"]]
    keys = [key for group in groups for key in group["params"]]
    if len(groups) != len(inner.param_groups) or len(own) != len(keys):
        return "it holds the optimiser of another config, with other parameter groups"
    if not moments and own and _keeps_state(inner):
        return "the optimiser's moments are missing"
    for key, parameter in zip(keys, own, strict=True):
        record = moments.get(key, {})
        if not isinstance(record, Mapping):
            return "the optimiser's state is damaged"
        for name in _MOMENTS:
            value = record.get(name)
            if value is not None and (not isinstance(value, Tensor) or value.shape != parameter.shape):
                return f"the optimiser's {name} has another shape than its parameter"
    return ""


def _keeps_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step leaves moments: stochastic gradient descent without momentum has none."""
    return not isinstance(optimizer, torch.optim.SGD) or any(group["momentum"] for group in optimizer.param_groups)


def _wrong_schedulers(states: Any, schedulers: Any) -> str:
    if isinstance(schedulers, Mapping):
        if not isinstance(states, Mapping) or states.keys() != schedulers.keys():
            return "it holds the schedulers of another config"
        return next((text for name in schedulers if (text := _wrong_schedulers(states[name], schedulers[name]))), "")
    if schedulers is None:
        return ""
    if not isinstance(states, list) or not all(isinstance(state, Mapping) for state in states):
        return "the states of its schedulers are damaged" if schedulers else ""
    if len(states) != len(schedulers):
        return f"it holds the states of {len(states)} schedulers, and the config has {len(schedulers)}"
    return ""


def find_resumable(
    work_dir: str | os.PathLike, before: str | os.PathLike | None = None
) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint of a run that can really be resumed from.

    mmengine's ``last_checkpoint`` pointer is not asked: it names one file, readable or not. Where an earlier, longer
    run used the folder too, its files are left out: they have a higher number than a file that was written later.

    Args:
        work_dir: The run's folder.
        before: A checkpoint in it; only older ones are looked at.

    Returns:
        The newest sound ``epoch_N.pth`` or ``iter_N.pth`` (None: there is none), and one sentence for each newer file
        that had to be passed over.
    """
    found, skipped = saved_steps(work_dir), []
    names = [path.name for path in found]
    first = names.index(Path(before).name) + 1 if before is not None and Path(before).name in names else 0
    for number, path in enumerate(found[first:], first):
        later = _written_later(path, found[number + 1 :])
        if later is not None:
            skipped.append(f"Leaving out '{path}': it is of an earlier run, for '{later.name}' was written later.")
            continue
        try:
            checkpoint = read_checkpoint(path)
            if "meta" not in checkpoint:
                raise CheckpointError(f"Checkpoint '{path}' holds weights but no training state.")
            if not isinstance(checkpoint["meta"], Mapping):
                raise CheckpointError(f"Checkpoint '{path}' holds a damaged training state.")
            if {"optimizer", "message_hub"} & checkpoint.keys():
                check_training_state(path, checkpoint)
        except CheckpointError as error:
            skipped.append(f"Skipping it: {error}")
        else:
            return path, skipped
    return None, skipped


def saved_steps(work_dir: str | os.PathLike) -> list[Path]:
    """Return the files ``epoch_N.pth`` and ``iter_N.pth`` of a folder, the highest N first, readable or not."""
    found = []
    for path in Path(work_dir).glob("*.pth"):
        match = _STEP.fullmatch(path.name)
        if match:
            found.append((int(match[2]), path.lstat().st_mtime, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def _written_later(path: Path, lower: list[Path]) -> Path | None:
    """The last written of the files with lower numbers, if that was later than this one: by a run that began anew."""
    # Of a link the time is its own: it may lead nowhere.
    times = {one: one.lstat().st_mtime_ns for one in lower if one.name.partition("_")[0] == path.name.partition("_")[0]}
    last = max(times, key=times.__getitem__, default=None)
    if last is None or times[last] <= path.lstat().st_mtime_ns:
        return None
    # Copying a folder may mix the times of its files, but not those that were noted within.
    return last if _time_within(last) >= _time_within(path) else None


def _time_within(path: Path) -> str:
    """When a checkpoint was made, by itself, else by the file's time; such texts are in the order of the times."""
    try:
        made = read_checkpoint(path)["meta"]["time"]
    except (CheckpointError, KeyError, TypeError):
        made = None
    return made if isinstance(made, str) else time.strftime("%Y%m%d_%H%M%S", time.localtime(path.lstat().st_mtime))
