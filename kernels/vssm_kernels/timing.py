"""What the benchmarks of ops and of models have in common."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["cpu_name", "summary", "timed"]


def _synchronize(device: torch.device) -> None:
    """Wait for a device that works asynchronously."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds that a call takes, the mean of `calls`."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def summary(times: list[float]) -> dict[str, float]:
    """Median, quartiles and best of samples in seconds, in milliseconds."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    values = {"median": statistics.median(times), "q1": low, "q3": high, "best": min(times)}
    return {"rounds": len(times), **{name: value * 1e3 for name, value in values.items()}}


def cpu_name() -> str:
    """The processor's model where the system tells it, else its kind."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
