"""Image classifiers: timm's models, losses and data in mmengine's runs.

Importing this package registers everything with mmengine's root registries, so a config needs only
``custom_imports = dict(imports=["vssm.classify"])`` to name the types below.
"""

from .._optional import require

for _module in ("mmengine.runner", "torchvision", "PIL"):
    require(_module, "train")

from .. import engine as _engine  # noqa: E402, F401  (registers the hooks and wrappers that configs name)
from .classifier import TimmClassifier  # noqa: E402
from .data import Digits, ImageFolder  # noqa: E402
from .hooks import DemoFiguresHook, MESAHook  # noqa: E402
from .losses import DistillationLoss  # noqa: E402
from .metrics import Accuracy  # noqa: E402
from .predict import Prediction, Predictor  # noqa: E402
from .samplers import RepeatSampler  # noqa: E402
from .shards import ShardSampler  # noqa: E402
from .sources import TimmDataset, TimmStream  # noqa: E402

__all__ = [
    "Accuracy",
    "DemoFiguresHook",
    "Digits",
    "DistillationLoss",
    "ImageFolder",
    "MESAHook",
    "Prediction",
    "Predictor",
    "RepeatSampler",
    "ShardSampler",
    "TimmClassifier",
    "TimmDataset",
    "TimmStream",
]
