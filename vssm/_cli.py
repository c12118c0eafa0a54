"""Speak to a person who runs a tool: lines on the terminal, and a mistake as one sentence and an exit code."""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from ._errors import UserError

__all__ = ["UsageError", "printable", "program", "run", "say"]


class UsageError(UserError):
    """Arguments that do not go together; who parsed them shows the usage too."""


# Control characters can move a terminal's cursor; surrogates stand for the bytes of names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

# Whatever is being written then, logs of libraries too, it is no bug.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call a tool's ``main`` and return the process's exit code.

    Args:
        main: The tool; takes the arguments (None: those of the process) and returns an exit code or None for 0.
        argv: Arguments without the program's name.

    Returns:
        0 on success, 2 after a :class:`~vssm._errors.UserError` or where a disk is full, 130 after Ctrl-C; other
        exceptions pass through, because a traceback is what the report of a bug needs.
    """
    try:
        return main(argv) or 0
    except UserError as error:
        return _fail(_sentence(error))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f"'{error.filename}'" if error.filename else "A file"
        return _fail(f"{where} cannot be written: {error.strerror}.")
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130


def _fail(sentence: str) -> int:
    say(f"{program()}: error: {sentence}", error=True)
    return 2


def program() -> str:
    """Return the name that messages begin with: a script's own, else "vssm"."""
    name = os.path.basename(sys.argv[0])
    return name if name not in ("", "-c", "-m", "__main__.py") else "vssm"


def say(line: str, error: bool = False) -> None:
    """Print a line at once, to the standard output or to the standard error.

    What the terminal cannot show is escaped.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = printable(str(line)).encode(encoding, "backslashreplace").decode(encoding) + "\n"
    with _without_bars(stream):
        stream.write(text)
        stream.flush()


def _without_bars(stream: TextIO) -> AbstractContextManager:
    """Take progress bars away while a line is written."""
    if "tqdm" not in sys.modules:  # nobody has drawn one
        return nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=stream)


def printable(text: str) -> str:
    r"""Return a text with control characters and surrogates as Python writes them, ``\x1b`` for example."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def _sentence(error: UserError) -> str:
    text = error.for_tools or str(error)
    if "DataLoader worker process" in text:
        # torch hands on a worker's error with the worker's traceback as its text; the sentence is the last line.
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())
