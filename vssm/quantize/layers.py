"""Layers that compute as if their tensors had few bits, and how they take the place of others in a model.

They simulate: the integers are right, the products run in float32. `freeze` leaves int8 weights and their steps.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._errors import UserError
from .fake import fake_quantize, fake_quantize_levels, straight_through_round
from .per_token import TokenSteps
from .rotate import hadamard, rotate

__all__ = [
    "QuantLinear",
    "QuantWeight",
    "QuantizeError",
    "TensorQuantizer",
    "TokenQuantizer",
    "quantize_scan",
    "weight_of",
]


class QuantizeError(UserError):
    """A model cannot be quantised as asked, or a quantised one is used on what it was not calibrated for."""


class TensorQuantizer(nn.Module):
    """A constant symmetric step for a whole tensor.

    Args:
        scale: The step, a scalar.
        bits: Of the integers.
    """

    def __init__(self, scale: Tensor, bits: int):
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale.to(x.dtype), self.bits)


def positions_of(x: Tensor) -> str:
    """Name the size of (B, positions ..., C): ``"14x14"``; ``"1"`` where there is one position."""
    return "x".join(map(str, x.shape[1:-1])) or "1"


class TokenQuantizer(nn.Module):
    """A constant step and zero point for each position of (B, positions ..., C).

    Args:
        steps: By size of the map, as `positions_of` names it. A layer that sees maps of several sizes has several.
        bits: Of the levels.
    """

    def __init__(self, steps: Mapping[str, TokenSteps], bits: int):
        super().__init__()
        self.bits = bits
        self.sizes = tuple(steps)
        for size, found in steps.items():
            self.register_parameter(f"step_{size}", nn.Parameter(found.step.detach().clone()))
            self.register_buffer(f"zero_{size}", found.zero.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Quantise.

        Raises:
            QuantizeError: The map has a size that calibration did not see.
        """
        size = positions_of(x)
        if size not in self.sizes:
            known = " and ".join(self.sizes)
            raise QuantizeError(
                f"The model was calibrated for maps of {known} positions, not {size}: its steps fit one size of images."
            )
        step, zero = getattr(self, f"step_{size}"), getattr(self, f"zero_{size}")
        return fake_quantize_levels(x, step.to(x.dtype), zero.to(x.dtype), 2**self.bits)


