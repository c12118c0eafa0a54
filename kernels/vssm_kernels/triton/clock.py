"""The time that a device takes for a call, without the time that the host takes to ask for it."""

import time
from collections.abc import Callable
from statistics import median

import torch
from triton.testing import do_bench

__all__ = ["device_milliseconds"]

# A round has as many calls as last this long on the host. A GPU queues about a thousand launches, and a call has up to
# twenty.
_ROUND_SECONDS = 4e-3
_MOST_CALLS = 32
_ROUNDS = 5
# No GPU of today counts more cycles a second.
_CYCLES_A_SECOND = 3e9
_LONGEST_WAIT = 0.5


def device_milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Measure how long a device works on a call, in milliseconds; the median of a few rounds.

    The host needs a tenth of a millisecond to ask for a scan, often longer than the device needs to make it, and a pair
    of events around a call then measures the host. So the device is kept waiting until the host has asked for all the
    calls of a round. The device's caches are as the call before left them, which is how a model finds them too.
    """
    if device.type != "cuda":  # no other device can be told to wait
        return do_bench(call, warmup=5, rep=20, return_mode="median")
    call()  # allocations, and kernels that are compiled at their first call
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    host = time.perf_counter() - begin
    calls = min(_MOST_CALLS, max(1, round(_ROUND_SECONDS / max(host, 1e-6))))
    wait, times = 2 * calls * host, []
    while len(times) < _ROUNDS:
        torch.cuda.synchronize(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(wait * _CYCLES_A_SECOND))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        waited_for = not start.query()
        torch.cuda.synchronize(device)
        if waited_for or wait > _LONGEST_WAIT:
            times.append(start.elapsed_time(end) / calls)
        else:  # the device was done waiting before the host was done asking
            wait *= 2
    return median(times)
