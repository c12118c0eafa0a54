"""Act before a module is imported, or after, without importing it here.

`vssm_kernels.after_import` does the like, but nothing of `vssm_kernels` can be imported without PyTorch.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["call_once"]


class _Watcher(MetaPathFinder):
    """Finds nothing itself; it acts once, and is gone."""

    def __init__(self, action: Callable[[], None], before: Callable[[str], bool], after: str) -> None:
        self.action, self.before, self.after = action, before, after

    def act(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self.action()

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        """Return the spec of `after` with a loader that acts besides; None for any other name."""
        if self.before(fullname):
            self.act()
        if fullname != self.after or self not in sys.meta_path:
            return None
        place = sys.meta_path.index(self)
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(place, self)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_act(module: ModuleType) -> None:
            run(module)
            self.act()

        spec.loader.exec_module = run_and_act
        return spec


def call_once(action: Callable[[], None], before: Callable[[str], bool], after: str) -> Callable[[], None]:
    """Call ``action()`` once: when a module is about to be imported, or when another has been, whichever is first.

    Args:
        action: What to do.
        before: Whether a module of this full name has to wait for it.
        after: Full name of the other module.

    Returns:
        A function that does it now, unless it has been done.
    """
    watcher = _Watcher(action, before, after)
    sys.meta_path.insert(0, watcher)
    return watcher.act
