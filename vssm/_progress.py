"""Show how far a longer piece of work is: a bar on the standard error, where that is a terminal, and else nothing."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["Progress", "quietly", "track", "track_stages"]

T = TypeVar("T")
# Wraps what is gone through, with a title.
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Show a bar while items are gone through; it is gone at the end.

    Args:
        items: The items.
        title: What is done, in a word or two.
        total: How many there are, where ``items`` has no length.

    Yields:
        The items.
    """
    total = len(items) if total is None and isinstance(items, Sequence) else total
    yield from tqdm(items, title, total, leave=False, file=sys.stderr, disable=None, dynamic_ncols=True)


def quietly(items: Iterable[T], title: str) -> Iterable[T]:
    """Take the place of :func:`track` where nothing is to be shown."""
    return items


class track_stages:
    """Shows a bar for each stage of a piece of work; where there is no terminal, a line at the end of each.

    Call it with the stage's name, the steps done and the steps in all. As a context it takes the bar away at its end.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            if done == total:
                sys.stderr.write(f"{stage}: done\n")
                sys.stderr.flush()
            return
        if self._bar is None or self._bar.total != total:
            self.close()
            self._bar = tqdm(total=total, leave=False, file=sys.stderr, dynamic_ncols=True)
        self._bar.set_description_str(stage, refresh=False)
        self._bar.n = done
        self._bar.refresh()
        if done == total:
            self.close()

    def __enter__(self) -> "track_stages":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
