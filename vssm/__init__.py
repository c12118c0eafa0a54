"""Vision state-space backbones for timm: `import vssm`, then `timm.create_model("vmamba_tiny_s1l8")`."""

import fnmatch
import sys
from typing import TYPE_CHECKING

from . import _deferred, _mmcv, _moved, tasks  # noqa: F401  (adds the tasks to our registry)
from ._version import __version__

if TYPE_CHECKING:
    from . import models

__all__ = ["__version__", "list_models", "models"]

# From here on `import mmdet` works with an mmcv that was installed without compiled operators.
_mmcv.install_finder()
# And modules are found under the names that they had before they moved.
_moved.install_finder()

# What the commands need to answer --help. PyTorch and timm take seconds to import, so what needs them waits.
_LIGHT = {"vssm.commands", "vssm.published", "vssm.tasks"}


def _needs_models(module: str) -> bool:
    package, _, name = module.rpartition(".")
    return package == "vssm" and not name.startswith("_") and module not in _LIGHT


def _register() -> None:
    from . import _fvcore, models  # noqa: F401  (adds the models to timm's registry)

    # `fvcore` counts the scans.
    _fvcore.offer_handles()


# Whoever asks timm for a model has imported timm: its registry has our models as soon as it is there.
_register_now = _deferred.call_once(_register, before=_needs_models, after="timm")
if "torch" in sys.modules:
    _register_now()


def __getattr__(name: str):
    # The packages that registering the models imports.
    if name in ("checkpoint", "layers", "models", "published", "scans"):
        _register_now()
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'vssm' has no attribute '{name}'")


def list_models(pattern: str = "*") -> list[str]:
    """Names of this package's models in timm's registry; `pattern` is a shell wildcard such as "vmamba_tiny*"."""
    import timm

    ours = (n for n in timm.list_models() if timm.models.model_entrypoint(n).__module__.startswith("vssm.models."))
    return sorted(n for n in ours if fnmatch.fnmatch(n, pattern))
