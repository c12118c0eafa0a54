"""Peak memory of a call, measured in the process that makes the call."""

import contextlib
import gc
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .._errors import UserError

__all__ = ["output_apart", "peak_memory"]

# glibc's allocator then gives every block of 64 KiB back when it is freed. Left alone it keeps some, which makes the
# next call's peak look lower.
_PROMPT_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _resident() -> tuple[int, int]:
    """Bytes of this process in memory now, and at most since its start or since `_forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
        now, most = (int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) << 10 for field in ("VmRSS", "VmHWM"))
        return now, most
    except (OSError, TypeError):  # no Linux; the present use is unknown, and the peak stands for it
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return most, most


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call of `run` takes at its peak, beyond what was there before it.

    On a CPU these are resident pages of the process, so scratch memory of every library counts. Pages that earlier
    calls left with the allocator do not: call this in a fresh process, after a small call that loads the libraries, and
    again only for larger calls. On a GPU it is what PyTorch's allocator hands out.
    """
    gc.collect()
    if device.type == "cpu":
        _forget_peak()
        before, _ = _resident()
        result = run()  # kept until the peak is read
        _, after = _resident()
        del result
        return max(after - before, 0)
    torch.accelerator.synchronize(device)
    memory = torch.get_device_module(device)
    memory.reset_peak_memory_stats(device)
    before = memory.memory_allocated(device)
    result = run()
    torch.accelerator.synchronize(device)
    after = memory.max_memory_allocated(device)
    del result
    return after - before


def output_apart(script: str, *words: str) -> str:
    """Runs a script in a process of its own, where `peak_memory` is right, and returns the last line that it prints.

    Args:
        script: A file; or "-m", and the first of `words` is a module's name.
        words: What else the command line holds.

    Raises:
        UserError: The script failed; the message is the last line of its errors.
    """
    environment = {**os.environ, **_PROMPT_ALLOCATOR}
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = " ".join(done.stderr.strip().splitlines()[-1:])
        raise UserError(f"measuring memory with {' '.join([Path(script).name, *words])} failed: {reason}")
    return done.stdout.splitlines()[-1]
