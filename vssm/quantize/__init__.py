"""Post-training quantisation: observers, quantisers that keep gradients, smoothing and rotation."""

from .fake import fake_quantize, fake_quantize_levels, quantize, straight_through_round, symmetric_scale
from .observers import AbsMax, MinMaxPerToken, Percentile, upper_quantile
from .per_token import TokenSteps, search_token_steps, search_weight_steps, token_steps
from .rotate import hadamard, has_hadamard, rotate
from .smooth import fold_into, smooth_scales
from .states import StateFactors, state_factors, state_steps

__all__ = [
    "AbsMax",
    "MinMaxPerToken",
    "Percentile",
    "StateFactors",
    "TokenSteps",
    "fake_quantize",
    "fake_quantize_levels",
    "fold_into",
    "hadamard",
    "has_hadamard",
    "quantize",
    "rotate",
    "search_token_steps",
    "search_weight_steps",
    "smooth_scales",
    "state_factors",
    "state_steps",
    "straight_through_round",
    "symmetric_scale",
    "token_steps",
    "upper_quantile",
]
