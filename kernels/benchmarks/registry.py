"""The benchmarks of ops: their form, and the list of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Ratio:
    """The median time of one candidate over that of another, and what it should be."""

    over: str
    under: str
    at_most: float | None = None
    at_least: float | None = None

    def holds(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"


@dataclass(frozen=True)
class Benchmark:
    """`build(device)` gives the candidates: name to a function of no arguments, or to the reason why it cannot run."""

    name: str
    about: str
    build: Callable[[torch.device], dict[str, Callable[[], object] | str]]
    dtype: str = "float32"
    ratios: list[Ratio] = field(default_factory=list)
    # The most milliseconds that a candidate's median should be; only for benchmarks tied to one kind of device.
    limits: dict[str, float] = field(default_factory=dict)


BENCHMARKS: dict[str, Benchmark] = {}


def register(benchmark: Benchmark) -> None:
    if benchmark.name in BENCHMARKS:
        raise ValueError(f"two benchmarks are called {benchmark.name}")
    BENCHMARKS[benchmark.name] = benchmark
