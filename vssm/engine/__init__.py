"""Training, evaluation and prediction from configs, on mmengine's Runner and timm's parts, for every task.

Importing this package registers hooks, the runner, optimiser wrappers and their constructor with mmengine's root
registries. What a task's own configs name is registered by the task's package, which `load_config` imports.
"""

import importlib
from typing import Any

from .._optional import require

for _module in ("mmengine.runner", "torchvision", "PIL"):
    require(_module, "train")

from .._moved import MOVED as _MODULES  # noqa: E402
from .._tasks import tasks as _tasks  # noqa: E402
from ..models.create import create_model  # noqa: E402
from .checkpoint import CheckpointError, find_resumable, read_checkpoint  # noqa: E402
from .config import ConfigError, load_config  # noqa: E402
from .hooks import AtomicCheckpointHook, EpochSeedHook  # noqa: E402
from .images import DataError, find_images  # noqa: E402
from .optim import AutoAmpOptimWrapper, BFloat16OptimWrapper, TimmOptimWrapperConstructor  # noqa: E402
from .runner import Runner  # noqa: E402

__all__ = [
    "AtomicCheckpointHook",
    "AutoAmpOptimWrapper",
    "BFloat16OptimWrapper",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EpochSeedHook",
    "Runner",
    "TimmOptimWrapperConstructor",
    "create_model",
    "find_images",
    "find_resumable",
    "load_config",
    "read_checkpoint",
]

# Names that this package gave before they moved to a task's. Configs that import it in their name must still build.
_MOVED = {name: task for task in _tasks() for name in task.formerly.get(__name__, ())}
__all__ += _MOVED
for _task in dict.fromkeys(_MOVED.values()):
    _task.load()


def __getattr__(name: str) -> Any:
    """Give a name or a module that has moved to the package of a task."""
    if name in _MOVED:
        return getattr(_MOVED[name].load(), name)
    if f"{__name__}.{name}" in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
