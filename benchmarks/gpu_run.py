"""What the parts of `gpu.py` share: where they run, where their rows go, and how tensors are compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import selective_scan_2d
import torch

from vssm_kernels.timing import timed
from vssm_kernels.triton.clock import device_milliseconds

CROSS, STAGES = selective_scan_2d.CROSS, selective_scan_2d.STAGES
OPS = torch.ops.vssm


class TimeUpError(Exception):
    """The part's time is up; what it measured is kept."""


class SkippedError(Exception):
    """The part has nothing to do on this device; the text says why."""


@dataclass
class Run:
    """Where a part runs, and where its rows go.

    Attributes:
        device: Its name.
        tiny: Whether sizes are those of a trial without a GPU.
        ends: When its time is up, as `time.time()` counts.
        rows: Its rows so far.
        flush: Writes all rows to the file.
    """

    device: str
    tiny: bool
    ends: float
    rows: list[dict] = field(default_factory=list)
    flush: Callable[[], None] = lambda: None

    @property
    def on(self) -> torch.device:
        return torch.device(self.device)

    def emit(self, **row: object) -> None:
        """Keep a row; raises TimeUpError after it where the time is up."""
        self.rows.append(row)
        self.flush()
        self.check_time()

    def check_time(self) -> None:
        if time.time() > self.ends:
            raise TimeUpError

    def milliseconds(self, call: Callable[[], object]) -> float:
        """The time of the device for a call, without that of the host where the device can be told to wait."""
        if self.on.type == "cuda":
            return device_milliseconds(call, self.on)
        return timed(call, self.on) * 1e3


def sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def attempt(given: Run, what: str, check: Callable[[], str | None]) -> None:
    """Emit whether a check holds: it returns None, or what is wrong."""
    try:
        wrong = check()
    except Exception as error:
        wrong = sentence(error)
    given.emit(check=what, **({} if wrong is None else {"failed": f"{what}: {wrong}"}))


def scan_inputs(given: Run, stage: int, dtype: torch.dtype, batch: int = 8, states: int = 1) -> tuple[list, object]:
    """The inputs of a scan of maps and the gradient of its result, as a stage of VMamba-T has them."""
    size, channels, rank = STAGES[stage - 1]
    if given.tiny:
        batch, size, channels, rank = 1, 3, 2, 2
    inputs = selective_scan_2d.make_inputs(batch, size, channels, rank, states, given.on, dtype)
    return inputs, torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])


def as_tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def differing(first: list, second: list) -> str | None:
    count = sum(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return f"{count} of {len(first)} tensors differ" if count else None


def far_off(got: torch.Tensor, want: torch.Tensor) -> str | None:
    gap = ((got.float() - want.float()).norm() / want.float().norm()).item()
    return None if gap < 1e-2 else f"relative deviation {gap:.2g} from eager"
