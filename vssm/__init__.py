"""Vision state-space backbones for timm: `import vssm`, then `timm.create_model("vmamba_tiny_s1l8")`."""

from . import models
from ._version import __version__

__all__ = ["__version__", "models"]
