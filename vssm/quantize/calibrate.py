"""Put quantising layers into a copy of a model, with steps from what calibration images make of it.

Two passes: the first sees the channels of every input, from which smoothing follows, and the scans; the second sees the
inputs once smoothed and rotated.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .fake import symmetric_scale
from .layers import (
    QuantizeError,
    QuantLinear,
    QuantWeight,
    TensorQuantizer,
    TokenQuantizer,
    positions_of,
    quantize_scan,
    weight_of,
)
from .observers import AbsMax, MinMaxPerToken, Percentile
from .per_token import search_weight_steps
from .rotate import has_hadamard
from .smooth import smooth_scales

__all__ = ["Plan", "batches_of", "calibrate", "linear_layers", "mixers_with_points"]


@dataclass(frozen=True)
class Plan:
    """What is quantised, and how.

    Attributes:
        weight_bits: Of weights, 2 to 8.
        input_bits: Of what linear layers read, 2 to 8.
        per_token: A step for each position; else one for each tensor.
        scans: Whether what the scans read is quantised, too, besides the weight of the step size.
        alpha: Of the smoothing; None: no smoothing.
        clip: Quantile to which the scans' input is clipped.
        hadamard: Rotate what the projections behind scans read.
        search: Choose steps of weights by the smallest error; else the largest value decides.
        skip: Names of linear layers that stay as they are.
    """

    weight_bits: int = 8
    input_bits: int = 8
    per_token: bool = False
    scans: bool = True
    alpha: float | None = 0.5
    clip: float = 0.9995
    hadamard: bool = False
    search: bool = False
    skip: frozenset[str] = field(default_factory=frozenset)


class _PerMap:
    """An observer for each size of a layer's maps."""

    def __init__(self) -> None:
        self.by_size: dict[str, MinMaxPerToken] = {}

    def __call__(self, x: Tensor) -> None:
        self.by_size.setdefault(positions_of(x), MinMaxPerToken())(x)


class _Watch(nn.Module):
    """Stand where a quantiser will, and look."""

    def __init__(self, observer: Callable[[Tensor], None]):
        super().__init__()
        self.observer = observer

    def forward(self, x: Tensor) -> Tensor:
        self.observer(x)
        return x


