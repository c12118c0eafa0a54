"""Which of a few forms of a kernel is fastest on this device: timed at the first call of its kind, kept on disk.

Triton's own autotuner chooses for one launch. Blocks of the fused scan decide about everything around the launch too
(the scratch memory, the passes, the sums afterwards), so here whole calls are timed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.cache import get_cache_manager
from triton.testing import do_bench

from .launch import on_device_of

__all__ = ["choose_form"]

Form = TypeVar("Form", bound=Hashable)

_FILE = "vssm_form.json"
_chosen: dict[tuple, object] = {}


def _may_time(x: Tensor) -> bool:
    """Tell whether to time: not in the interpreter, nor where that could change bits or break a graph capture."""
    if os.environ.get("VSSM_TRITON_AUTOTUNE", "1") == "0" or torch.are_deterministic_algorithms_enabled():
        return False
    if x.device.type == "cuda":
        return not torch.cuda.is_current_stream_capturing()
    return x.device.type == "xpu"


def _device_name(x: Tensor) -> str:
    return (torch.xpu if x.device.type == "xpu" else torch.cuda).get_device_name(x.device)


def _milliseconds(call: Callable[[], object]) -> float:
    try:
        return do_bench(call, warmup=5, rep=20, return_mode="median")
    except Exception:  # too many registers or too little memory: no choice here. The first form would fail again in use
        return float("inf")


def choose_form(
    kernels: Sequence[object],
    kind: tuple[Hashable, ...],
    forms: tuple[Form, ...],
    call: Callable[[Form], object],
    x: Tensor,
) -> Form:
    """Choose the fastest of `forms` for calls of this kind; the first where nothing is timed.

    `VSSM_TRITON_AUTOTUNE=0` takes the default always. The file lies in Triton's cache directory.

    Args:
        kernels: The compiled functions; what was measured with other code of theirs is not taken.
        kind: What the choice may depend on; of few values, because each is timed once on each sort of device.
        forms: The choices, the default first.
        call: Runs the operation in one form.
        x: A tensor on the device.

    Returns:
        The form.
    """
    if len(forms) == 1 or not _may_time(x):
        return forms[0]
    key = (x.device, kind, forms)
    if key not in _chosen:
        code = [kernel.cache_key for kernel in kernels]
        identity = repr((triton.__version__, code, _device_name(x), kind, forms))
        cache = get_cache_manager(hashlib.sha256(identity.encode()).hexdigest())
        times = _read(cache.get_file(_FILE), len(forms))
        if times is None:
            with on_device_of(x):
                times = [_milliseconds(lambda form=form: call(form)) for form in forms]
            if times[0] < float("inf"):  # else memory is short for now
                cache.put(json.dumps({"forms": repr(forms), "milliseconds": times}), _FILE, binary=False)
        _chosen[key] = forms[times.index(min(times))]
    return _chosen[key]


def _read(path: str | None, count: int) -> list[float] | None:
    """The times kept in a file; None where there is none or it is damaged."""
    try:
        with open(path) as file:
            times = json.load(file)["milliseconds"]
        return times if len(times) == count and all(isinstance(time, float) for time in times) else None
    except (OSError, TypeError, ValueError, KeyError):
        return None
