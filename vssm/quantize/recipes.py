"""Quantise a model by a recipe."""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor, nn

from .._errors import did_you_mean
from .calibrate import Plan, batches_of, calibrate, linear_layers
from .layers import QuantizeError, QuantLinear, QuantWeight
from .learn import learn_blocks

__all__ = ["RECIPES", "dynamic_layers", "freeze", "quantize_model"]

# Recipe -> what it does, in a line.
RECIPES = {
    "int8-dynamic": "linear layers in int8, the inputs' steps found at run time",
    "w8a8": "8-bit weights and constant 8-bit steps, of what the scans read too; simulated",
    "ptq4vm": "4-bit weights and 4-bit inputs with a step for each position, learned; simulated",
}


def quantize_model(
    model: nn.Module,
    recipe: str,
    calibration: Tensor | Iterable[Tensor] | None = None,
    *,
    weight_bits: int | None = None,
    input_bits: int | None = None,
    alpha: float = 0.5,
    clip: float = 0.9995,
    hadamard: bool = False,
    epochs: int = 50,
    smoothing_lr: float = 1e-4,
    progress: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    """Return a quantised copy of a model, in eval mode.

    A, D, the bias of the step size and the states stay in float32, as convolutions and norms do.

    * ``"int8-dynamic"``: linear layers run in int8, by torchao if it is installed, else by PyTorch.
    * ``"w8a8"``: per-channel 8-bit weights, a constant step for every tensor that a linear layer or a scan reads, the
      scan's input clipped at a quantile, smoothing, and on request a Hadamard rotation of what the scan gives
      (Quamba, arXiv 2410.13229; SmoothQuant, arXiv 2211.10438). Simulated: products run in float32.
    * ``"ptq4vm"``: 4-bit weights, and 4-bit inputs of linear layers with a constant step for each position; steps and
      smoothing are learned (arXiv 2412.20386). Of the scan the weight of the step size alone is quantised; the
      classifier stays in float32. Simulated, and for one size of images.

    Args:
        model: In float32, on a CPU for ``"int8-dynamic"``.
        recipe: See above.
        calibration: Images (B, C, H, W), or batches of them, transformed as in an evaluation; 256 are usual.
            ``"int8-dynamic"`` takes none.
        weight_bits: 2 to 8 in place of the recipe's own.
        input_bits: 2 to 8 in place of the recipe's own.
        alpha: How much of the outliers smoothing moves into the weights: 0.5, for VMamba 0.65 in PTQ4VM.
        clip: Quantile of the scan's input.
        hadamard: Rotate what the projections behind scans read, where a matrix of that size is known; for ``"w8a8"``.
        epochs: Passes over the calibration images in which ``"ptq4vm"`` learns; 0: none.
        smoothing_lr: Learning rate of the smoothing: 1e-4 for VMamba, 1e-2 for Vim in PTQ4VM.
        progress: Called with (what is done, steps done, steps in all) while ``"ptq4vm"`` learns.

    Raises:
        QuantizeError: The recipe or an option is unknown, or the model has nothing to quantise.
    """
    if recipe not in RECIPES:
        raise QuantizeError(
            f"The recipe must be one of {', '.join(RECIPES)}, not '{recipe}'{did_you_mean(recipe, RECIPES)}."
        )
    for name, bits in (("weight_bits", weight_bits), ("input_bits", input_bits)):
        if bits is not None and not 2 <= bits <= 8:
            raise QuantizeError(f"{name} must be from 2 to 8, not {bits}.")
    if recipe == "int8-dynamic":
        if weight_bits not in (None, 8) or input_bits not in (None, 8) or hadamard:
            raise QuantizeError("int8-dynamic has 8 bits and no rotation: its kernels know nothing else.")
        return _dynamic(model)
    if calibration is None:
        raise QuantizeError(f"{recipe} needs calibration images.")
    if not 0 <= alpha <= 1 or not 0 < clip <= 1:
        raise QuantizeError(f"alpha must be from 0 to 1 and clip above 0 and at most 1, not {alpha} and {clip}.")
    if recipe == "w8a8":
        plan = Plan(alpha=alpha, clip=clip, hadamard=hadamard)
    elif hadamard:
        raise QuantizeError("ptq4vm has no rotation.")
    else:
        skip = frozenset(_classifiers(model))
        plan = Plan(4, 4, per_token=True, scans=False, alpha=alpha, search=True, skip=skip)
    bits = {"weight_bits": weight_bits, "input_bits": input_bits}
    plan = replace(plan, **{name: value for name, value in bits.items() if value is not None})
    batches = batches_of(calibration)
    quantized = calibrate(model, plan, batches)
    if recipe == "ptq4vm" and epochs > 0:
        original = copy.deepcopy(model).eval()
        learn_blocks(original, quantized, batches, epochs, smoothing_lr=smoothing_lr, progress=progress)
    freeze(quantized)
    return quantized


def freeze(model: nn.Module) -> None:
    """Keep the integers of all weights alone."""
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.freeze()
    for module in model.modules():
        if isinstance(module, QuantWeight) and module.integers is None:
            module.freeze()


def _classifiers(model: nn.Module) -> list[str]:
    """Names of the linear layers that give logits."""
    find = getattr(model, "get_classifier", None)
    if find is None:
        return []
    last = find()
    last = last if isinstance(last, tuple | list) else [last]
    return [name for name, module in model.named_modules() if any(module is layer for layer in last)]


def _dynamic(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).eval().requires_grad_(False)
    layers = linear_layers(model)
    if not layers:
        raise QuantizeError(f"{type(model).__name__} has no linear layer to quantise.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's way goes to torchao, says PyTorch
        if importlib.util.find_spec("torchao") is not None:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            quantize_(model, Int8DynamicActivationInt8WeightConfig())
            return model
        from torch.ao import quantization

        config = {nn.Linear: quantization.per_channel_dynamic_qconfig}
        return quantization.quantize_dynamic(model, config, inplace=True)


def dynamic_layers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Return integers (out, in), steps (out, 1) and bias of the int8 layers of PyTorch's or torchao's, by name."""
    found: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and hasattr(weight, "qdata"):
            found[name] = (weight.qdata, weight.scale.reshape(-1, 1).float(), module.bias)
        elif callable(weight) and not isinstance(weight, nn.Module) and hasattr(module, "set_weight_bias"):
            packed = weight()
            found[name] = (packed.int_repr(), packed.q_per_channel_scales().float().view(-1, 1), module.bias())
    return found
