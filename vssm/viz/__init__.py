"""Pictures of what models do. Matplotlib is imported when something is drawn, not before."""

from ..scans.linear import LinearScan as FrozenScan
from ..scans.linear import scan_weights
from .attention import attention_maps, attention_rollout, freeze_scans, plot_attention, record_scans
from .compare import FoundObject, plot_label_maps, plot_objects
from .costs import plot_accuracy, plot_costs, plot_resolution
from .curves import plot_learning_curves, read_log
from .features import class_activation, feature_maps, plot_activations
from .plots import plot_predictions, plot_receptive_fields
from .pruning import plot_pruning
from .receptive_field import effective_receptive_field, high_contribution_side
from .routes import PATTERNS, VOLUME_PATTERNS, animate_routes, patterns_of, plot_routes, scan_sequences
from .spectrum import half_lives_by_stage, plot_half_lives

__all__ = [
    "half_lives_by_stage",
    "plot_half_lives",
    "PATTERNS",
    "VOLUME_PATTERNS",
    "FoundObject",
    "FrozenScan",
    "animate_routes",
    "attention_maps",
    "attention_rollout",
    "class_activation",
    "effective_receptive_field",
    "feature_maps",
    "freeze_scans",
    "high_contribution_side",
    "patterns_of",
    "plot_accuracy",
    "plot_activations",
    "plot_attention",
    "plot_costs",
    "plot_label_maps",
    "plot_learning_curves",
    "plot_objects",
    "plot_predictions",
    "plot_pruning",
    "plot_receptive_fields",
    "plot_resolution",
    "plot_routes",
    "read_log",
    "record_scans",
    "scan_sequences",
    "scan_weights",
]
