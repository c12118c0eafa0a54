"""What quantisation did to each layer, and what the layer costs."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import QuantLinear, TensorQuantizer, TokenQuantizer
from .recipes import dynamic_layers

__all__ = ["LayerReport", "as_table", "report"]


@dataclass(frozen=True)
class LayerReport:
    """A quantised layer.

    Attributes:
        name: Of the layer; of a mixer for what its scan reads.
        bits: What has how many bits.
        noise_ratio: Signal to noise of its output in decibels, both given the quantised model's input.
        time_share: Its share of the float model's time, from 0 to 1; of a mixer without its linear layers.
    """

    name: str
    bits: str
    noise_ratio: float
    time_share: float


class _Clock:
    """Hooks that add up the time of modules."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.spent = dict.fromkeys(modules, 0.0)
        self.started: dict[str, float] = {}
        self.hooks = []
        for name, module in modules.items():
            self.hooks.append(module.register_forward_pre_hook(self._start(name)))
            self.hooks.append(module.register_forward_hook(self._stop(name)))

    def _start(self, name: str):
        def hook(*_):
            self.started[name] = time.perf_counter()

        return hook

    def _stop(self, name: str):
        def hook(*_):
            self.spent[name] += time.perf_counter() - self.started[name]

        return hook


@torch.no_grad()
def report(original: nn.Module, quantized: nn.Module, images: Tensor, runs: int = 3) -> list[LayerReport]:
    """Compare every quantised layer with the float one, on the same input.

    Args:
        original: The float model, on a CPU: the shares are of its time.
        quantized: What `quantize_model` made of it.
        images: (B, C, H, W).
        runs: How many times the float model is timed, after a run to warm up.
    """
    original.eval()
    bits = _bits(quantized)
    modules = {name: original.get_submodule(name) for name in bits}
    energy = {name: [0.0, 0.0] for name in bits}
    hooks = [
        quantized.get_submodule(name).register_forward_hook(_compare(modules[name], energy[name])) for name in bits
    ]
    quantized(images)
    for hook in hooks:
        hook.remove()
    original(images)
    clock = _Clock(modules)
    start = time.perf_counter()
    for _ in range(runs):
        original(images)
    whole = time.perf_counter() - start
    for hook in clock.hooks:
        hook.remove()
    rows = []
    for name, text in bits.items():
        own = clock.spent[name] - sum(clock.spent[inner] for inner in bits if inner.startswith(f"{name}."))
        signal, noise = energy[name]
        ratio = 10 * torch.log10(torch.tensor(signal / noise)).item() if noise > 0 else float("inf")
        rows.append(LayerReport(name, text, ratio, max(own, 0.0) / whole))
    return rows


def _compare(module: nn.Module, energy: list[float]):
    def hook(_, args, output):
        wanted = module(*args)
        energy[0] += float(wanted.double().square().sum())
        energy[1] += float((output - wanted).double().square().sum())

    return hook


def _bits(model: nn.Module) -> dict[str, str]:
    """What has how many bits, by the name of the layer."""
    found = dict.fromkeys(dynamic_layers(model), "W8 A8, dynamic")
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            reader = module.input
            assert isinstance(reader, TensorQuantizer | TokenQuantizer)
            extra = " per token" if isinstance(reader, TokenQuantizer) else ", rotated" if module.rotated else ""
            found[name] = f"W{module.weight.bits} A{reader.bits}{extra}"
        elif hasattr(module, "quantizers"):
            points = module.quantizers
            found[name] = "scan: " + ", ".join(f"{n.replace('_', ' ')} {made.bits}" for n, made in points.items())
    return found


def as_table(rows: Iterable[LayerReport]) -> str:
    """Return a table in markdown."""
    lines = ["| layer | bits | signal to noise, dB | share of time |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.bits} | {r.noise_ratio:.1f} | {r.time_share:.1%} |" for r in rows]
    return "\n".join(lines)
