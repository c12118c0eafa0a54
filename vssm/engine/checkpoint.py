"""Checkpoints that are never half-written and never run code when they are read."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from .._errors import UserError
from ..models._checkpoint import check_fit

_BUFFER_KEYS = {"log_history", "count_history", "max_length"}


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, unsafe, or belongs to another model."""


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that its name only ever stands for the old or the complete new content.

    Args:
        path: The file; its folder is created.
        data: The content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name beside the target: the leftover of a killed run is overwritten, and no rename crosses a disk.
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        # Without it a power cut can leave the new name on empty blocks.
        os.fsync(file.fileno())
    os.replace(part, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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


def read_checkpoint(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        path: A file written by ``torch.save``.
        map_location: Where its tensors go.

    Returns:
        A dict with at least ``state_dict``; a file that is a bare state dict is wrapped into one.

    Raises:
        CheckpointError: The file is missing, truncated, no checkpoint, or holds objects other than tensors and plain
            data (which only unpickling, and so running its code, could read).
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"Checkpoint '{path}' does not exist.")
    if not zipfile.is_zipfile(path):
        # The directory of the archive stands at its end, so a truncated file fails here too.
        raise CheckpointError(f"Checkpoint '{path}' is truncated, or no file that torch.save wrote.")
    try:
        with torch.serialization.safe_globals(_mmengine_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        holds = f" ({name[1]})" if name else ""
        raise CheckpointError(
            f"Checkpoint '{path}' holds something other than tensors and plain data{holds}; reading it could run "
            "foreign code, so it is refused."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"Checkpoint '{path}' is damaged: {str(error).splitlines()[0]}") from error
    if isinstance(checkpoint, Mapping) and "state_dict" not in checkpoint and _is_state_dict(checkpoint):
        checkpoint = {"state_dict": checkpoint}
    if not isinstance(checkpoint, dict) or not _is_state_dict(checkpoint.get("state_dict")):
        raise CheckpointError(f"Checkpoint '{path}' has no 'state_dict' of tensors.")
    if isinstance(checkpoint.get("message_hub"), Mapping):
        checkpoint["message_hub"] = restore_histories(checkpoint["message_hub"])
    if isinstance(checkpoint.get("meta"), dict):
        # mmengine executes a config found under this key as Python when it resumes. It writes 'cfg' itself.
        checkpoint["meta"].pop("config", None)
    return checkpoint


def _mmengine_globals() -> list[Callable | tuple[Callable, str]]:
    """What files written by mmengine's own Runner hold beyond tensors: records of numbers, and arrays."""
    core = np._core if hasattr(np, "_core") else np.core
    dtypes = {type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "uint32", "bool")}
    arrays = [core.multiarray._reconstruct, core.multiarray.scalar, np.ndarray, np.dtype, *dtypes]
    return [HistoryBuffer, (_statistic, "builtins.getattr"), *arrays]


def _statistic(owner: Any, name: str) -> Callable:
    """Stand in for ``getattr``, by which such files name a record's own methods, and for nothing else."""
    if owner is HistoryBuffer and name in ("min", "max", "current", "mean"):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"GLOBAL builtins.getattr({owner!r}, {name!r})")


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def convert_to_own_names(
    path: str | os.PathLike, model: nn.Module, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Let those parts of a model that know official names of their weights (backbones) convert them.

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
    for name, part in model.named_modules():
        if hasattr(part, "convert_on_load"):
            try:
                part.convert_on_load(weights, f"{name}." if name else "")
            except ValueError as error:
                raise CheckpointError(f"Checkpoint '{path}' cannot be loaded: {error}.") from error
    return weights


def check_fits(path: str | os.PathLike, model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly a model's.

    Args:
        path: Where the weights come from, for the message.
        model: The model that is to take them.
        state_dict: The weights.

    Raises:
        CheckpointError: Keys are missing or unexpected, or a shape differs; the message names some of each.
    """
    try:
        check_fit(state_dict, model, optional=lambda key: False)
    except ValueError as error:
        raise CheckpointError(f"Checkpoint '{path}' cannot be loaded: {error}.") from error


def load_weights(path: str | os.PathLike, model: nn.Module) -> dict[str, Any]:
    """Read a run's checkpoint and load exactly its weights into the run's model.

    Args:
        path: See :func:`read_checkpoint`; official names of a backbone's weights are converted.
        model: The model.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: It cannot be read, or does not fit the model.
    """
    stored = read_checkpoint(path)
    weights = convert_to_own_names(path, model, stored["state_dict"])
    check_fits(path, model, weights)
    model.load_state_dict(weights)
    return stored


def find_resumable(work_dir: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint of a run that can really be read.

    mmengine's ``last_checkpoint`` pointer is not asked: it names one file, readable or not.

    Args:
        work_dir: The run's folder.

    Returns:
        The newest readable ``epoch_N.pth`` or ``iter_N.pth`` (None: there is none), and one sentence for each newer
        file that had to be passed over.
    """
    found = []
    for path in Path(work_dir).glob("*.pth"):
        match = re.fullmatch(r"(epoch|iter)_(\d+)\.pth", path.name)
        if match:
            found.append((int(match[2]), path.stat().st_mtime, path))
    skipped = []
    for _, _, path in sorted(found, reverse=True):
        try:
            if "meta" not in read_checkpoint(path):
                raise CheckpointError(f"Checkpoint '{path}' holds weights but no training state.")
        except CheckpointError as error:
            skipped.append(f"Skipping it: {error}")
        else:
            return path, skipped
    return None, skipped
