"""Pictures of what models do. Matplotlib is imported when something is drawn, not before."""

from .costs import plot_accuracy, plot_costs, plot_resolution
from .plots import plot_learning_curve, plot_predictions, plot_receptive_fields, read_log
from .receptive_field import effective_receptive_field, high_contribution_side
from .routes import PATTERNS, plot_routes

__all__ = [
    "PATTERNS",
    "effective_receptive_field",
    "high_contribution_side",
    "plot_accuracy",
    "plot_costs",
    "plot_learning_curve",
    "plot_predictions",
    "plot_receptive_fields",
    "plot_resolution",
    "plot_routes",
    "read_log",
]
