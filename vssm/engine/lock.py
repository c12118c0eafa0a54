"""One run at a time in a work dir."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._files import FileError
from .config import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["work_dir_of_one_run"]

_NAME = ".running"


@contextmanager
def work_dir_of_one_run(work_dir: str | os.PathLike, main: bool = True) -> Iterator[None]:
    """Keep other runs out of a work dir, which is made, while a block runs.

    The lock is the operating system's, on a file ``.running`` in the folder, so it ends with the process however that
    ends. Where a file system has no locks there is none.

    Args:
        work_dir: The folder.
        main: Whether this process speaks for its run: the others of a distributed run share the folder with it.

    Raises:
        ConfigError: Another process holds it; the message names its number and its machine.
        FileError: The folder cannot be made or written to.
    """
    handle = _take(Path(work_dir)) if main else None
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                # While it is still held: who waits for the name then finds that this is another file.
                (Path(work_dir) / _NAME).unlink()
            _OPEN.discard(handle)
            os.close(handle)


def _take(folder: Path) -> int | None:
    path = folder / _NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while fcntl is not None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                text = os.pread(handle, 999, 0).decode(errors="replace").strip()
                os.close(handle)
                raise ConfigError(
                    f"Another run is going on in '{folder}'{f': {text}' if text else ''}; give another --work-dir, or "
                    "wait until it has ended."
                ) from error
            except OSError:
                os.close(handle)
                return None
            if _is_still_there(path, handle):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                _OPEN.add(handle)
                return handle
            os.close(handle)
    except OSError as error:
        raise FileError(f"The folder '{folder}' cannot be written to: {error.strerror or error}.") from error
    return None


def _is_still_there(path: Path, handle: int) -> bool:
    """Whether the run that had the lock before has not taken the file away in between."""
    with suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(handle).st_ino
    return False


_OPEN: set[int] = set()


def _close_in_child() -> None:
    # Data workers outlive a process that is killed by some seconds, and would hold its lock.
    for handle in _OPEN:
        with suppress(OSError):
            os.close(handle)
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
