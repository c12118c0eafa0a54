"""Errors that a person can mend without reading our code."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was typed, configured or installed; its text is one complete sentence for that person.

    The command-line tools print the sentence and stop; every other exception is a bug and keeps its traceback.

    Attributes:
        for_tools: The sentence for a person who runs a tool and knows its options, where it else names arguments of
            Python.
    """

    def __init__(self, *args: object, for_tools: str | None = None):
        super().__init__(*args)
        self.for_tools = for_tools


class MissingExtraError(UserError, ImportError):
    """An optional dependency of the package is not installed."""


class DataError(UserError):
    """Training or test data is missing or unreadable."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'a' or 'b'?)"``, or an empty string when nothing known resembles ``name``."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
