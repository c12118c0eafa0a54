"""Which implementation runs an op: `reference`, `torch`, `cpp` or `triton`.

A backend is a module with `selective_scan_fwd` and `selective_scan_bwd` (contracts in reference.py) and, unless it runs
everywhere, an `unavailable_reason`. It may have `selective_scan_2d_fwd` and `selective_scan_2d_bwd` (contracts in
scan_2d.py); without them the 2-D scan is composed from its 1-D one. The state-space dual is in all but triton.
"""

import os
import warnings
from types import ModuleType

import torch

from . import chunked, cpu, reference
from . import triton as triton_backend
from .neighborhood import compiled, flex, rule, tiles

__all__ = ["BACKENDS", "available_backends", "choose_attention_backend", "choose_backend", "choose_dual_backend"]

BACKENDS = ("auto", "triton", "cpp", "torch", "reference")

# Positions x channels x states above which running without a compiled kernel gives a warning.
_BIG = 1 << 24


def unavailable_reason(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Say in one sentence why a backend cannot run tensors of this kind; None when it can."""
    if name in ("torch", "reference"):
        return None
    if dtype == torch.float64:
        return f"backend '{name}' has no float64; use 'torch' or 'reference'"
    if name == "cpp":
        if device.type != "cpu":
            return f"backend 'cpp' runs on CPU tensors, got a {device.type} tensor"
        return cpu.unavailable_reason()
    return triton_backend.unavailable_reason(device)


def available_backends(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[str]:
    """List the backends that can run tensors of a device and dtype, the preferred one first.

    Args:
        device: Of the tensors.
        dtype: Of the tensors.

    Returns:
        Names among `BACKENDS`, "auto" excepted.
    """
    return [name for name in BACKENDS[1:] if unavailable_reason(name, torch.device(device), dtype) is None]


def _module(name: str) -> ModuleType:
    if name == "triton":
        from .triton import selective_scan_2d

        return selective_scan_2d  # it has the 1-D functions too
    return {"cpp": cpu, "torch": chunked, "reference": reference}[name]


def _asked_for(name: str) -> tuple[str, str]:
    """The backend that is meant, and who asked for it: "auto" takes the environment variable VSSM_BACKEND when set."""
    source = f"backend='{name}'"
    if name == "auto" and os.environ.get("VSSM_BACKEND", "auto") != "auto":
        name = os.environ["VSSM_BACKEND"]
        source = f"VSSM_BACKEND={name}"
    if name not in BACKENDS:
        raise ValueError(f"{source} is not a backend; choose one of {', '.join(BACKENDS)}")
    return name, source


def choose_dual_backend(name: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """Choose the module that runs the state-space dual, which has no Triton form.

    Args:
        name: "auto", "cpp", "torch" or "reference". "auto" takes the variable VSSM_BACKEND when set. Where that names
            triton, or is not set, it is cpp on a CPU where the compiled library is there, else torch.
        device: Of the tensors.
        dtype: Of the input.

    Returns:
        A module with `ssd_fwd` and, the reference excepted, `ssd_bwd`.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The backend is not available; says what to install.
    """
    if name not in ("auto", "cpp", "torch", "reference"):
        raise ValueError(f"ssd: backend must be auto, cpp, torch or reference, got '{name}'")
    name, source = _asked_for(name)
    if name in ("torch", "reference"):
        return _module(name)
    reason = unavailable_reason("cpp", device, dtype)
    if reason is None:
        return cpu
    if name == "cpp":
        raise RuntimeError(f"{source} cannot run: {reason}")
    return chunked


def choose_attention_backend(name: str, q: torch.Tensor, v: torch.Tensor) -> ModuleType:
    """Choose the module that runs neighbourhood attention.

    Args:
        name: "auto", "flex", "cpp", "torch" or "reference". "auto" takes the variable VSSM_BACKEND when set. Where that
            names triton, or is not set, it is flex or cpp where one of them can run, else torch.
        q: The queries (B, H, W, n, E).
        v: The values (B, H, W, n, F).

    Returns:
        A module with `attention_fwd` and, unless its gradient is that of torch, `attention_bwd`.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The backend is not available.
    """
    modules = {"flex": flex, "cpp": compiled, "torch": tiles, "reference": rule}
    if name not in ("auto", *modules):
        raise ValueError(f"neighborhood_attention: backend must be auto, {', '.join(modules)}, got '{name}'")
    source = f"backend='{name}'"
    if name == "auto":
        name, source = _asked_for(name)
    reasons = {"flex": flex.unavailable_reason(q, v), "cpp": unavailable_reason("cpp", q.device, q.dtype)}
    if name not in modules:
        return next((modules[fast] for fast, reason in reasons.items() if reason is None), tiles)
    if reasons.get(name):
        raise RuntimeError(f"{source} cannot run: {reasons[name]}")
    return modules[name]


def choose_backend(name: str, device: torch.device, dtype: torch.dtype, work: int) -> ModuleType:
    """Choose the module that runs a scan on tensors of this kind.

    Args:
        name: One of `BACKENDS`. "auto" takes the environment variable VSSM_BACKEND when set, else triton on a GPU, cpp
            on a CPU where the compiled library is there, else torch.
        device: Of the tensors.
        dtype: Of the input.
        work: Positions x channels x states. A large scan on a slow backend gives a warning.

    Returns:
        The backend's module.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The backend is not available; says what to install.
    """
    name, source = _asked_for(name)
    if name != "auto":
        reason = unavailable_reason(name, device, dtype)
        if reason is not None:
            raise RuntimeError(f"{source} cannot run: {reason}")
        return _module(name)
    fast = "cpp" if device.type == "cpu" else "triton"
    reason = unavailable_reason(fast, device, dtype)
    if reason is None:
        return _module(fast)
    if work > _BIG and dtype != torch.float64:
        _warn_slow(device.type, reason)
    return chunked


_warned: set[str] = set()


def _warn_slow(device: str, reason: str) -> None:
    if device not in _warned:
        _warned.add(device)
        warnings.warn(
            f"the selective scan runs in plain PyTorch on this {device}, slow for inputs of this size: {reason}",
            stacklevel=2,
        )
