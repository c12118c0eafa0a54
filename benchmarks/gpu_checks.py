"""The parts of `gpu.py` that hold or fail: tests, opcheck, poisoned memory, determinism."""

import itertools
import time
from collections.abc import Callable

import timm
import torch
from gpu_report import VMAMBA
from gpu_run import CROSS, OPS, Run, TimeUpError, as_tuple, attempt, differing, scan_inputs, short
from torch.utils._python_dispatch import TorchDispatchMode

from vssm_kernels import encode_routes
from vssm_kernels.triton import selective_scan_2d as scans

TRITON_TESTS = ("test_triton", "test_triton_2d", "test_triton_tune", "test_tables", "test_volumes")


class _Outcomes:
    """A plugin of pytest: a row a file with the number of tests, and one for each failure."""

    def __init__(self, given: Run):
        self.given, self.files, self.flushed, self.stopped = given, {}, 0.0, False

    def pytest_runtest_protocol(self, item: object) -> None:
        if time.time() > self.given.ends:
            self.stopped = True
            item.session.shouldstop = "the time is up"

    def pytest_runtest_logreport(self, report: object) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        file = report.nodeid.partition("::")[0]
        if file not in self.files:
            self.files[file] = {"file": file, "passed": 0, "skipped": 0, "failing": 0}
            self.given.rows.append(self.files[file])
        self.files[file]["failing" if report.outcome == "failed" else report.outcome] += 1
        if report.outcome == "failed":
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")] or [""]
            self.given.rows.append({"test": report.nodeid, "failed": f"{report.nodeid}: {lines[0][1:].strip()}"[:300]})
        if time.time() > self.flushed + 1 or report.outcome == "failed":
            self.given.flush()
            self.flushed = time.time()


def tests(given: Run) -> None:
    import pytest

    chosen = [f"tests/kernels/{name}.py" for name in TRITON_TESTS]
    if given.tiny:
        chosen = ["tests/kernels/test_triton_2d.py::test_gradients_are_deterministic"]
    outcomes = _Outcomes(given)
    code = pytest.main([*chosen, "-q", "--no-header", "-p", "no:cacheprovider"], plugins=[outcomes])
    if outcomes.stopped:
        raise TimeUpError
    if not outcomes.files:
        raise RuntimeError(f"pytest ran no test and ended with code {int(code)}")


def opcheck(given: Run) -> None:
    from tests.kernels import test_ops as small

    def ready(inputs: dict) -> list:
        return [None if x is None else x.detach().to(given.on).requires_grad_() for x in inputs.values()]

    size = dict(dtype=torch.float32)
    routes = encode_routes(small.JOINED)
    one = small.scan_inputs(10, 2, 2, channels=4, **size)
    scan = ready({name: one[name] for name in small.NAMES})
    maps = [ready(small.scan_2d_inputs(routes, **size)) for routes in (small.CROSS, small.JOINED)]
    x = torch.randn(2, 6, 6, 3, device=given.on, requires_grad=True)
    y = OPS.read_map(x, CROSS, False).detach().requires_grad_()
    cases = {
        "selective_scan": (OPS.selective_scan, (*scan, True, torch.float32, "triton")),
        "selective_scan_2d, crossing": (OPS.selective_scan_2d, (*maps[0], CROSS, True, True, None, "triton")),
        "selective_scan_2d, joined": (OPS.selective_scan_2d, (*maps[1], routes, True, False, None, "triton")),
        "ssd": (OPS.ssd, (*ready(small.ssd_inputs(10, **size)), True, 4, "auto")),
        "read_map": (OPS.read_map, (x, CROSS, False)),
        "write_map": (OPS.write_map, (y, CROSS, 6, 6, True)),
    }

    def check(op: object, args: tuple) -> None:
        torch.library.opcheck(op, args)  # raises

    for name in list(cases)[-1:] if given.tiny else cases:
        attempt(given, name, lambda: check(*cases[name]))  # noqa: B023


