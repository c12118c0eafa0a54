"""Files and folders that appear whole or not at all."""

import json
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._errors import UserError

__all__ = [
    "RECORD",
    "FileError",
    "FreeNames",
    "require_writable",
    "whole_file",
    "whole_folder",
    "write_atomically",
    "write_beside",
]

RECORD = "prepared.json"


class FileError(UserError, OSError):
    """A file or folder cannot be written."""


def _own_prefix(path: Path) -> str:
    # A name has at most 255 bytes.
    stem = os.fsencode(path.stem)[:120].decode(errors="ignore")
    return f".{stem}.{zlib.crc32(socket.gethostname().encode()):08x}-"


def _beside(path: Path, kind: str) -> Path:
    """A name of its own for each writer, on the same disk, with the suffix by which libraries choose a format."""
    return path.with_name(f"{_own_prefix(path)}{os.getpid()}-{secrets.token_hex(4)}.{kind}{path.suffix}")


def _clear_leftovers(path: Path) -> None:
    """Delete what killed writers of this name left behind, as far as they ran on this machine."""
    prefix, rest = _own_prefix(path), re.compile(r"(\d+)-[0-9a-f]{8}\.part" + re.escape(path.suffix))
    for leftover in path.parent.iterdir() if os.name == "posix" else ():
        match = rest.fullmatch(leftover.name[len(prefix) :]) if leftover.name.startswith(prefix) else None
        if match is None or _runs(int(match[1])):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    # Without it a power cut can leave the new name on empty blocks.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes ``path`` once the block has ended without an error.

    Args:
        path: The file; its folder is created. Whatever other processes write to it, its content is that of one writer.

    Yields:
        The temporary path, next to ``path`` and with its suffix. After an error nothing of it is left.

    Raises:
        FileError: The disk is full, or the file cannot be written.
    """
    path = Path(path)
    part = _beside(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        try:
            yield part
            _sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        if os.name == "posix":
            _sync(path.parent)
    except UserError:
        raise
    except OSError as error:
        raise FileError(f"The file '{path}' cannot be written: {error.strerror or error}.") from error


def require_writable(path: str | os.PathLike, folder: bool = False) -> None:
    """Refuse a place that cannot be written, before there is work that would be lost; nothing is left there.

    Args:
        path: A file, or a folder for files, that need not exist yet; nor need those that it is in.
        folder: Whether it is a folder.

    Raises:
        FileError: Nothing can be written there.
    """
    path = Path(path).absolute()
    what = f"The {'folder' if folder else 'file'} '{path}' cannot be written"
    if not folder and path.is_dir():
        raise FileError(f"{what}: it is a folder.")
    place = path if folder else path.parent
    made = []
    try:
        for missing in [parent for parent in (*reversed(place.parents), place) if not parent.exists()]:
            missing.mkdir()
            made.append(missing)
        trial = _beside(place / "trial", "part")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise FileError(f"{what}: {error.strerror or error}.") from error
    finally:
        for empty in reversed(made):
            empty.rmdir()


class FreeNames:
    """Names for files that no other has: ``a``, ``a_2``, ``a_3`` ..., however many there are."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """Return ``name``, or a name that begins with it, and take it."""
        free = name
        while free in self._taken:
            self._last[name] = self._last.get(name, 1) + 1
            free = f"{name}_{self._last[name]}"
        self._taken.add(free)
        return free


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that its name only ever stands for the old or the complete new content.

    Args:
        path: The file; its folder is created.
        data: The content.

    Raises:
        FileError: See :func:`whole_file`.
    """
    with whole_file(path) as part:
        part.write_bytes(data)


def write_beside(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file under a temporary name, and give it its own once it is complete.

    Args:
        path: The file; its folder is created.
        write: Called with the temporary path, which has the suffix of ``path``.

    Raises:
        FileError: See :func:`whole_file`.
    """
    with whole_file(path) as part:
        write(part)


@contextmanager
def whole_folder(
    out: str | os.PathLike, record: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Iterator[Path]:
    """Give a temporary folder to write into, which takes the name ``out`` once the block has ended without an error.

    Args:
        out: The folder to be made; its parents are made too.
        record: What the folder is and how it was made; written into it as ``prepared.json``. A folder without one is
            never replaced.
        overwrite: Replace an existing folder, if it holds such a record: nothing else is ever deleted.

    Yields:
        The temporary folder, next to ``out``.

    Raises:
        UserError: ``out`` is a file, or a folder that is not empty and may not be replaced; or it cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file, not a folder.")
    occupied = out.is_dir() and any(out.iterdir())
    if occupied and record is None:
        raise UserError(f"The folder '{out}' is not empty, and is not replaced.")
    if occupied and not overwrite:
        raise UserError(f"The folder '{out}' is not empty; say --overwrite to replace a data set made by this tool.")
    if occupied and not (out / RECORD).is_file():
        raise UserError(f"The folder '{out}' is not replaced: it has no {RECORD}, so this tool did not make it.")
    part, old = _beside(out, "part"), _beside(out, "old")
    try:
        part.mkdir(parents=True)
        _clear_leftovers(out)
        yield part
        if record is not None:
            (part / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        if out.exists():
            os.replace(out, old)
        os.replace(part, out)
    except UserError:
        raise
    except OSError as error:
        # Of another file, such as one of the raw data, the error keeps its own name.
        named = error.filename is None or Path(error.filename).is_relative_to(part)
        what = f"The folder '{out}'" if named else f"'{error.filename}'"
        raise FileError(f"{what} cannot be {'made' if named else 'used'}: {error.strerror or error}.") from error
    finally:
        if old.exists() and not out.exists():
            os.replace(old, out)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
