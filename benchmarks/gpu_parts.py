"""The parts of `gpu.py`: each gives rows of figures, one after the other, to a `Run`."""

import gc
from collections.abc import Callable

import torch
import triton
from gpu_checks import determinism, opcheck, poison, tests
from gpu_run import Run, SkippedError, TimeUpError, sentence
from gpu_times import forms, graphs, models, ops

import vssm
from vssm.profiling.throughput import environment as described

PARTS: dict[str, Callable[[Run], None]] = {
    part.__name__: part for part in (tests, opcheck, poison, determinism, ops, forms, graphs, models)
}


def environment(device: str) -> dict[str, str]:
    return {**described(torch.device(device)), "triton": triton.__version__, "vssm": vssm.__version__}


def run(name: str, given: Run) -> dict[str, str]:
    """Run a part and say how it ended: `state`, and `why` where it did not run to its end without a fault."""
    if given.on.type == "cuda":
        torch.cuda.set_device(given.on)
    try:
        PARTS[name](given)
    except TimeUpError:
        outcome = {"state": "stopped", "why": "Its time was up; what it had measured is kept."}
    except SkippedError as reason:
        outcome = {"state": "skipped", "why": str(reason)}
    except Exception as error:
        outcome = {"state": "failed", "why": sentence(error)}
    else:
        outcome = {"state": "done"}
    gc.collect()
    if given.on.type == "cuda" and outcome["state"] != "failed":  # a ruined context would raise
        torch.cuda.empty_cache()
    failed = [row["failed"] for row in given.rows if "failed" in row]
    if failed and outcome["state"] != "failed":
        outcome = {"state": "failed", "why": f"{len(failed)} of {len(given.rows)} rows failed, the first: {failed[0]}"}
    return outcome
