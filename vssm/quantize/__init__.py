"""Post-training quantisation: recipes for models, and the observers, quantisers, smoothing and rotation they take."""

from .calibrate import Plan, calibrate, linear_layers, mixers_with_points
from .fake import fake_quantize, fake_quantize_levels, quantize, straight_through_round, symmetric_scale
from .images import calibration_images, evaluation_options, top1
from .layers import QuantizeError, QuantLinear, QuantWeight, TensorQuantizer, TokenQuantizer, quantize_scan
from .learn import learn_blocks, quantised_blocks
from .observers import AbsMax, MinMaxPerToken, Percentile, upper_quantile
from .onnx_file import QUANTIZED_OPS, QuantizedFile, quantize_onnx
from .per_token import TokenSteps, search_token_steps, search_weight_steps, token_steps
from .recipes import RECIPES, quantize_model
from .report import LayerReport, as_table, report
from .rotate import hadamard, has_hadamard, rotate
from .smooth import fold_into, smooth_scales
from .states import StateFactors, state_factors, state_steps
from .store import load_quantized, save_quantized

__all__ = [
    "QUANTIZED_OPS",
    "RECIPES",
    "AbsMax",
    "LayerReport",
    "MinMaxPerToken",
    "Percentile",
    "Plan",
    "QuantLinear",
    "QuantWeight",
    "QuantizeError",
    "QuantizedFile",
    "StateFactors",
    "TensorQuantizer",
    "TokenQuantizer",
    "TokenSteps",
    "as_table",
    "calibrate",
    "calibration_images",
    "evaluation_options",
    "fake_quantize",
    "fake_quantize_levels",
    "fold_into",
    "hadamard",
    "has_hadamard",
    "learn_blocks",
    "linear_layers",
    "load_quantized",
    "mixers_with_points",
    "quantised_blocks",
    "quantize",
    "quantize_model",
    "quantize_onnx",
    "quantize_scan",
    "report",
    "rotate",
    "save_quantized",
    "search_token_steps",
    "search_weight_steps",
    "smooth_scales",
    "state_factors",
    "state_steps",
    "straight_through_round",
    "symmetric_scale",
    "token_steps",
    "top1",
    "upper_quantile",
]
