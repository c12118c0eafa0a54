"""The parts of `gpu.py`: each gives rows of figures, one after the other, to a `Run`."""

import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import registry
import selective_scan  # noqa: F401  (registers its benchmarks)
import selective_scan_2d
import timm
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

import vssm
from vssm.profiling import Setup, benchmark, interleaved, summary
from vssm.profiling.throughput import environment as described
from vssm_kernels import encode_routes
from vssm_kernels.timing import timed
from vssm_kernels.triton import selective_scan_2d as scans
from vssm_kernels.triton.clock import device_milliseconds
from vssm_kernels.triton.launch import Form
from vssm_kernels.triton.map_form import choose_map_form, map_forms
from vssm_kernels.triton.map_launch import choose_blocks_2d, fills_a_device

CROSS, STAGES = selective_scan_2d.CROSS, selective_scan_2d.STAGES
OPS = torch.ops.vssm
SWIN, VMAMBA = "swin_tiny_patch4_window7_224", "vmamba_tiny_s1l8"
MODELS = (VMAMBA, "vssd_tiny", "vssm_efficientvim_m2")
PEERS = (SWIN, "convnext_tiny", "efficientvim_m2")
TRITON_TESTS = ("test_triton", "test_triton_2d", "test_triton_tune", "test_tables", "test_volumes")


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


def scan_inputs(given: Run, stage: int, dtype: torch.dtype, batch: int = 8, states: int = 1) -> tuple[list, object]:
    """The inputs of a scan of maps and the gradient of its result, as a stage of VMamba-T has them."""
    size, channels, rank = STAGES[stage - 1]
    if given.tiny:
        batch, size, channels, rank = 1, 3, 2, 2
    inputs = selective_scan_2d.make_inputs(batch, size, channels, rank, states, given.on, dtype)
    return inputs, torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])


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
        cases[name] = lambda: [x for x in (*_tuple(forward()), *backward()) if x is not None]

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
                f"2-D, stage {stage}, N {states}, {_short(dtype)}, {form}",
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


