"""Vision state-space backbones for timm: `import vssm`, then `timm.create_model("vmamba_tiny_s1l8")`."""

import fnmatch

import timm

from . import _fvcore, _mmcv, _moved, models, tasks  # noqa: F401  (adds the models to timm's registry, and the tasks to ours)
from ._version import __version__

__all__ = ["__version__", "list_models", "models"]

# From here on `import mmdet` works with an mmcv that was installed without compiled operators.
_mmcv.install_finder()
# And `fvcore` counts the scans.
_fvcore.offer_handles()
# And modules are found under the names that they had before they moved.
_moved.install_finder()


def list_models(pattern: str = "*") -> list[str]:
    """Names of this package's models in timm's registry; `pattern` is a shell wildcard such as "vmamba_tiny*"."""
    ours = (n for n in timm.list_models() if timm.models.model_entrypoint(n).__module__.startswith("vssm."))
    return sorted(n for n in ours if fnmatch.fnmatch(n, pattern))
