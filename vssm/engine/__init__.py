"""Training, evaluation and prediction for image classifiers, on mmengine's Runner and timm's parts.

Importing this package registers everything with mmengine's root registries, so a config needs only
``custom_imports = dict(imports=["vssm.engine"])`` to name the types below.
"""

from .._optional import require

for _module in ("mmengine.runner", "torchvision", "PIL"):
    require(_module, "train")

from .checkpoint import CheckpointError, find_resumable, read_checkpoint  # noqa: E402
from .classifier import TimmClassifier, create_model  # noqa: E402
from .config import ConfigError, load_config  # noqa: E402
from .data import DataError, Digits, ImageFolder  # noqa: E402
from .hooks import AtomicCheckpointHook, DemoFiguresHook, EpochSeedHook, MESAHook  # noqa: E402
from .losses import DistillationLoss  # noqa: E402
from .metrics import Accuracy  # noqa: E402
from .optim import AutoAmpOptimWrapper, BFloat16OptimWrapper, TimmOptimWrapperConstructor  # noqa: E402
from .predict import Predictor, find_images  # noqa: E402
from .runner import Runner  # noqa: E402

__all__ = [
    "Accuracy",
    "AtomicCheckpointHook",
    "AutoAmpOptimWrapper",
    "BFloat16OptimWrapper",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DemoFiguresHook",
    "Digits",
    "DistillationLoss",
    "EpochSeedHook",
    "ImageFolder",
    "MESAHook",
    "Predictor",
    "Runner",
    "TimmClassifier",
    "TimmOptimWrapperConstructor",
    "create_model",
    "find_images",
    "find_resumable",
    "load_config",
    "read_checkpoint",
]