class _FloatWeight(QuantWeight):
    """A weight before it is quantised."""

    def forward(self, scales: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        return self.turned(scales, rotation)


def linear_layers(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """Return the linear layers of a model by name, but those named."""
    left_out = frozenset(skip)
    return {n: m for n, m in model.named_modules() if type(m) is nn.Linear and n not in left_out}


def mixers_with_points(model: nn.Module) -> dict[str, nn.Module]:
    """Return the mixers that name quantisation points, by name."""
    return {name: module for name, module in model.named_modules() if getattr(module, "quant_points", ())}


def batches_of(calibration: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return calibration images as a list of batches (B, C, H, W).

    Raises:
        QuantizeError: There are none.
    """
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    if not batches or any(batch.dim() != 4 or not len(batch) for batch in batches):
        raise QuantizeError("Calibration needs at least one batch of images (B, C, H, W).")
    return batches


def calibrate(model: nn.Module, plan: Plan, batches: Iterable[Tensor]) -> nn.Module:
    """Return a quantised copy of a model, in eval mode; its weights are not frozen yet.

    Args:
        model: In float32.
        plan: What is done.
        batches: Images (B, C, H, W), transformed as in an evaluation.

    Raises:
        QuantizeError: The model has no linear layer that the images reach.
    """
    batches = list(batches)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    layers, mixers = linear_layers(model, plan.skip), mixers_with_points(model)
    widths = {name: AbsMax(channels=True) for name in layers}
    points = {name: _observe(mixer, plan) for name, mixer in mixers.items()}
    hooks = [layer.register_forward_pre_hook(_look(widths[name])) for name, layer in layers.items()]
    _run(model, batches)
    for hook in hooks:
        hook.remove()
    # What no image reached stays as it is: a second classifier for training, a layer whose weight is read directly.
    layers = {name: layer for name, layer in layers.items() if widths[name].bound is not None}
    points = {n: {p: o for p, o in seen.items() if _has_seen(o)} for n, seen in points.items()}
    if not layers:
        raise QuantizeError(f"No linear layer of {type(model).__name__} is reached by the images.")
    inputs: dict[str, AbsMax | _PerMap] = {}
    for name, layer in layers.items():
        inputs[name] = _PerMap() if plan.per_token else AbsMax()
        watched = _watched(layer, widths[name].bound, inputs[name], plan, _behind_scan(name, mixers))
        model.set_submodule(name, watched)
    for name, mixer in mixers.items():
        quantize_scan(mixer, dict(_point_quantizers(mixer, points[name], plan)))
    _run(model, batches)
    for name, observer in inputs.items():
        _settle(model.get_submodule(name), observer, plan)
    return model


def _look(observer: Callable[[Tensor], None]) -> Callable:
    return lambda module, args: observer(args[0])


@torch.no_grad()
def _run(model: nn.Module, batches: Iterable[Tensor]) -> None:
    for images in batches:
        model(images)


def _has_seen(observer: AbsMax | _PerMap) -> bool:
    return bool(observer.by_size) if isinstance(observer, _PerMap) else observer.bound is not None


def _observe(mixer: nn.Module, plan: Plan) -> dict[str, AbsMax | _PerMap]:
    names = mixer.quant_points if plan.scans else ()
    seen: dict[str, AbsMax | _PerMap] = {n: Percentile(plan.clip) if n == "u" else AbsMax() for n in names}
    for weight in getattr(mixer, "quant_weights", ()):
        seen[f"{weight}_input"] = _PerMap() if plan.per_token else AbsMax()
    quantize_scan(mixer, {name: _Watch(observer) for name, observer in seen.items()})
    return seen


def _input_quantizer(observer: AbsMax | _PerMap, plan: Plan) -> nn.Module:
    if isinstance(observer, AbsMax):
        return TensorQuantizer(observer.scale(plan.input_bits), plan.input_bits)
    steps = {size: seen.steps(2**plan.input_bits) for size, seen in observer.by_size.items()}
    return TokenQuantizer(steps, plan.input_bits)


def _point_quantizers(
    mixer: nn.Module, seen: Mapping[str, AbsMax | _PerMap], plan: Plan
) -> Iterator[tuple[str, nn.Module]]:
    for name, observer in seen.items():
        yield name, _input_quantizer(observer, plan)
    names = [weight for weight in getattr(mixer, "quant_weights", ()) if f"{weight}_input" in seen]
    if hasattr(mixer, "dt_projs_weight"):  # those with one scalar step a head have none
        names.append("dt_weight")
    for name in names:
        weight = getattr(mixer, weight_of(name)).detach()
        yield name, QuantWeight(weight, _weight_step(weight, plan), plan.weight_bits)


def _weight_step(weight: Tensor, plan: Plan) -> Tensor:
    flat = weight.flatten(0, -2)
    if plan.search:
        step = search_weight_steps(flat, 2**plan.weight_bits)
    else:
        step = symmetric_scale(flat.abs().amax(1, keepdim=True), plan.weight_bits)
    return step.unflatten(0, weight.shape[:-1])


def _behind_scan(name: str, mixers: Mapping[str, nn.Module]) -> bool:
    parent, _, last = name.rpartition(".")
    return parent in mixers and last == "out_proj"


def _watched(layer: nn.Linear, bound: Tensor | None, observer: Callable, plan: Plan, behind_scan: bool) -> QuantLinear:
    assert bound is not None
    scales = None if plan.alpha is None else smooth_scales(bound, layer.weight, plan.alpha)
    rotated = plan.hadamard and behind_scan and has_hadamard(layer.in_features)
    weight = _FloatWeight(layer.weight, layer.weight.new_ones(layer.out_features, 1), plan.weight_bits)
    return QuantLinear(layer.bias, weight, _Watch(observer), scales, rotated, layer.in_features)


@torch.no_grad()
def _settle(layer: nn.Module, observer: AbsMax | _PerMap, plan: Plan) -> None:
    assert isinstance(layer, QuantLinear) and layer.weight.weight is not None
    layer.input = _input_quantizer(observer, plan)
    step = _weight_step(layer.weight(layer.smoothing, layer.rotation), plan)
    layer.weight = QuantWeight(layer.weight.weight, step, plan.weight_bits)