class QuantWeight(nn.Module):
    """A weight with a step for each output channel, whose integers lie in -(2^(bits - 1) - 1) to 2^(bits - 1) - 1.

    Args:
        weight: (..., out, in).
        step: (..., out, 1).
        bits: Of the integers.
    """

    def __init__(self, weight: Tensor, step: Tensor, bits: int):
        super().__init__()
        self.bits = bits
        self.step = nn.Parameter(step.detach().clone())
        self.weight: Tensor | None
        self.register_buffer("weight", weight.detach().clone(), persistent=False)  # what is kept is the integers
        self.integers: Tensor | None
        self.register_buffer("integers", None)

    def turned(self, scales: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """Return the weight in float as the smoothed and rotated input meets it; for the arguments see `forward`."""
        assert self.weight is not None
        weight = self.weight if scales is None else self.weight * scales
        return weight if rotation is None else rotate(weight, rotation)

    def forward(self, scales: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """Return the quantised weight, in float.

        Args:
            scales: What the input was divided by, (in,).
            rotation: The matrix by which the input was rotated.
        """
        if self.integers is not None:
            return self.integers.to(self.step.dtype) * self.step
        top = 2 ** (self.bits - 1) - 1
        return straight_through_round(self.turned(scales, rotation) / self.step).clamp(-top, top) * self.step

    @torch.no_grad()
    def freeze(self, scales: Tensor | None = None, rotation: Tensor | None = None) -> None:
        """Keep the integers and their steps alone."""
        self.integers = (self(scales, rotation) / self.step).round().to(torch.int8)
        self.weight = None


class QuantLinear(nn.Module):
    """A linear layer with a quantised input and weight: (..., in) to (..., out).

    Args:
        bias: (out,) or None.
        weight: The quantised weight.
        input: Quantises the input, once smoothed and rotated.
        smoothing: What each input channel is divided by, (in,), or None.
        rotated: Rotate the input by a Hadamard matrix.
        in_features: Its width.
    """

    def __init__(
        self,
        bias: Tensor | None,
        weight: QuantWeight,
        input: nn.Module,
        smoothing: Tensor | None = None,
        rotated: bool = False,
        in_features: int = 0,
    ):
        super().__init__()
        self.weight = weight
        self.input = input
        self.rotated = rotated
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self.register_parameter("smoothing", None if smoothing is None else nn.Parameter(smoothing.detach().clone()))
        self.register_buffer("rotation", hadamard(in_features) if rotated else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.smoothing is not None:
            x = x / self.smoothing
        if self.rotation is not None:
            x = rotate(x, self.rotation)
        return F.linear(self.input(x), self.weight(self.smoothing, self.rotation), self.bias)

    def freeze(self) -> None:
        """Keep the weight's integers and steps alone."""
        self.weight.freeze(self.smoothing, self.rotation)


class _QuantizedScan:
    """What a mixer becomes: a class of its own before it in the order of methods, with nothing of it copied."""

    quantizers: nn.ModuleDict

    def _quantized(self, name: str, x: Tensor) -> Tensor:
        return self.quantizers[name](x) if name in self.quantizers else x

    def enter(self, x: Tensor, *args) -> Tensor:
        return super().enter(self._quantized("in_proj_weight_input", x), *args)  # type: ignore[misc]

    def project(self, x: Tensor, *args) -> tuple[Tensor, ...]:
        return super().project(self._quantized("x_proj_weight_input", x), *args)  # type: ignore[misc]

    def normalise(self, *args) -> Tensor:
        return self._quantized("out_proj_weight_input", super().normalise(*args))  # type: ignore[misc]

    def scan(self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor | None, *args, **kwargs) -> Tensor:
        u, dt, B = (self._quantized(name, x) for name, x in (("u", u), ("dt", dt), ("B", B)))
        C = None if C is None else self._quantized("C", C)
        return super().scan(u, dt, B, C, *args, **kwargs)  # type: ignore[misc]

    def scan_kept(self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, code: list[int], gaps, *args, **kwargs) -> Tensor:
        if gaps is not None:
            raise QuantizeError("A quantised scan cannot decay over the gaps of pruning: prune with decay=False.")
        return super().scan_kept(u, dt, B, C, code, gaps, *args, **kwargs)  # type: ignore[misc]

    def runs_at_once(self, xz: Tensor) -> bool:
        # The one operator of a sequence mixer passes its tensors on unseen: here they go by the points.
        return False


def weight_of(name: str) -> str:
    """Return the name of the parameter whose place a `QuantWeight` of this name takes in a mixer."""
    return "dt_projs_weight" if name == "dt_weight" else name


def quantize_scan(mixer: nn.Module, quantizers: Mapping[str, nn.Module]) -> None:
    """Let a mixer pass what its scan and its own projections read through modules.

    Args:
        mixer: Its `quant_points` and `quant_weights` name what there is. A, D, the bias of the step size and the state
            stay as they are.
        quantizers: By point, and for a weight W by ``"W_input"`` what it meets. A `QuantWeight` by the name of a weight
            takes its place.
    """
    kind = type(mixer)
    if not issubclass(kind, _QuantizedScan):
        mixer.__class__ = type(f"Quantized{kind.__name__}", (_QuantizedScan, kind), {"__module__": kind.__module__})
    mixer.quantizers = nn.ModuleDict(quantizers)
    with torch.no_grad():
        for name, made in quantizers.items():
            if isinstance(made, QuantWeight):
                getattr(mixer, weight_of(name)).copy_(made())
