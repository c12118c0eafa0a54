"""Let Python find a stand-in for mmcv's compiled operators when the installed mmcv has none."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

_STAND_IN = Path(__file__).with_name("mm") / "mmcv_ext.py"


class MissingOperatorsFinder(MetaPathFinder):
    """Finds ``mmcv._ext``, and nothing else, in :mod:`vssm.mm.mmcv_ext`.

    It stands last in ``sys.meta_path``, so Python asks it only after every other finder has failed: a compiled
    ``mmcv._ext`` is always preferred. Nothing is imported before mmcv itself asks for the module.
    """

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        """Return where the stand-in lies, or None for any other name."""
        if fullname != "mmcv._ext":
            return None
        return importlib.util.spec_from_file_location(fullname, _STAND_IN)


def install_finder() -> None:
    """Put the finder at the end of ``sys.meta_path``, once."""
    if not any(isinstance(finder, MissingOperatorsFinder) for finder in sys.meta_path):
        sys.meta_path.append(MissingOperatorsFinder())
