"""Timing models side by side, and what their time is spent on."""

import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import timm
import torch
from torch import nn

from vssm_kernels import available_backends, cpu
from vssm_kernels.timing import cpu_name, summary, timed

__all__ = ["environment", "interleaved", "nearest", "operators", "scan_backend", "summary"]

# A sample is the mean of as many calls as last this long: one call of a millisecond measures the scheduler's whims.
SAMPLE_SECONDS = 0.02


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


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Time all candidates in turn, round after round, so that a slow spell of the machine falls on all alike.

    Args:
        candidates: what to call, by name.
        device: where it runs.
        rounds: samples of each.
        progress: called with (calls done, calls in all) as the work goes on.

    Returns:
        Seconds a call, one sample a round.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    total, done, calls = len(candidates) * (rounds + 1), 0, {}

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for name, run in candidates.items():
        timed(run, device)  # allocations, and kernels that are compiled at their first call
        calls[name] = math.ceil(SAMPLE_SECONDS / max(timed(run, device), 1e-9))
        tick()
    for _ in range(rounds):
        for name, run in candidates.items():
            run()  # the candidate before it leaves caches and allocator as it likes
            times[name].append(timed(run, device, calls[name]))
            tick()
    return times


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
