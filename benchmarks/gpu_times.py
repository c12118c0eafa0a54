"""The parts of `gpu.py` that are timed: ops, forms, graphs, models."""

import itertools
from collections.abc import Callable

import peers
import registry
import selective_scan  # noqa: F401  (registers its benchmarks)
import selective_scan_2d
import timm
import torch
import triton
import triton.language as tl
from gpu_report import SWIN, VMAMBA
from gpu_run import (
    CROSS,
    OPS,
    STAGES,
    Run,
    SkippedError,
    as_tuple,
    differing,
    far_off,
    scan_inputs,
    sentence,
)

from vssm.profiling import Setup, benchmark, interleaved, summary
from vssm_kernels.triton import selective_scan_2d as scans
from vssm_kernels.triton.launch import Form
from vssm_kernels.triton.map_form import choose_map_form, map_forms
from vssm_kernels.triton.map_launch import MAX_RANK, choose_blocks_2d, fills_a_device

MODELS = (VMAMBA, "vssd_tiny", "vssm_efficientvim_m2")
PEERS = (SWIN, "convnext_tiny", "efficientvim_m2")


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
        # PyTorch keeps every state, for which memory may not suffice; what others wrote is no fault of ours.
        if form.startswith((*peers.PEERS, "torch ")):
            return given.emit(**row, skipped=sentence(error))
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
            low_rank = inputs[-1].shape[-1] <= MAX_RANK
            for form in map_forms(channels, states, backward, low_rank, fills, fills and not backward):
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

    def compare(what: str, call: Callable[[], object], exact: bool) -> None:
        try:
            want = as_tuple(call())
            graph, out = _captured(call)
            graph.replay()
            torch.cuda.synchronize()
            found = [(a, b) for a, b in zip(want, as_tuple(out), strict=True) if a is not None]
            # cuBLAS may choose another algorithm on another stream; our kernels have no such freedom.
            wrong = differing(*map(list, zip(*found, strict=True))) if exact else far_off(*found[0])
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
            exact=True,
        )
    model = timm.create_model(VMAMBA).to(given.on).eval()
    for batch in (1, 8):
        images = torch.randn(batch, 3, 224, 224, device=given.on)

        def infer(images=images) -> torch.Tensor:
            # Casts of weights that autocast keeps would be those of before the capture.
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return model(images)

        compare(f"{VMAMBA}, batch {batch}", infer, exact=False)
    given.check_time()
    images = torch.randn(1, 3, 224, 224, device=given.on)
    compiled = torch.compile(model, mode="reduce-overhead", dynamic=False)
    with torch.inference_mode():
        want, got = model(images), [compiled(images).clone() for _ in range(4)][-1]
        wrong = far_off(got, want)
        median = summary(interleaved({"compiled": lambda: compiled(images)}, given.on, 5)["compiled"])["median"]
    what = f"{VMAMBA}, batch 1, float32, torch.compile with reduce-overhead"
    given.emit(graph=what, milliseconds={"compiled": median}, **({"failed": f"{what}: {wrong}"} if wrong else {}))


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
