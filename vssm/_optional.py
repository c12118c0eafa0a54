"""Import optional dependencies, or say in one sentence which extra holds them."""

import importlib
import importlib.util
from types import ModuleType

from ._errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import a module that only an extra of this package brings.

    Args:
        module: Import name, for example ``"mmengine"``.
        extra: Name of the extra that installs it, for example ``"train"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The module, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A module can be there and still lack one of its own dependencies: name what is really missing.
        missing = error.name or module
        via = "" if missing.split(".")[0] == module.split(".")[0] else f" (wanted by {module})"
        raise MissingExtraError(f"{missing}{via} needs the [{extra}] extra: pip install 'vssm[{extra}]'") from error
