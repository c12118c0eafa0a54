"""Reading a checkpoint's file; the policy stands in `vssm.checkpoint`."""

import os
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ._errors import UserError
from ._pickle_survey import DEEPEST, LOG_HISTORY, MODULE_CLASSES, Refusal, Survey, shown

__all__ = ["CheckpointError", "Inert", "MissingCheckpointError", "inert_names", "read_checkpoint"]

# Letters of all names of a pickled module's weights and modules; those of a large model have a million.
_MOST_TEXT = 1 << 23
# The first bytes of what torch.save wrote before PyTorch 1.6: a pickled magic number.
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
# First bytes of other things that end up under a checkpoint's name.
_OTHERS = (
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (b"<", "a web page; download the file itself"),
    (b"\x80", "a bare pickle; save tensors with torch.save"),
)


class CheckpointError(UserError, ValueError):
    """A checkpoint is missing, damaged, unsafe, or belongs to another model."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


class Inert:
    """Stands in for an object of a class that a checkpoint mentions, and does nothing.

    Attributes:
        of: The full name of the class.
        fields: What a pickled module holds, by name; empty for objects of other classes.
    """

    of = ""
    fields: Mapping[str, Any] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """Take any arguments, and ignore them."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if self.of.startswith(MODULE_CLASSES) and isinstance(state, dict):
            self.fields = state

    def __repr__(self) -> str:
        return f"<inert {shown(self.of)}>"


class _InertList(Inert, list):
    def __new__(cls, *args: Any, **kwargs: Any) -> "_InertList":
        return list.__new__(cls)


def _stand_in(name: str, kind: str) -> type:
    if kind == "dict":
        # PyTorch's restricted reader fills only plain dicts.
        def new(cls: type, *args: Any, **kwargs: Any) -> OrderedDict:
            node = OrderedDict()
            node.__dict__["_inert"] = name
            return node

        return type("InertDict", (Inert,), {"__new__": new, "of": name})
    return type("Inert", (_InertList if kind == "list" else Inert,), {"of": name})


