"""Let Python find modules of this package under the names that they had before they moved."""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Old name: new name. Both stand for one and the same module.
MOVED = {
    "vssm._folders": "vssm._files",
    "vssm.engine.classifier": "vssm.classify.classifier",
    "vssm.engine.data": "vssm.classify.data",
    "vssm.engine.losses": "vssm.classify.losses",
    "vssm.engine.metrics": "vssm.classify.metrics",
    "vssm.engine.predict": "vssm.classify.predict",
    "vssm.mm.digit_scenes": "vssm.engine.digit_scenes",
    "vssm.models._checkpoint": "vssm.checkpoint",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a moved module by its old name, when that is imported and not before."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        """Return a spec that leads to the module's new place, or None for any other name."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module at its new place."""
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back, in whose place the import system has put the old name's."""
        module.__spec__ = module.__spec__.loader_state


def install_finder() -> None:
    """Put the finder at the end of ``sys.meta_path``, once: a module that is there is found before."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
