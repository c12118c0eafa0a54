"""Quantised models as safetensors files: integers with their steps, and everything else as it was.

4-bit integers are packed, two to a byte. The file's metadata say what stands in place of which layer.
"""

import copy
import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .._files import whole_file
from .layers import QuantizeError, QuantLinear, QuantWeight, TensorQuantizer, TokenQuantizer, quantize_scan, weight_of
from .per_token import TokenSteps
from .recipes import dynamic_layers

__all__ = ["load_quantized", "save_quantized"]

_FORMAT = "vssm.quantize 1"


def save_quantized(model: nn.Module, path: str | os.PathLike, about: Mapping[str, Any] | None = None) -> None:
    """Write a model of `quantize_model` to a file.

    Args:
        model: The quantised model.
        path: The file, a .safetensors.
        about: What else its metadata shall say, such as the model's name and the recipe; JSON.

    Raises:
        QuantizeError: The model has no quantised layer.
        FileError: The file cannot be written.
    """
    layers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    dynamic = dynamic_layers(model)
    for name, module in model.named_modules():
        if name in dynamic:
            weight, scale, bias = dynamic[name]
            layers[name] = {"kind": "dynamic", "bias": bias is not None}
            tensors |= {f"{name}.integers": weight, f"{name}.step": scale}
            tensors |= {} if bias is None else {f"{name}.bias": bias}
        elif isinstance(module, QuantWeight):
            layers[name] = {"kind": "weight", "bits": module.bits}
        elif isinstance(module, QuantLinear):
            layers[name] = {"kind": "linear", "rotated": module.rotated}
        elif isinstance(module, TensorQuantizer):
            layers[name] = {"kind": "tensor", "bits": module.bits}
        elif isinstance(module, TokenQuantizer):
            layers[name] = {"kind": "tokens", "bits": module.bits, "sizes": module.sizes}
    if not layers:
        raise QuantizeError(f"{type(model).__name__} has no quantised layer to write.")
    doubled = _replaced_weights(layers)
    for name, value in _state(model).items():
        if name not in doubled and not any(name.startswith(f"{layer}.") for layer in dynamic):
            tensors[name] = value.detach()
    shapes = {}
    for name, entry in layers.items():
        key = f"{name}.integers"
        if entry["kind"] == "weight" and entry["bits"] <= 4:
            shapes[key] = list(tensors[key].shape)
            tensors[key] = _pack(tensors[key])
    said = {"format": _FORMAT, "layers": json.dumps(layers), "packed": json.dumps(shapes)}
    said["about"] = json.dumps(dict(about or {}))
    with whole_file(path) as part:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, part, said)


def load_quantized(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Return a copy of a model with the quantised layers and all weights of a file; in eval mode.

    Args:
        model: Of the kind that was quantised, with as many classes; its own weights do not matter.
        path: A file of `save_quantized`.

    Raises:
        QuantizeError: The file is missing, is no such file, or is of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise QuantizeError(f"The file '{path}' cannot be read: {str(error).rstrip('.')}.") from error
    if said.get("format") != _FORMAT:
        raise QuantizeError(f"The file '{path}' is none that `vssm quantize` wrote.")
    for key, shape in json.loads(said["packed"]).items():
        tensors[key] = _unpack(tensors[key], shape)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    layers = json.loads(said["layers"])
    try:
        dynamic = _build(model, layers, tensors)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        for name, layer in dynamic.items():  # only now: they read a state dict of another form
            model.set_submodule(name, layer)
    except (AttributeError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise QuantizeError(f"The file '{path}' does not fit {type(model).__name__}: {reason}.") from error
    replaced = _replaced_weights(layers)
    missing = [name for name in missing if name not in replaced]
    if missing or unexpected:
        name = (missing or unexpected)[0]
        lacks = "lacks" if missing else "has too much:"
        raise QuantizeError(f"The file '{path}' does not fit {type(model).__name__}: it {lacks} {name}.")
    return model


def _replaced_weights(layers: Mapping[str, Any]) -> set[str]:
    """Names of the mixers' parameters in whose place quantised weights stand."""
    places = (name.partition(".quantizers.") for name, entry in layers.items() if entry["kind"] == "weight")
    return {f"{mixer}.{weight_of(name)}" for mixer, _, name in places if name}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _build(model: nn.Module, layers: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Put the layers in their places, but the dynamic ones, which are returned; of them `tensors` is rid."""
    points: dict[str, dict[str, nn.Module]] = {}
    dynamic: dict[str, nn.Module] = {}
    for name, entry in layers.items():
        if entry["kind"] == "dynamic":
            shape = tensors[f"{name}.integers"].shape
            dynamic[name] = _dynamic(name, entry, tensors)
            _replace(model, name, nn.Identity(), shape)
        elif entry["kind"] == "linear":
            weight = _made(f"{name}.weight", layers[f"{name}.weight"], tensors)
            reader = _made(f"{name}.input", layers[f"{name}.input"], tensors)
            bias, smoothing = tensors.get(f"{name}.bias"), tensors.get(f"{name}.smoothing")
            shape = weight.integers.shape
            _replace(model, name, QuantLinear(bias, weight, reader, smoothing, entry["rotated"], shape[-1]), shape)
        elif ".quantizers." in name:
            mixer, _, point = name.partition(".quantizers.")
            points.setdefault(mixer, {})[point] = _made(name, entry, tensors)
    for name, made in points.items():
        quantize_scan(model.get_submodule(name), made)
    return dynamic


def _made(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    if entry["kind"] == "tensor":
        return TensorQuantizer(tensors[f"{name}.scale"], entry["bits"])
    if entry["kind"] == "tokens":
        sizes = entry["sizes"]
        steps = {size: TokenSteps(tensors[f"{name}.step_{size}"], tensors[f"{name}.zero_{size}"]) for size in sizes}
        return TokenQuantizer(steps, entry["bits"])
    integers = tensors[f"{name}.integers"]
    weight = QuantWeight(integers.float(), tensors[f"{name}.step"], entry["bits"])
    weight.integers, weight.weight = integers, None
    return weight


def _dynamic(name: str, entry: Mapping[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    integers, step = tensors.pop(f"{name}.integers"), tensors.pop(f"{name}.step")
    bias = tensors.pop(f"{name}.bias") if entry["bias"] else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn.quantized import dynamic

        layer = dynamic.Linear(integers.shape[1], integers.shape[0], bias_=bias is not None)
        scale = step.flatten().double()
        weight = torch._make_per_channel_quantized_tensor(integers, scale, torch.zeros(len(scale), dtype=torch.long), 0)
        layer.set_weight_bias(weight, bias)
    return layer


def _replace(model: nn.Module, name: str, new: nn.Module, shape: torch.Size) -> None:
    old = model.get_submodule(name).weight.shape
    if old != shape:
        raise RuntimeError(f"{name} has weights of {tuple(old)}, the file has {tuple(shape)}")
    model.set_submodule(name, new)


def _pack(integers: Tensor) -> Tensor:
    """Two integers of -8 to 7 in each byte, (ceil(n / 2),) uint8."""
    flat = integers.flatten()
    flat = torch.cat([flat, flat.new_zeros(len(flat) % 2)])
    pairs = (flat.to(torch.int16) & 15).view(-1, 2)
    return (pairs[:, 0] | (pairs[:, 1] << 4)).to(torch.uint8)


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    both = torch.stack([packed & 15, packed >> 4], 1).flatten().to(torch.int8)
    signed = torch.where(both > 7, both - 16, both)
    return signed[: torch.Size(shape).numel()].view(shape)
