"""Act on a module of another package once it has been imported, without importing it here."""

import importlib.machinery
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["call_after_import"]


class _Watcher(MetaPathFinder):
    """Finds the watched modules where they are, and acts on each when it has been imported."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        """Return the module's own spec, with a loader that acts besides; None for any other name."""
        action = self.actions.get(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if action else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_act(module: ModuleType) -> None:
            run(module)
            action(module)

        spec.loader.exec_module = run_and_act
        return spec


_WATCHER = _Watcher()


def call_after_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action(module)`` whenever a module has been imported: now too, if it has been already.

    Args:
        name: The module's full name.
        action: What to do with the module; a later action for the same module replaces it.
    """
    _WATCHER.actions[name] = action
    if _WATCHER not in sys.meta_path:
        sys.meta_path.insert(0, _WATCHER)
    if name in sys.modules:
        action(sys.modules[name])