def _tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _differing(first: list, second: list) -> str | None:
    count = sum(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return f"{count} of {len(first)} tensors differ" if count else None


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
        return f"{bad} of {len(got)} tensors hold what is not finite" if bad else _differing(clean, got)

    for name, call in scan_cases(given).items():
        attempt(given, name, lambda: check(call))  # noqa: B023


def determinism(given: Run) -> None:
    for name, call in list(scan_cases(given).items())[-1 if given.tiny else 0 :]:
        attempt(given, name, lambda: _differing(call(), call()))  # noqa: B023
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
        attempt(given, f"gradients of {name}", lambda: _differing(gradients(), gradients()))
    finally:
        torch.use_deterministic_algorithms(before)


@triton.jit
def _exponentials(out, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = at.to(tl.float32) * 1e-6
    for _ in range(COUNT):
        x = tl.exp2(-x)
    tl.store(out + at, x)


def floors(given: Run) -> tuple[float, float]:
    """Bytes a second of a copy, read and written, and exponentials a second, both of this device."""
    count = 1 << (12 if given.tiny else 29)
    source, target = (torch.zeros(count, dtype=torch.uint8, device=given.on) for _ in range(2))
    ms = given.milliseconds(lambda: target.copy_(source))
    bandwidth = 2 * count / ms * 1e3
    given.emit(floor="copy, bytes a second", rate=bandwidth, milliseconds=ms)
    programs, times, block = (1, 2, 16) if given.tiny else (1 << 14, 256, 1024)
    out = torch.empty(programs * block, device=given.on)
    ms = given.milliseconds(lambda: _exponentials[(programs,)](out, times, block))
    given.emit(floor="exponentials a second", rate=programs * block * times / ms * 1e3, milliseconds=ms)
    return bandwidth, programs * block * times / ms * 1e3


def scan_work(batch: int, size: int, channels: int, rank: int, states: int, backward: bool) -> tuple[int, int]:
    """The fewest bytes and exponentials of a scan of bfloat16 maps along four routes, each tensor moved once.

    A decay a state, and two for the softplus, at each position of each route; the backward makes them again.
    """
    positions = batch * size * size
    maps = positions * (channels + 4 * (rank + 2 * states))
    moved = 2 * (maps + positions * channels)
    if backward:  # the inputs again and the gradient of the result are read, the gradients of the inputs written
        moved += 2 * (maps + positions * channels) + 2 * maps
    return moved, positions * 4 * channels * (states + 2) * (2 if backward else 1)


def ops(given: Run) -> None:
    bandwidth, exponentials = floors(given)
    shapes = {"n1_stage1_b128": (128, 1, 1), "n1_stage3_b128": (128, 3, 1), "n16_stage1_b64": (64, 1, 16)}
    for name, (batch, stage, states) in list(shapes.items())[: 1 if given.tiny else None]:
        size, channels, rank = STAGES[stage - 1]
        shape = (batch, size, channels * (1 if states == 1 else 2), rank, states)
        name, shape = ("tiny", (1, 2, 2, 2, 1)) if given.tiny else (name, shape)
        candidates = selective_scan_2d.build(shape, torch.bfloat16, given.on, "triton")
        candidates |= _in_pytorch(given, shape)
        for form, call in candidates.items():
            work = scan_work(*shape, backward="bwd" in form)
            limits = {"bytes": work[0] / bandwidth * 1e3, "exponentials": work[1] / exponentials * 1e3}
            _time_candidate(given, name, form, call, {} if "alone" in form else limits)
    for name, made in registry.BENCHMARKS.items():
        if name.startswith("selective_scan_") and "_2d_" not in name and not given.tiny:
            for form, call in made.build(given.on).items():
                if not form.startswith("loop"):  # thousands of launches, seconds a call
                    _time_candidate(given, name.removeprefix("selective_scan_"), form, call, {})


def _in_pytorch(given: Run, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    made = selective_scan_2d.make_inputs(*shape, given.on, torch.bfloat16)
    inputs = [x.detach().requires_grad_() for x in made]
    grad = torch.ones_like(inputs[0])

    def forward() -> torch.Tensor:
        return OPS.selective_scan_2d(*inputs, CROSS, True, True, None, "torch")

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    return {"torch fwd": plain, "torch fwd+bwd": lambda: torch.autograd.grad(forward(), inputs, grad)}


def _time_candidate(given: Run, op: str, form: str, call: Callable | str, limits: dict[str, float]) -> None:
    row = {"op": op, "form": form}
    if isinstance(call, str):
        return given.emit(**row, skipped=call)
    try:
        row["milliseconds"] = given.milliseconds(call)
    except Exception as error:
        if "torch" in form and isinstance(error, torch.OutOfMemoryError):  # it keeps every state
            return given.emit(**row, skipped="too little memory")
        return given.emit(**row, failed=f"{op}, {form}: {sentence(error)}")
    if limits:
        bound = max(limits, key=limits.get)
        row |= {"limits": limits, "bound": bound, "share": limits[bound] / row["milliseconds"]}
    given.emit(**row)


def forms(given: Run) -> None:
    dtype = torch.bfloat16
    cases = itertools.product((1, 2, 3, 4), (1, 16), (128, 1))
    for stage, states, batch in [(1, 1, 1)] if given.tiny else cases:
        inputs, grad = scan_inputs(given, stage, dtype, batch, states)
        channels = inputs[0].shape[-1]
        for backward in (False, True):
            blocks = choose_blocks_2d(channels, states, backward)
            fills = fills_a_device(len(inputs[0]) * 4 * triton.cdiv(channels, blocks.block_d), blocks)

            def call(form: Form, inputs=inputs, grad=grad, backward=backward) -> object:
                if backward:
                    return scans.selective_scan_2d_bwd(grad, *inputs, CROSS, True, True, form.blocks)
                return scans.selective_scan_2d_fwd(*inputs, CROSS, True, True, dtype, form.blocks, None, *form[1:])

            kind = ("backward" if backward else "forward", dtype, True)
            chosen, _ = choose_map_form(inputs, CROSS, kind, not backward, call)
            for form in map_forms(channels, states, backward, True, fills, fills and not backward):
                row = {"stage": stage, "N": states, "batch": batch, "pass": kind[0], "chosen": form == chosen}
                row["form"] = _described(form)
                try:
                    given.emit(**row, milliseconds=given.milliseconds(lambda: call(form)))  # noqa: B023
                except triton.runtime.errors.OutOfResources as error:
                    given.emit(**row, skipped=sentence(error))


def _described(form: Form) -> str:
    extras = [word for word, on in (("paired", form.paired), ("ahead", form.ahead)) if on]
    return ", ".join([f"{form.blocks.block_d} channels", f"{form.blocks.num_warps} warps", *extras])


def _captured(call: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def graphs(given: Run) -> None:
    if given.on.type != "cuda":
        raise SkippedError(f"CUDA graphs need a CUDA device, not {given.device}.")

    def compare(what: str, call: Callable[[], object]) -> None:
        try:
            want = _tuple(call())
            graph, out = _captured(call)
            graph.replay()
            torch.cuda.synchronize()
            found = [(a, b) for a, b in zip(want, _tuple(out), strict=True) if a is not None]
            wrong = _differing(*map(list, zip(*found, strict=True)))
            times = interleaved({"eager": call, "graph": graph.replay}, given.on, 5)
        except Exception as error:
            return given.emit(graph=what, failed=f"{what}: {sentence(error)}")
        row = {key: summary(samples)["median"] for key, samples in times.items()}
        return given.emit(graph=what, milliseconds=row, **({"failed": f"{what}: {wrong}"} if wrong else {}))

    for stage, batch in ((1, 1), (1, 8), (3, 1)):
        inputs, grad = scan_inputs(given, stage, torch.bfloat16, batch)
        compare(
            f"scan of stage {stage}, batch {batch}, forward and backward",
            lambda a=inputs, g=grad: (
                scans.selective_scan_2d_fwd(*a, CROSS, True, True, torch.bfloat16),
                *scans.selective_scan_2d_bwd(g, *a, CROSS, True, True),
            ),
        )
    model = timm.create_model(VMAMBA).to(given.on).eval()
    for batch in (1, 8):
        images = torch.randn(batch, 3, 224, 224, device=given.on)

        def infer(images=images) -> torch.Tensor:
            # Casts of weights that autocast keeps would be those of before the capture.
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return model(images)

        compare(f"{VMAMBA}, batch {batch}", infer)
    given.check_time()
    images = torch.randn(1, 3, 224, 224, device=given.on)
    compiled = torch.compile(model, mode="reduce-overhead", dynamic=False)
    with torch.inference_mode():
        want, got = model(images), [compiled(images).clone() for _ in range(4)][-1]
        gap = ((want - got).norm() / want.norm()).item()
        median = summary(interleaved({"compiled": lambda: compiled(images)}, given.on, 5)["compiled"])["median"]
    what = f"{VMAMBA}, batch 1, float32, torch.compile with reduce-overhead"
    failed = {"failed": f"{what}: it is {gap:.2g} away from eager"} if not gap < 1e-2 else {}
    given.emit(graph=what, milliseconds={"compiled": median}, deviation=gap, **failed)


def models(given: Run) -> None:
    batches, sizes, rounds = (128, 8, 1), (None,), 5
    names, peers, few = MODELS, PEERS, ((VMAMBA,), PEERS[:2])
    # By their worth: compilation takes minutes, and the time may not suffice for all.
    plans = [
        *itertools.product(("bfloat16",), (False,), ("infer", "train")),
        *itertools.product(("bfloat16",), (True,), ("infer",)),
        *itertools.product(("float32",), (False,), ("infer", "train")),
        *itertools.product(("bfloat16",), (True,), ("train",)),
        *itertools.product(("float32",), (True,), ("infer", "train")),
    ]
    if given.tiny:
        batches, sizes, rounds = (1,), (32,), 1
        names, peers, plans = ("vmamba_pico",), ("test_convnext",), plans[:1]
    for dtype, compiled, mode in plans:
        setup = Setup(given.device, dtype, amp=dtype != "float32", channels_last=True, compile=compiled)
        ours, others = few if compiled else (names, peers)
        found = benchmark(
            ours,
            setup,
            compare=others,
            modes=(mode,),
            img_sizes=sizes,
            batch_sizes=batches,
            rounds=rounds,
            progress=lambda *_: given.check_time(),
        )
        for row in found:
            given.emit(**row)


PARTS: dict[str, Callable[[Run], None]] = {
    part.__name__: part for part in (tests, opcheck, poison, determinism, ops, forms, graphs, models)
}
