"""Layers that follow one another on a channels-last map, run in one pass of the compiled CPU library, or of oneDNN.

These are for inference without a graph: a layer is asked for its parameters, not called. Where the layers have to run
themselves, the functions `run_...` run them, and every other function here returns None: under autograd, on another
device, while something records or watches what is computed (a tracer, a compiler, a dispatch mode, a hook), and where a
layer is not exactly the one of PyTorch. Callers then run the layers, which give the same but for rounding. In models
that are compiled for inference `fusion_pass` and `mlp_pass` are ops: compilers make a pass over memory of each of
their layers.
"""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from . import cpu, cpu_maps
from .depthwise import DepthwiseConv2d, tap_offsets
from .fusion import fusion_taps
from .linear import onednn_linear
from .neighborhood.rule import fit_window
from .ops import fuse_states
from .routes import on_flat_maps
from .watch import FLOATS, is_compiled_for_here, runs_here, unwatched

__all__ = [
    "attention_pass",
    "conv_pass",
    "fusion_pass",
    "is_plain",
    "mlp_pass",
    "norm_pass",
    "run_act",
    "run_excite",
    "run_linear",
    "scan_pass",
]


def _is_untouched(layer: nn.Module) -> bool:
    """Whether nothing has been hung on a layer."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer is exactly of one of these kinds, and nothing has been hung on it."""
    return type(layer) in kinds and _is_untouched(layer)


