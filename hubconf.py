"""The models for torch.hub: `torch.hub.load("OWNER/REPOSITORY", "vmamba_tiny_s1l8", pretrained=True)`.

Every registered model is an entry point that takes the arguments of `timm.create_model`, `num_classes` for example. The
package need not be installed, and what it is made from is not compiled.
"""

import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch", "timm", "numpy", "safetensors", "yaml"]

# Modules are imported when they are first used, which may be after torch.hub has taken the repository from the path.
for _folder in (_Path(__file__).parent, _Path(__file__).parent / "kernels"):
    if str(_folder) not in _sys.path:
        _sys.path.append(str(_folder))

import timm as _timm  # noqa: E402

import vssm as _vssm  # noqa: E402

for _name in _vssm.list_models():
    globals()[_name] = _timm.models.model_entrypoint(_name)
