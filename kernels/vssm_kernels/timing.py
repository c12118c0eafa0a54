"""The clock of the benchmarks of ops and of models."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .tables import synchronize

__all__ = ["cpu_name", "interleaved", "summary", "timed"]

# A sample is the mean of as many calls as last this long: one call of a millisecond would mostly measure the scheduler.
SAMPLE_SECONDS = 0.02


def timed(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Measure the seconds that a call takes, the mean of `calls`."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
    slow: tuple[float, int] = (math.inf, 0),
) -> dict[str, list[float]]:
    """Time all candidates in turn, round after round, so that a slow spell of the machine falls on all alike.

    Args:
        candidates: What to call, by name.
        device: Where it runs.
        rounds: Samples of each.
        progress: Called with (samples done, samples in all) as the work goes on; the first of each is not kept.
        slow: (seconds, rounds); a candidate whose call takes longer has only so many rounds.

    Returns:
        Seconds a call, one sample a round.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    total, done, calls, planned = len(candidates) * (rounds + 1), 0, {}, {}

    def tick(samples: int = 1) -> None:
        nonlocal done
        done += samples
        if progress is not None:
            progress(done, total)

    for name, run in candidates.items():
        timed(run, device)  # allocations, and kernels that are compiled at their first call
        seconds = max(timed(run, device), 1e-9)
        if seconds < SAMPLE_SECONDS:
            seconds = max(timed(run, device, calls=5), 1e-9)
        calls[name] = math.ceil(SAMPLE_SECONDS / seconds)
        planned[name] = min(rounds, slow[1]) if seconds > slow[0] else rounds
        tick(1 + rounds - planned[name])
    for i in range(rounds):
        for name, run in candidates.items():
            if i < planned[name]:
                run()  # the candidate before it leaves caches and allocator as it likes
                times[name].append(timed(run, device, calls[name]))
                tick()
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Give median, quartiles and best of samples in seconds, in milliseconds."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    values = {"median": statistics.median(times), "q1": low, "q3": high, "best": min(times)}
    return {"rounds": len(times), **{name: value * 1e3 for name, value in values.items()}}


def cpu_name() -> str:
    """Name the processor's model where the system tells it, else its kind."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
