"""Tables that are made once for a size of map and kept: on any device, and where CUDA graphs are recorded."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["drops", "forget_tables", "is_capturing", "keep_tables", "on_another_thread", "synchronize"]

# All tables together, on all devices. A map of 333 x 200, the first of a large detector, takes about 3 MB.
_MOST_BYTES = 128 << 20

# Devices without graphs and streams. Tables on others are made on a thread of their own.
_PLAIN = ("cpu",)


class _Entry:
    """Tables that are kept. `held`: a graph was captured that reads them by their addresses, so they stay."""

    def __init__(self, tables: Any):
        self.tables, self.bytes, self.held = tables, _bytes(tables), False


_kept: OrderedDict[tuple, _Entry] = OrderedDict()
_kept_bytes = 0
_drops = 0
_lock = threading.Lock()

Tables = TypeVar("Tables")


def _bytes(tables: Any) -> int:
    parts = (tables,) if isinstance(tables, Tensor) else tables
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))


def is_capturing(device: torch.device) -> bool:
    """Tell whether the current stream of a device, which need not be the current device, records a graph."""
    module = torch.cuda if device.type == "cuda" else torch.xpu if device.type == "xpu" else None
    ask = getattr(module, "is_current_stream_capturing", None)  # torch.xpu of PyTorch 2.6 has none
    if ask is None:
        return False
    if device.index is None or device.index == module.current_device():
        return ask()
    with module.device(device):
        return ask()


def on_another_thread(work: Callable[[], Tables]) -> Tables:
    """Run something on a thread of its own and wait for it.

    While the warm-up of `torch.compile(mode="reduce-overhead")` or of a graph runs, PyTorch takes all memory that the
    thread asks for out of the graph's pool, and refuses to go on where something in there outlives its call. Dispatch
    modes, devices of a context and autograd's switches are the thread's too.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def synchronize(device: torch.device) -> None:
    """Wait for a device that works asynchronously."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _make_to_keep(make: Callable[..., Tables], arguments: tuple) -> Tables:
    device = arguments[-1]
    if device.type in _PLAIN:
        # What is kept must serve training too, and outlive a transform of torch.func that is under way.
        with torch.inference_mode(False), torch._C._DisableFuncTorch():
            return make(*arguments)

    def work() -> Tables:
        made = make(*arguments)
        synchronize(device)  # whichever stream reads them first, they are there
        return made

    return on_another_thread(work)


def _drop_oldest() -> None:
    """Drop what was not used for longest, until the rest is small enough; never the newest, nor what graphs read."""
    global _kept_bytes, _drops
    for key in list(_kept)[:-1]:
        if _kept_bytes <= _MOST_BYTES:
            return
        if not _kept[key].held:
            synchronize(key[-1])  # a kernel of another stream may still read them
            _kept_bytes -= _kept.pop(key).bytes
            _drops += 1


def keep_tables(make: Callable[..., Tables]) -> Callable[..., Tables]:
    """Keep what a function made, for the next call with the same arguments.

    All functions so decorated share one store. It is bounded by bytes, not by entries, because detectors see hundreds
    of sizes of maps; what was not used for longest goes first. What a graph reads stays.

    Args:
        make: A function of hashable arguments, the last a device, that returns tensors there: one, or a named tuple.
            While a graph is captured it must not copy from the host: what it makes then belongs to the graph.

    Returns:
        The function. It makes the tensors anew where tensors are symbolic (in an exporter, say).
    """

    @wraps(make)
    def kept(*arguments) -> Tables:
        global _kept_bytes
        device = arguments[-1]
        if type(torch.empty(0, device=device)) is not Tensor:
            return make(*arguments)
        key = (make, *arguments)
        capturing = is_capturing(device)
        if capturing:
            with _lock:
                entry = _kept.get(key)
                if entry is not None:
                    entry.held = True
            return make(*arguments) if entry is None else entry.tables
        try:
            entry = _kept[key]
            _kept.move_to_end(key)
            return entry.tables
        except KeyError:  # not there, or just dropped by another thread
            pass
        made = _make_to_keep(make, arguments)
        with _lock:
            if key not in _kept:
                entry = _kept[key] = _Entry(made)
                _kept_bytes += entry.bytes
                _drop_oldest()
        return made

    return kept


def drops() -> int:
    """Count the tables dropped so far. Whoever keeps some by himself gives them up when the count has risen."""
    return _drops


def forget_tables() -> None:
    """Drop all tables that are kept. Graphs that were captured must not run again."""
    global _kept_bytes, _drops
    with _lock:
        _drops += len(_kept)
        _kept.clear()
        _kept_bytes = 0
