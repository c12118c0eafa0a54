"""Import optional dependencies, or say in one sentence which extra holds them."""

import importlib
from importlib import metadata
from types import ModuleType

from ._errors import MissingExtraError

# What the build of OpenCV that can open windows loads, and a server lacks.
_OF_A_DISPLAY = ("libGL", "libgthread", "libSM", "libXext", "libxcb", "libX11")


def needs_extra(extra: str) -> str:
    """Return the end of the sentence "X needs the [train] extra: pip install ...".

    Args:
        extra: Its name.
    """
    from vssm_kernels.install import how_to_install  # here: PyTorch comes with it

    return f"needs the [{extra}] extra: {how_to_install(extra)}"


def headless_opencv_command() -> str:
    """Return the command that leaves an OpenCV which needs no libraries of a display.

    mmcv and what mmdet needs depend on both builds of OpenCV. These lie in one folder, where the one installed last
    works. The version is that of the build already there, so that no file of another version is left.
    """
    builds = {"opencv-python", "opencv-python-headless"}
    found = {d.name: d.version for d in metadata.distributions() if (d.name or "").lower() in builds}
    version = found.get("opencv-python") or found.get("opencv-python-headless")
    pinned = f"=={version}" if version else ""
    return f"pip install --force-reinstall --no-deps opencv-python-headless{pinned}"


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
            help = ""
            if any(library in str(error) for library in _OF_A_DISPLAY):
                help = f": {headless_opencv_command()} gives an OpenCV that needs no display"
            raise MissingExtraError(f"{module} is installed but cannot be imported ({error}){help}") from error
        # A module can be there and still lack one of its own dependencies: name what is really missing.
        missing = error.name or module
        via = "" if missing.split(".")[0] == module.split(".")[0] else f" (wanted by {module})"
        raise MissingExtraError(f"{missing}{via} {needs_extra(extra)}") from error