class _Poisoned(TorchDispatchMode):
    """Everything that is allocated is full of NaN."""

    NEW = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out.fill_(float("nan")) if func in self.NEW and out.is_floating_point() else out


def scan_cases(given: Run) -> dict[str, Callable[[], list]]:
    """Forward and backward of the scans in several forms, by name; each gives a list of tensors."""
    cases = {}

    def add(name: str, forward: Callable, backward: Callable) -> None:
        cases[name] = lambda: [x for x in (*as_tuple(forward()), *backward()) if x is not None]

    kinds = itertools.product((torch.float32, torch.bfloat16), (1, 3), (1, 16))
    for dtype, stage, states in [(torch.float32, 1, 1)] if given.tiny else kinds:
        inputs, grad = scan_inputs(given, stage, dtype, 2, states)
        # Forms that are asked for by name: two passes, and pairs of sequences in one program.
        forms = {"two passes": ({"chunks": 2}, {"chunks": 2}), "chosen": ({}, {}), "paired": ({"paired": True}, {})}
        forms = dict(list(forms.items())[: 1 if given.tiny else None])
        for form, (how, back) in forms.items():
            if form == "paired" and states > 2:
                continue
            add(
                f"2-D, stage {stage}, N {states}, {short(dtype)}, {form}",
                lambda a=inputs, how=how, t=dtype: scans.selective_scan_2d_fwd(*a, CROSS, True, True, t, **how),
                lambda a=inputs, how=back, g=grad: scans.selective_scan_2d_bwd(g, *a, CROSS, True, True, **how),
            )
    length, channels = (20, 4) if given.tiny else (196, 384)
    gen = torch.Generator().manual_seed(0)
    u, delta, grad = (torch.randn(1, channels, length, generator=gen).to(given.on) for _ in range(3))
    B, C = (torch.randn(1, 2, 4, length, generator=gen).to(given.on) for _ in range(2))
    A, D = -torch.rand(channels, 4, generator=gen).to(given.on), torch.ones(channels, device=given.on)
    flat = (u, delta, A, B, C, D, D)
    add(
        "1-D, N 4, float32",
        lambda: scans.selective_scan_fwd(*flat, delta_softplus=True),
        lambda: scans.selective_scan_bwd(grad, None, *flat, delta_softplus=True),
    )
    return cases


def poison(given: Run) -> None:
    def check(call: Callable[[], list]) -> str | None:
        clean = call()
        if given.on.type == "cuda":  # what C++ allocates comes from what is freed here; small blocks lie apart
            sizes = [1 << 28, *[1 << 16] * 256]
            full = [torch.full((size,), float("nan"), device=given.on) for size in sizes]
            del full
        with _Poisoned():
            got = call()
        bad = sum(not x.isfinite().all() for x in got)
        return f"{bad} of {len(got)} tensors hold what is not finite" if bad else differing(clean, got)

    for name, call in scan_cases(given).items():
        attempt(given, name, lambda: check(call))  # noqa: B023


def determinism(given: Run) -> None:
    for name, call in list(scan_cases(given).items())[-1 if given.tiny else 0 :]:
        attempt(given, name, lambda: differing(call(), call()))  # noqa: B023
    name, size = ("vmamba_pico", 32) if given.tiny else (VMAMBA, 224)
    torch.manual_seed(0)
    model = timm.create_model(name).to(given.on).eval()
    images = torch.randn(1 if given.tiny else 8, 3, size, size, device=given.on)

    def gradients() -> list:
        with torch.autocast(given.on.type, torch.bfloat16):
            loss = model(images).float().square().mean()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    # cuDNN's gradients of convolutions are of equal bits only when asked for; our forms are then not timed.
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        attempt(given, f"gradients of {name}", lambda: differing(gradients(), gradients()))
    finally:
        torch.use_deterministic_algorithms(before)
