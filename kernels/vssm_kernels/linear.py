"""Linear layers by oneDNN's own operator, where that is faster than PyTorch's way to a product."""

import functools
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["onednn_linear"]

# Multiplications of numbers below which the call of oneDNN's op, 15 microseconds, takes more than it spares.
_LARGE = 2**23


def onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none", form: str = "none"
) -> Tensor | None:
    """Compute act(x weight^T + bias) by oneDNN.

    PyTorch multiplies by MKL, which is slow on processors of AMD, and takes another pass for the activation.

    Args:
        x: (..., K), float32.
        weight: (M, K), float32.
        bias: (M,).
        act: oneDNN's name of the activation: "gelu", "swish", "relu", or "none".
        form: Of a GELU: "none" or "tanh".

    Returns:
        (..., M), or None where oneDNN does not take this product, or is not the quicker one.
    """
    if x.dim() < 2 or x.shape[-1] != weight.shape[1] or x.numel() * weight.shape[0] < _LARGE:
        return None
    if not (act != "none" or _is_amd()) or not _has_onednn() or not torch._C._get_mkldnn_enabled():
        return None
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, act, [], form)


@functools.cache
def _has_onednn() -> bool:
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return capable and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _is_amd() -> bool:
    file = Path("/proc/cpuinfo")
    return file.is_file() and "AuthenticAMD" in file.read_text()