def _computed(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype in which a convolution of x gives its result; None where it would refuse x."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return x.dtype if x.dtype == weight.dtype else None


def conv_pass(conv: nn.Module, x: Any, act: nn.Module) -> Tensor | None:
    """Convolve a map depth-wise, then apply SiLU: one pass is faster than two; the convolution alone would not be.

    Args:
        conv: A depth-wise `nn.Conv2d`.
        x: (B, H, W, D).
        act: An `nn.SiLU`.

    Returns:
        (B, H', W', D), or None where the layers have to run.
    """
    if not unwatched() or not is_plain(conv, nn.Conv2d, DepthwiseConv2d) or not is_plain(act, nn.SiLU):
        return None
    if not runs_here(x, conv.weight, conv.bias):
        return None
    height, width = conv.kernel_size
    channels, (down, right) = conv.groups, conv.stride
    if (
        conv.weight.shape[:2] != (channels, 1)
        or x.dim() != 4
        or x.shape[-1] != channels
        or down != right
        or isinstance(conv.padding, str)
        or conv.padding_mode != "zeros"
    ):
        return None
    dtype = _computed(x, conv.weight)
    if dtype not in FLOATS:
        return None
    (top, left), (far, wide) = conv.padding, conv.dilation
    offsets = tap_offsets(conv.kernel_size, conv.padding, conv.dilation)
    size = (
        (x.shape[1] + 2 * top - far * (height - 1) - 1) // down + 1,
        (x.shape[2] + 2 * left - wide * (width - 1) - 1) // right + 1,
    )
    if min(size) < 1:
        return None
    weight = conv.weight.flatten(1).t().float().contiguous()
    return cpu_maps.depthwise(x, weight, conv.bias, offsets, size, dtype, stride=down, silu=True)


def fusion_pass(
    h: Any, weights: list[Tensor], dilations: list[int], scale: Tensor, skip: Tensor, other: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """Correlate a map with several square kernels at once, its edges repeated: scale sum(kernels h) + skip other.

    Args:
        h: (B, H, W, D).
        weights: (D, 1, k, k) each, k odd.
        dilations: Of each kernel.
        scale: (B, H, W).
        skip: (D,).
        other: (B, H, W, D).
        dtype: Of the result.

    Returns:
        (B, H, W, D), or None where the caller has to compute it. Summed in float32.
    """
    compiled = is_compiled_for_here()
    if not (compiled or unwatched()) or not runs_here(h, scale, skip, other, *weights) or dtype not in FLOATS:
        return None
    taps, offsets = fusion_taps(weights, dilations)
    if compiled:
        numbers = [number for offset in offsets for number in offset]
        return torch.ops.vssm.state_fusion(h, taps, numbers, scale, skip, other, dtype)
    return fuse_states(h, taps, offsets, scale, skip, other, dtype)


def mlp_pass(
    x: Any,
    fc1: nn.Module,
    act: nn.Module,
    fc2: nn.Module,
    conv: nn.Module | None = None,
    *,
    conv_adds: bool = False,
    act_first: bool = False,
    norm: nn.Module | None = None,
) -> Tensor | None:
    """Run an MLP as an op of a model that is compiled for inference, in pieces whose middle stays in the caches.

    Args:
        x: (..., C); (B, H, W, C) with a convolution.
        fc1: From C to the width in between.
        act: A GELU.
        fc2: From the width in between.
        conv: Depth-wise, 3 x 3, between the two: fc2(act(conv(fc1(x)))).
        conv_adds: The convolution's result is added to what it reads.
        act_first: The activation stands before the convolution.
        norm: A LayerNorm: x + mlp(norm(x)), not mlp(x).

    Returns:
        (..., C'), or None where the layers have to run; that is everywhere but in such models.
    """
    if not is_compiled_for_here() or not is_plain(act, nn.GELU):
        return None
    if not (is_plain(fc1, nn.Linear) and is_plain(fc2, nn.Linear)):
        return None
    if norm is not None and not (is_plain(norm, nn.LayerNorm) and norm.weight is not None):
        return None
    inputs = dict(weight1=fc1.weight, bias1=fc1.bias, weight2=fc2.weight, bias2=fc2.bias)
    if conv is not None:
        if not is_plain(conv, nn.Conv2d, DepthwiseConv2d) or conv.weight.shape != (fc1.out_features, 1, 3, 3):
            return None
        if (conv.stride, conv.padding, conv.dilation, conv.padding_mode) != ((1, 1), (1, 1), (1, 1), "zeros"):
            return None
        inputs |= dict(conv_weight=conv.weight, conv_bias=conv.bias)
    dtype = _computed(x, fc1.weight)
    if dtype not in FLOATS or not runs_here(x, *inputs.values()):
        return None
    inputs = {name: None if p is None else p.to(dtype) for name, p in inputs.items()}
    if norm is not None:
        inputs |= dict(norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps)
    return torch.ops.vssm.mlp(x, **inputs, adds=conv_adds, first=act_first, approximate=act.approximate)


def norm_pass(
    norm: nn.Module,
    x: Any,
    dtype: torch.dtype,
    gate: Tensor | None = None,
    act: nn.Module | None = None,
    groups: int = 1,
) -> Tensor | None:
    """Normalise a map, cast it and gate it: norm(x).to(dtype) * act(gate).

    Args:
        norm: A module with `weight`, `bias` and `eps`.
        x: (..., D), or (..., G, D) with `groups` G above 1.
        dtype: Of the result.
        gate: As x; None: no gate.
        act: Of the gate; None: none.
        groups: How many rows have weights of their own.

    Returns:
        As x, or None where the layers have to run.
    """
    weight: Any = norm.weight
    bias: Any = norm.bias
    if not unwatched() or not _is_untouched(norm) or not runs_here(x, weight, bias, gate):
        return None
    if weight is None or bias is None or weight.dim() != 1 or weight.numel() != groups * x.shape[-1]:
        return None
    if dtype not in FLOATS or (gate is not None and gate.dtype != dtype):
        return None
    silu = act is not None and is_plain(act, nn.SiLU)
    if gate is not None and act is not None and not silu:
        gate = act(gate)
    return cpu_maps.norm(x, weight, bias, norm.eps, dtype, groups=groups, gate=gate, silu=silu)


_scan = on_flat_maps(cpu.selective_scan_2d_fwd, ("u", "dt", "B", "C"))


def scan_pass(
    u: Any,
    dt: Tensor,
    B: Tensor,
    C: Tensor | None,
    routes: list[int],
    merge: bool,
    out_dtype: torch.dtype | None,
    **parameters: Tensor | None,
) -> Tensor | None:
    """Scan a map as the op `selective_scan_2d` does with a softplus, without its way through PyTorch and its checks.

    These take 60 microseconds, and several times that behind a layer whose weights have filled the caches.

    Args:
        u: As of the op; so are all others.
        dt: See there.
        B: See there.
        C: See there.
        routes: See there.
        merge: See there.
        out_dtype: See there.
        parameters: A, D, delta_bias and dt_weight; see there.

    Returns:
        What the op gives, or None where the op has to run.
    """
    if not unwatched() or not runs_here(u, dt, B, C, *parameters.values()):
        return None
    if dt.dtype != u.dtype or B.dtype != u.dtype or (C is not None and C.dtype != u.dtype):
        return None
    how: Any = dict(code=routes, delta_softplus=True, merge=merge, out_dtype=out_dtype or u.dtype)
    return _scan(u=u, dt=dt, B=B, C=C, **parameters, **how)


def attention_pass(
    q: Any,
    k: Tensor,
    v: Tensor,
    kernel_size: list[int],
    dilation: list[int],
    bias: Tensor | None,
    weights: Any = None,
) -> Tensor | None:
    """Attend as the ops `neighborhood_attention` and `neighborhood_sum` do, without their way through PyTorch.

    Args:
        q: As of the ops; so are all others. In half precision v may be float32.
        k: See there.
        v: See there.
        kernel_size: See there.
        dilation: See there.
        bias: See there.
        weights: Those that `neighborhood_weights` gave, if any; the ops use what was kept.

    Returns:
        What the ops give, or None where they have to run.
    """
    if not unwatched() or not runs_here(q, k, v, bias) or (weights is not None and weights.shape[1]):
        return None
    dtype = torch.promote_types(q.dtype, v.dtype)
    maps = (x.to(dtype) for x in (q, k, v))
    window = fit_window(q.shape[1:3], kernel_size, dilation, bias)
    return cpu_maps.neighborhood_attention(*maps, bias, *window, q.shape[-1] ** -0.5).to(v.dtype)


def run_linear(layer: nn.Module, x: Any, act: nn.Module | None = None) -> Tensor:
    """Run a linear layer, and the activation behind it.

    Large float32 products are oneDNN's here, with the activation, see `onednn_linear`. Under autocast PyTorch keeps the
    half weights of all layers until the context ends, so that each forward waits for new pages of memory; here they are
    gone after the layer.

    Args:
        layer: In place of an `nn.Linear` there may be anything, such as an adapter or a quantised layer; it is called.
        x: (..., K).
        act: As for the layer; None: no activation.

    Returns:
        (..., M).
    """
    if type(x) is Tensor and x.is_cpu and is_plain(layer, nn.Linear) and unwatched():
        weight: Any = layer.weight
        bias: Any = layer.bias
        if type(weight) is nn.Parameter and x.dtype in FLOATS and weight.dtype in FLOATS:
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                y = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
                return y if act is None else run_act(act, y)
            if x.dtype == weight.dtype == torch.float32 and (act is None or is_plain(act, *_NAMES)):
                y = onednn_linear(x, weight, bias, _NAMES[type(act)], getattr(act, "approximate", "none"))
                if y is not None:
                    return y
    y = layer(x)
    return y if act is None else act(y)


def run_excite(se: nn.Module, kind: type[nn.Module], x: Any) -> Tensor:
    """Run squeeze and excitation over a map: x * gate(fc2(act(fc1(mean of x)))).

    On a map of one pixel a 1 x 1 convolution takes two to four times as long as a linear layer, which is why at
    inference linear layers stand in for the two.

    Args:
        se: The layer, which takes (B, C, H, W). Whatever is not exactly of the kind is called.
        kind: timm's `SqueezeExcite`.
        x: (B, H, W, C).

    Returns:
        As x.
    """
    if type(x) is Tensor and x.is_cpu and unwatched() and _is_excitation(se, kind):
        layer: Any = se
        y = layer.act(F.linear(x.mean((1, 2)), layer.fc1.weight.flatten(1), layer.fc1.bias))
        y = layer.gate(F.linear(y, layer.fc2.weight.flatten(1), layer.fc2.bias))
        return x * y[:, None, None]
    return se(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _is_excitation(se: Any, kind: type[nn.Module]) -> bool:
    """Whether a layer is squeeze and excitation by two convolutions, and nothing has been hung on its parts."""
    return (
        is_plain(se, kind)
        and is_plain(se.fc1, nn.Conv2d)
        and is_plain(se.fc2, nn.Conv2d)
        and _is_untouched(se.act)
        and _is_untouched(se.gate)
        and type(se.bn) is nn.Identity
        and not se.add_maxpool
    )


def run_act(act: nn.Module, x: Any) -> Tensor:
    """Run an activation, a GELU in the memory of x where nothing watches.

    Args:
        act: The activation.
        x: What nothing else reads.
    """
    if type(x) is Tensor and is_plain(act, nn.GELU) and unwatched():
        return torch.ops.aten.gelu_(x, approximate=act.approximate)
    return act(x)


# The activations that oneDNN is given, and its names.
_NAMES: dict[type, str] = {type(None): "none", nn.GELU: "gelu", nn.SiLU: "swish", nn.ReLU: "relu"}
