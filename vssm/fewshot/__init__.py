"""Learn new classes from a few images each, session by session (Mamba-FSCIL, arXiv 2407.06136)."""

from .._optional import require

for _module in ("mmengine.runner", "torchvision", "PIL"):
    require(_module, "train")

from .. import engine as _engine  # noqa: E402, F401  (registers the hooks and wrappers that configs name)
from .classifier import IncrementalClassifier, IncrementalNet  # noqa: E402
from .data import SessionClasses, Split, draw_shots, make_split  # noqa: E402
from .etf import ETFClassifier, dot_regression_loss, simplex_etf  # noqa: E402
from .losses import class_sensitive_losses, mix_features, separation_losses, suppression_losses  # noqa: E402
from .projector import DualProjector, Projection, Selection, convert_projector  # noqa: E402
from .protocol import Outcome, Recipe, Score, look_at, run_sessions  # noqa: E402
from .resnet12 import ResNet12  # noqa: E402

__all__ = [
    "DualProjector",
    "ETFClassifier",
    "IncrementalClassifier",
    "IncrementalNet",
    "Outcome",
    "Projection",
    "Recipe",
    "ResNet12",
    "Score",
    "Selection",
    "SessionClasses",
    "Split",
    "class_sensitive_losses",
    "convert_projector",
    "dot_regression_loss",
    "draw_shots",
    "look_at",
    "make_split",
    "mix_features",
    "run_sessions",
    "separation_losses",
    "simplex_etf",
    "suppression_losses",
]
