"""Timing side by side, what the time is spent on, and what ran."""

import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import timm
import torch

from vssm_kernels import available_backends, cpu_library
from vssm_kernels.timing import cpu_name, interleaved, summary

__all__ = ["backend_taken", "environment", "interleaved", "nearest", "operators", "scan_backend", "summary"]


@contextmanager
def scan_backend(name: str) -> Iterator[None]:
    """Let the scans that run inside take this backend, as VSSM_BACKEND does."""
    before = os.environ.get("VSSM_BACKEND")
    os.environ["VSSM_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["VSSM_BACKEND"]
        else:
            os.environ["VSSM_BACKEND"] = before


def nearest(cost: float, peers: Mapping[str, float]) -> str:
    """The peer whose cost is the nearest by ratio."""
    return min(peers, key=lambda name: abs(math.log(peers[name] / cost)))


def operators(run: Callable[[], object], device: torch.device, count: int = 3) -> list[tuple[str, float]]:
    """The operators that a call of `run` spends most time in, children not counted, with their shares of the whole."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        key = "self_device_time_total"
    run()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    spent = {event.key: getattr(event, key) for event in profile.key_averages()}
    total = sum(spent.values()) or 1.0
    return sorted(((name, value / total) for name, value in spent.items()), key=lambda pair: -pair[1])[:count]


def backend_taken(device: torch.device) -> str:
    """The backend that a selective scan with backend="auto" takes on this device, VSSM_BACKEND considered."""
    chosen = os.environ.get("VSSM_BACKEND", "auto")
    if chosen != "auto":
        return chosen
    fast = "cpp" if device.type == "cpu" else "triton"
    return fast if fast in available_backends(device) else "torch"


def environment(device: torch.device) -> dict[str, str]:
    """Describe the machine: versions, processor, threads, and the backend that the scans take there."""
    info = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
    info["device"] = str(device)
    if device.type == "cpu":
        info |= {"cpu": cpu_name(), "threads": str(torch.get_num_threads())}
        info["compiled scan"] = cpu_library.unavailable_reason() or cpu_library.variant()
    else:
        info["gpu"] = torch.get_device_module(device).get_device_name(device)
    if device.type == "cuda":
        kinds = {"matrix products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn}
        on = [name for name, kind in kinds.items() if kind.allow_tf32]
        info["TF32"] = "on" if len(on) == len(kinds) else f"{on[0]} only" if on else "off"
    info["scan backend"] = backend_taken(device)
    return info
