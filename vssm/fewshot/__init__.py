"""Learn new classes from a few images each, session by session (Mamba-FSCIL, arXiv 2407.06136)."""

from .._optional import require

for _module in ("mmengine.runner", "torchvision", "PIL"):
    require(_module, "train")

from .etf import ETFClassifier, dot_regression_loss, simplex_etf  # noqa: E402
from .losses import class_sensitive_losses, mix_features, separation_losses, suppression_losses  # noqa: E402
from .projector import DualProjector, Projection, Selection, convert_projector  # noqa: E402

__all__ = [
    "DualProjector",
    "ETFClassifier",
    "Projection",
    "Selection",
    "class_sensitive_losses",
    "convert_projector",
    "dot_regression_loss",
    "mix_features",
    "separation_losses",
    "simplex_etf",
    "suppression_losses",
]
