"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._errors import UserError

RECORD = "prepared.json"


@contextmanager
def whole_folder(out: str | os.PathLike, record: Mapping[str, Any], overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write into, which takes the name ``out`` once the block has ended without an error.

    Args:
        out: The folder to be made; its parents are made too.
        record: What the folder is and how it was made; written into it as ``prepared.json``.
        overwrite: Replace an existing folder, if it holds such a record: nothing else is ever deleted.

    Yields:
        The temporary folder, beside ``out``.

    Raises:
        UserError: ``out`` is a file, or a folder that is not empty and may not be replaced.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file, not a folder.")
    occupied = out.is_dir() and any(out.iterdir())
    if occupied and not overwrite:
        raise UserError(f"The folder '{out}' is not empty; say --overwrite to replace a data set made by this tool.")
    if occupied and not (out / RECORD).is_file():
        raise UserError(f"The folder '{out}' is not replaced: it has no {RECORD}, so this tool did not make it.")
    # Fixed names beside the target: the leftover of a killed run is cleared, and no rename crosses a disk.
    part, old = (out.with_name(f".{out.name}.{kind}") for kind in ("part", "old"))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"The folder '{out}' cannot be made: {error.strerror}.") from error
    try:
        yield part
        (part / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)


def write_beside(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file under a temporary name, and give it its own once it is complete.

    Args:
        path: The file; its folder is created.
        write: Called with the temporary path, which has the suffix of ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part.{path.name}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
