"""Import optional dependencies, or say in one sentence which extra holds them."""

import importlib
import importlib.util
from types import ModuleType

from ._errors import MissingExtraError

# mmdet's dependencies want both builds of OpenCV, and the one installed last stays.
_HEADLESS = "pip install --force-reinstall --no-deps opencv-python-headless gives OpenCV without a display"


def require(module: str, extra: str) -> ModuleType:
    """Import a module that only an extra of this package brings.

    Args:
        module: Import name, for example ``"mmengine"``.
        extra: Name of the extra that installs it, for example ``"train"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The module, or one that it needs, is not installed or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except MissingExtraError:
        raise
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):  # it is there, and a library of the system is not
            help = f": {_HEADLESS}" if "libGL" in str(error) else ""
            raise MissingExtraError(f"{module} is installed but cannot be imported ({error}){help}") from error
        # A module can be there and still lack one of its own dependencies: name what is really missing.
        missing = error.name or module
        via = "" if missing.split(".")[0] == module.split(".")[0] else f" (wanted by {module})"
        raise MissingExtraError(f"{missing}{via} needs the [{extra}] extra: pip install 'vssm[{extra}]'") from error
