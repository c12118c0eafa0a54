"""Timing models side by side, and what their time is spent on."""

import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import timm
import torch
from torch import nn

from vssm_kernels import available_backends, cpu
from vssm_kernels.timing import cpu_name, interleaved, summary

__all__ = ["environment", "interleaved", "nearest", "operators", "scan_backend", "summary"]


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


@torch.inference_mode()
def operators(model: nn.Module, x: torch.Tensor, count: int = 3) -> list[tuple[str, float]]:
    """The operators that a forward pass spends most time in, children not counted, with their shares of the whole."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if x.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        key = "self_device_time_total"
    model(x)
    with torch.profiler.profile(activities=activities) as profile:
        model(x)
    spent = {event.key: getattr(event, key) for event in profile.key_averages()}
    total = sum(spent.values()) or 1.0
    return sorted(((name, value / total) for name, value in spent.items()), key=lambda pair: -pair[1])[:count]


def environment(device: torch.device) -> dict[str, str]:
    """What ran: versions, processor, threads, and the backend that the scans take there."""
    info = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
    info["device"] = str(device)
    if device.type == "cpu":
        info |= {"cpu": cpu_name(), "threads": str(torch.get_num_threads())}
        info["compiled scan"] = cpu.unavailable_reason() or cpu.variant()
    else:
        info["gpu"] = torch.get_device_module(device).get_device_name(device)
        info["TF32"] = torch.get_float32_matmul_precision()
    chosen = os.environ.get("VSSM_BACKEND", "auto")
    info["scan backend"] = available_backends(device)[0] if chosen == "auto" else chosen
    return info