class _ModuleWeights:
    """The state dict of a pickled module, from its stand-in: parameters and lasting buffers, in float32.

    Args:
        module: Of one of `MODULE_CLASSES`.

    Attributes:
        found: The state dict.

    Raises:
        Refusal: It is no module, is nested too deeply, or shares modules such that its names never end.
    """

    def __init__(self, module: Inert):
        self.found: dict[str, Any] = {}
        # One tensor may have many names.
        self._floats: dict[int, torch.Tensor] = {}
        self._text = _MOST_TEXT
        self._add(module, "", 0)

    def _add(self, module: Inert, prefix: str, depth: int) -> None:
        parts = [module.fields.get(name) for name in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, Mapping) for part in parts) or depth > DEEPEST:
            raise Refusal(f"holds a pickled {shown(module.of)} that is no module as PyTorch saves it")
        parameters, buffers, modules = parts
        for part in parts:
            if not all(isinstance(name, str) for name in part):
                raise Refusal(f"holds a pickled {shown(module.of)} with a name that is not text")
            # A module within two modules, within two modules each, has exponentially many names.
            self._text -= sum(len(prefix) + len(name) for name in part) + 1
            if self._text < 0:
                raise Refusal(f"holds a pickled {shown(module.of)} whose names have more than {_MOST_TEXT} letters")
        passing = module.fields.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set | frozenset) else ()
        lasting = {name: value for name, value in buffers.items() if name not in passing}
        for name, value in {**parameters, **lasting}.items():
            if value is not None:
                self.found[prefix + name] = self._float(value)
        for name, inner in modules.items():
            if isinstance(inner, Inert):
                self._add(inner, f"{prefix}{name}.", depth + 1)

    def _float(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if id(value) not in self._floats:
            self._floats[id(value)] = value.detach().float()
        return self._floats[id(value)]


def _without_modules(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Put the weights of a file of the YOLO line, which holds whole modules, under "state_dict".

    The averaged module stands under "ema" while a training runs, and under "model" when it has ended.
    """
    modules = {key: checkpoint[key] for key in ("ema", "model") if isinstance(checkpoint.get(key), Inert)}
    module = next((found for found in modules.values() if found.of.startswith(MODULE_CLASSES[0])), None)
    if module is None or "state_dict" in checkpoint:
        return checkpoint
    kept = {key: value for key, value in checkpoint.items() if key not in modules}
    return {**kept, "state_dict": _ModuleWeights(module).found}


def inert_names(value: Any) -> list[str]:
    """Name the classes of all inert objects in a checkpoint or a part of it."""
    found: dict[str, None] = {}
    for item in _walk(value):
        if isinstance(item, Inert) or (isinstance(item, type) and issubclass(item, Inert)):
            found[item.of] = None
        elif isinstance(item, OrderedDict) and "_inert" in item.__dict__:
            found[str(item.__dict__["_inert"])] = None
    return list(found)


def _walk(value: Any):
    """Yield a value and everything in it, each once.

    Raises:
        Refusal: It holds itself, or is nested too deeply.
    """
    done: set[int] = set()
    path: set[int] = set()
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        item, left = stack.pop()
        if left:
            path.discard(id(item))
            done.add(id(item))
            continue
        if id(item) in path:
            raise Refusal("holds a container that holds itself")
        if id(item) in done:
            continue
        yield item
        if isinstance(item, Mapping):
            inner = [*item.values(), *item.keys()]
        elif isinstance(item, list | tuple | set | frozenset):
            inner = list(item)
        else:
            continue
        path.add(id(item))
        if len(path) > DEEPEST:
            raise Refusal(f"is nested deeper than {DEEPEST} containers")
        stack.append((item, True))
        stack.extend((child, False) for child in inner)


def read_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a .safetensors or PyTorch file without running code from it, see the module's policy.

    Args:
        path: the file.
        map_location: where its tensors go.

    Returns:
        The checkpoint: a dict, nested as it was saved.

    Raises:
        MissingCheckpointError: there is no such file.
        CheckpointError: the file is damaged, not a checkpoint, or refused.
    """
    path = Path(path)
    try:
        if not path.is_file():
            if path.exists():
                raise Refusal("is not a file")
            raise MissingCheckpointError(f"Checkpoint '{path}' does not exist.")
        with open(path, "rb") as file:
            checkpoint = _without_modules(_read(path, file, map_location))
        for _ in _walk(checkpoint):
            pass
    except Refusal as error:
        raise CheckpointError(f"Checkpoint '{path}' {error}.") from None
    except MissingCheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"Checkpoint '{path}' cannot be read: {error.strerror or error}.") from error
    return checkpoint


def _read(path: Path, file: BinaryIO, map_location: Any) -> dict[str, Any]:
    start = file.read(64)
    header = int.from_bytes(start[:8], "little")
    if not start.startswith(b"PK") and (path.suffix == ".safetensors" or (start[8:9] == b"{" and header < 1 << 27)):
        return _read_safetensors(path, map_location)
    if not start.startswith(b"PK\x03\x04"):
        raise Refusal(_not_a_zip(path, start))
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        # The directory of the archive stands at its end.
        raise Refusal("is truncated or not a PyTorch checkpoint") from None
    with archive:
        data, records = _open_archive(archive, file)
    stand_ins = _stand_ins(file, data, records)
    file.seek(0)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:
        raise Refusal(_damaged(error)) from None
    if not isinstance(checkpoint, dict):
        raise Refusal(f"has no 'state_dict' of tensors: it holds a {type(checkpoint).__name__}")
    return checkpoint


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        raise Refusal(f"is truncated or not a safetensors file ({shown(str(error), 200)})") from None
    if map_location not in (None, "cpu") and not callable(map_location):
        tensors = {name: value.to(map_location) for name, value in tensors.items()}
    return tensors


def _not_a_zip(path: Path, start: bytes) -> str:
    if not start.strip(b"\0"):
        return "is truncated: it is empty" if not start else "is truncated or damaged: it begins with zeros"
    again = "load it in the program that it belongs to, and save the state dict again with a present torch.save"
    if start.startswith(_OLD_TORCH):
        return f"is in the format that torch.save had before PyTorch 1.6, which is not read; {again}"
    for magic, what in _OTHERS:
        if start.lstrip().startswith(magic) if magic == b"<" else start.startswith(magic):
            return f"is not a PyTorch checkpoint: it is {what}"
    try:
        if tarfile.is_tarfile(path):
            return f"is a tar archive, the format that torch.save had in PyTorch's first releases; {again}"
    except OSError:
        pass
    return "is truncated or not a PyTorch checkpoint"


def _open_archive(archive: zipfile.ZipFile, file: BinaryIO) -> tuple[bytes, dict[str, int]]:
    """Give the pickle of an archive, and the sizes of its tensors' storages."""
    records = archive.infolist()
    names = [record.filename for record in records]
    size = file.seek(0, os.SEEK_END)
    if not names or len(set(names)) < len(names):
        raise Refusal("is damaged or not a PyTorch checkpoint")
    if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
        raise Refusal("is a compressed archive, which torch.save never writes, so it is refused")
    if any(record.file_size != record.compress_size for record in records) or sum(r.file_size for r in records) > size:
        raise Refusal("is refused: its parts claim to be larger than the file")
    root = names[0].partition("/")[0]
    if f"{root}/constants.pkl" in names:
        raise Refusal("is a TorchScript program; save the state dict of the model that it was made of")
    if f"{root}/data.pkl" not in names:
        raise Refusal("is a zip file, but none that torch.save wrote")
    try:
        data = archive.read(f"{root}/data.pkl")
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Refusal(f"is damaged ({shown(str(error), 200)})") from None
    start = f"{root}/data/"
    return data, {r.filename[len(start) :]: r.file_size for r in records if r.filename.startswith(start)}


def _stand_ins(file: BinaryIO, data: bytes, records: dict[str, int]) -> list[tuple[Callable, str]]:
    """Give what the restricted reader has to know besides what it knows: stand-ins, log histories, arrays."""
    file.seek(0)
    try:
        unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:
        # Of what it cannot follow, the survey finds the reason.
        unknown = set()
    try:
        survey = Survey(data, records, unknown)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise Refusal(_damaged(error)) from None
    if survey.top is not None:
        raise Refusal(
            f"holds a pickled object of the class {shown(survey.top)}, not a state dict; save the result of its "
            "state_dict() method"
        )
    known = _arrays_and_histories(unknown)
    inert = [(_stand_in(name, kind), name) for name, kind in survey.inert.items() if name not in known]
    return [(value, name) for name, value in known.items()] + inert


def _arrays_and_histories(mentioned: set[str]) -> dict[str, Any]:
    """Give what arrays, numbers of NumPy and mmengine's log histories are made of, by the names in files."""
    core = np._core if hasattr(np, "_core") else np.core
    known: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[f"{module}._reconstruct"] = core.multiarray._reconstruct
        known[f"{module}.scalar"] = core.multiarray.scalar
    for name in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8", "c16", "U1", "S1"):
        kind = type(np.dtype(name))
        known[f"{kind.__module__}.{kind.__qualname__}"] = kind
    if LOG_HISTORY in mentioned:
        try:
            from mmengine.logging import HistoryBuffer
        except ImportError:
            HistoryBuffer = _stand_in(LOG_HISTORY, "object")  # noqa: N806
        known[LOG_HISTORY] = HistoryBuffer
        # The survey has seen that nothing but a record's own methods is asked of it.
        known["builtins.getattr"] = lambda owner, name: getattr(owner, name, None)
    return known


def _damaged(error: Exception) -> str:
    """Say that a file is damaged, with what is telling in an error and without PyTorch's advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "weights_only" not in line and "torch.load" not in line), "")
    return f"is damaged ({shown(reason or type(error).__name__, 200)})"
