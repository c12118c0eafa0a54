"""Which of a few forms of a kernel is fastest on this device: timed at the first call of its kind, kept on disk.

Triton's own autotuner chooses for one launch. Blocks of the fused scan decide about everything around the launch too
(the scratch memory, the passes, the sums afterwards), so here whole calls are timed.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
import triton
from torch import Tensor, distributed
from triton.runtime.cache import get_cache_manager
from triton.runtime.errors import OutOfResources

from ..tables import is_capturing, on_another_thread
from .clock import device_milliseconds
from .launch import on_device_of

__all__ = ["choose_form", "forms_are_timed"]

Form = TypeVar("Form", bound=Hashable)

_FILE = "vssm_form.json"
# Another form than the default has to be faster than this share of its time: else noise would choose, and other bits.
_MARGIN = 0.97
_chosen: dict[tuple, object] = {}


def forms_are_timed(device: torch.device) -> bool:
    """Tell whether forms are chosen by time: not in the interpreter, nor where that could change bits."""
    if torch.are_deterministic_algorithms_enabled() or os.environ.get("VSSM_TRITON_AUTOTUNE", "1") == "0":
        return False
    return device.type in ("cuda", "xpu")


def _device_name(x: Tensor) -> str:
    return torch.get_device_module(x.device).get_device_name(x.device)


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    try:
        return device_milliseconds(call, device)
    except (OutOfResources, torch.OutOfMemoryError):  # too many registers, or too little memory: no choice here
        return math.inf
    except Exception as error:
        warnings.warn(f"a form of the Triton scan failed and is not taken: {error!r}", stacklevel=2)
        return math.inf


def _time_all(call: Callable[[Form], object], forms: Sequence[Form], x: Tensor) -> list[float]:
    """Time all forms on the caller's stream, but on another thread: see there whose memory it takes."""
    module = torch.get_device_module(x.device)
    stream = module.current_stream(x.device)

    def work() -> list[float]:
        with torch.no_grad(), on_device_of(x), module.stream(stream):
            return [_milliseconds(lambda form=form: call(form), x.device) for form in forms]

    return on_another_thread(work)


def _agreed(identity: str, times: list[float]) -> list[float]:
    """Give the times that all ranks of a distributed run take: those of the rank that is the first to have any.

    Through the store by which the ranks found each other. Nobody waits: a rank may choose what others never run.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return times
    store = distributed.distributed_c10d._get_default_store()
    return json.loads(store.compare_set(f"vssm_form/{identity}", "", json.dumps(times)))


def choose_form(
    kernels: Sequence[object],
    kind: tuple[Hashable, ...],
    forms: tuple[Form, ...],
    call: Callable[[Form], object],
    x: Tensor,
) -> tuple[Form, bool]:
    """Choose the fastest of `forms` for calls of this kind; the first where nothing is timed.

    `VSSM_TRITON_AUTOTUNE=0` takes the default always. The file lies in Triton's cache directory. While a graph is
    captured nothing is timed, but what was timed before is taken.

    Args:
        kernels: The compiled functions; what was measured with other code of theirs is not taken.
        kind: What the choice may depend on; of few values, because each is timed once on each sort of device.
        forms: The choices, the default first.
        call: Runs the operation in one form.
        x: A tensor on the device.

    Returns:
        The form, and whether that is the last word: while a graph is captured it may be a stand-in.
    """
    if len(forms) == 1 or not forms_are_timed(x.device):
        return forms[0], True
    key = (x.device, kind, forms)
    if key not in _chosen:
        code = [kernel.cache_key for kernel in kernels]
        identity = repr((triton.__version__, code, _device_name(x), kind, forms))
        identity = hashlib.sha256(identity.encode()).hexdigest()
        cache = get_cache_manager(identity)
        known = times = _read(cache.get_file(_FILE), len(forms))
        if times is None:
            if is_capturing(x.device):
                return forms[0], False
            times = _time_all(call, forms, x)
            known = _read(cache.get_file(_FILE), len(forms))  # another process may have been faster
            times = known or times
        if math.isfinite(times[0]):  # else memory is short for now
            times = _agreed(identity, times)
            if times != known:
                cache.put(json.dumps({"forms": repr(forms), "milliseconds": times}), _FILE, binary=False)
        best = min(times)
        _chosen[key] = forms[times.index(best) if best < _MARGIN * times[0] else 0]
    return _chosen[key], True


def _read(path: str | None, count: int) -> list[float] | None:
    """The times kept in a file; None where there is none or it is damaged."""
    try:
        with open(path) as file:
            times = json.load(file)["milliseconds"]
        return times if len(times) == count and all(isinstance(time, float) for time in times) else None
    except (OSError, TypeError, ValueError, KeyError):
        return None
