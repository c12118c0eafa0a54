"""Models of timm's registry timed side by side: what is called, what ran, and a row of figures for each."""

import contextlib
import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vssm_kernels import available_backends
from vssm_kernels.backends import BACKENDS, unavailable_reason

from .._errors import UserError, did_you_mean
from .flops import paper_flops
from .memory import output_apart, peak_memory
from .throughput import backend_taken, environment, interleaved, nearest, operators, scan_backend, summary

__all__ = ["DTYPES", "MODES", "Setup", "benchmark"]

MODES = ("infer", "train")
DTYPES = ("float32", "bfloat16", "float16")

# Below this ratio the row also says which operators the model's time goes into.
SLOW = 0.5

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setup:
    """Settings under which models are measured.

    Attributes:
        device: "cpu", "cuda", "cuda:1", ...
        dtype: One of `DTYPES`: that of the weights and the images; with `amp`, the one that autocast lowers to.
        amp: Weights and images stay float32, and autocast lowers what it lowers in mixed-precision training.
        channels_last: Weights and images in the memory format of that name.
        compile: Through `torch.compile`, once for each shape.
        reparam: Through `timm.utils.reparameterize_model`, which merges batch norms and parallel kernels where a model
            knows how; inference only.
        tf32: Let CUDA compute float32 convolutions and matrix products in TF32. PyTorch's default: convolutions only.
        threads: CPU threads; PyTorch's choice when None.
    """

    device: str = "cpu"
    dtype: str = "float32"
    amp: bool = False
    channels_last: bool = False
    compile: bool = False
    reparam: bool = False
    tf32: bool = False
    threads: int | None = None

    def check(self) -> None:
        """Raises: UserError: an option that is unknown, contradicts another, or is missing here."""
        if self.dtype not in DTYPES:
            raise UserError(f"There is no dtype '{self.dtype}' to measure in; choose one of {', '.join(DTYPES)}.")
        if self.amp and self.dtype == "float32":
            raise UserError("Autocast (--amp) needs a dtype to lower to: bfloat16 or float16, not float32.")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"The number of threads must be at least 1, got {self.threads}.")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"The device '{self.device}' cannot be used: {str(error).splitlines()[0]}") from error
        if device.type == "meta":
            raise UserError("The device 'meta' computes nothing, so nothing can be timed there.")
        if self.tf32 and device.type != "cuda":
            raise UserError(f"TF32 exists on CUDA GPUs only, not on the device '{self.device}'.")

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set the process's switches, and set them back."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = torch.get_num_threads(), matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        # Several models of a class share the compiled code of one function; over the limit they would silently run
        # uncompiled.
        limits = torch._dynamo.config.patch(cache_size_limit=1024, accumulated_cache_size_limit=1024)
        try:
            torch.set_num_threads(self.threads or before[0])
            matmul.allow_tf32 = cudnn.allow_tf32 = self.tf32
            cudnn.benchmark = True  # shapes are fixed: let cuDNN choose its convolutions by time, in the warm-up
            with limits if self.compile else contextlib.nullcontext():
                yield
        finally:
            torch.set_num_threads(before[0])
            _, matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before

    def place(self, tensors: Any) -> Any:
        """Moves a model or images to the device and format in which they run."""
        dtype = torch.float32 if self.amp else getattr(torch, self.dtype)
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return tensors.to(device=self.device, dtype=dtype, memory_format=layout)

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, getattr(torch, self.dtype), enabled=self.amp)

    def described(self) -> dict[str, Any]:
        """Return its part of a row, the environment included."""
        device = torch.device(self.device)
        return {
            "dtype": self.dtype,
            "autocast": self.amp,
            "layout": "channels last" if self.channels_last else "channels first",
            "compiled": self.compile,
            "reparameterized": self.reparam,
            **environment(device),
        }


def names_of(patterns: Sequence[str]) -> list[str]:
    """Registered names, wildcards expanded, in the order given.

    Raises:
        UserError: A name or wildcard that timm's registry has nothing for.
    """
    names: list[str] = []
    for pattern in patterns:
        found = timm.list_models(pattern) if any(c in pattern for c in "*?[") else [pattern]
        for name in found:
            if not timm.is_model(name):
                raise UserError(f"timm knows no model '{name}'{did_you_mean(name, timm.list_models())}.")
        if not found:
            raise UserError(f"No model's name matches '{pattern}'.")
        names += [name for name in found if name not in names]
    return names


def input_size_of(name: str, img_size: int | None) -> tuple[int, int, int]:
    """The (C, H, W) that a model is measured with: its own where `img_size` is None."""
    channels, *sides = get_pretrained_cfg(name).input_size
    return (channels, *sides) if img_size is None else (channels, img_size, img_size)


def create(name: str, input_size: Sequence[int]) -> nn.Module:
    """A model with random weights for images (C, H, W).

    One that is built for a single size is set to this by timm's rules (`set_input_size`): position embeddings are
    resized, and Swin's windows grow with the image.
    """
    model = timm.create_model(name)
    if hasattr(model, "set_input_size") and tuple(input_size) != tuple(model.pretrained_cfg["input_size"]):
        model.set_input_size(img_size=tuple(input_size[1:]))
    return model


def make_call(model: nn.Module, setup: Setup, mode: str) -> Callable[[Tensor], object]:
    """Return the function of images (B, C, H, W) that is measured: a forward pass, or a training step.

    The step is forward, cross-entropy, backward and AdamW, with a gradient scaler where autocast lowers to float16. The
    optimiser's state exists before the first call, and no gradient is kept between two.
    """
    if mode == "infer" and setup.reparam:
        model = timm.utils.reparameterize_model(model)
    model = setup.place(model).train(mode == "train")
    compiled = torch.compile(model, dynamic=False) if setup.compile else model

    def infer(images: Tensor) -> object:
        with torch.inference_mode(), setup.autocast():
            return compiled(images)

    if mode == "infer":
        return infer
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    scaler = torch.amp.GradScaler(torch.device(setup.device).type, enabled=setup.amp and setup.dtype == "float16")
    for parameter in model.parameters():  # a step with zero gradients makes the optimiser's state
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad()

    def train(images: Tensor) -> None:
        with setup.autocast():
            logits = compiled(images)
            labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
            # A distilled model gives the logits of both of its heads.
            heads = logits if isinstance(logits, (tuple, list)) else [logits]
            loss = sum(F.cross_entropy(head.float(), labels) for head in heads)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()

    return train


class _ScanOps(TorchDispatchMode):
    """A mode that notes which of this package's ops are called."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        package, _, name = func.name().partition("::")
        if package == "vssm":
            self.names.add(name)
        return func(*args, **(kwargs or {}))


# Ops that run in PyTorch alone, whatever is asked for.
_ONE_BACKEND = {"ssd"}


@dataclass
class _Candidate:
    """A model to be measured; `failed` says why it cannot be."""

    name: str
    input_size: tuple[int, int, int]
    params: int | None = None
    gflops: float | None = None
    ops: frozenset[str] = frozenset()
    call: Callable[[Tensor], object] | None = None
    failed: str | None = None

    def backends(self, asked: Sequence[str]) -> list[str | None]:
        """The backends that it is measured with: None where nothing is scanned."""
        if self.ops - _ONE_BACKEND:
            return list(asked)
        return ["torch"] if self.ops else [None]


class _Job:
    """Calls the model with a given backend. An error is kept and ends only this job's calls."""

    def __init__(self, call: Callable[[], object], backend: str | None, device: torch.device):
        self.call, self.backend, self.device = call, backend, device
        self.failed: str | None = None

    def __call__(self) -> None:
        if self.failed is not None:
            return
        try:
            with _backend(self.backend):
                self.call()
        except Exception as error:
            self.failed = _reason(error)
        if self.failed is not None:
            # Without the exception, whose frames hold tensors: the next model finds the memory free.
            memory = torch.get_device_module(self.device)
            if hasattr(memory, "empty_cache"):
                memory.empty_cache()


def _backend(name: str | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if name is None else scan_backend(name)


def _reason(error: Exception) -> str:
    """An exception as one short line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def memory_here(setup: Setup, name: str, mode: str, input_size: Sequence[int], batch: int, backend: str | None) -> int:
    """Bytes that a call takes beyond weights, images and the optimiser's state; see `peak_memory` for where to call it.

    A small call of another model goes before, which loads the libraries.
    """
    with setup.applied(), _backend(backend):
        small = make_call(create("vmamba_pico", (3, 32, 32)), dataclasses.replace(setup, compile=False), mode)
        small(setup.place(torch.randn(2, 3, 32, 32)))
        call, images = make_call(create(name, input_size), setup, mode), setup.place(torch.randn(batch, *input_size))
        if setup.compile:
            call(images)
        return peak_memory(lambda: call(images), torch.device(setup.device))


@dataclass(frozen=True)
class _Plan:
    """The arguments of `benchmark`, checked."""

    models: Sequence[str]
    peers: Sequence[str]
    backends: Sequence[str]
    setup: Setup
    memory: bool
    rounds: int
    report: Progress

    @property
    def device(self) -> torch.device:
        return torch.device(self.setup.device)

    def prepare(self, name: str, mode: str, img_size: int | None) -> _Candidate:
        input_size = input_size_of(name, img_size)
        try:
            model = create(name, input_size).to(self.device)
            gflops = paper_flops(model, input_size) / 1e9
            with torch.inference_mode(), _ScanOps() as ops:
                model.eval()(torch.zeros(1, *input_size, device=self.device))
            params = sum(p.numel() for p in model.parameters())
            call = make_call(model, self.setup, mode)
            return _Candidate(name, input_size, params, gflops, frozenset(ops.names), call)
        except UserError:
            raise
        except Exception as error:
            return _Candidate(name, input_size, failed=_reason(error))

    def rows(self, candidates: Sequence[_Candidate], mode: str, batch: int, stage: str) -> Iterator[dict[str, Any]]:
        """Measure candidates together, and give their rows without what all rows share."""

        @functools.cache
        def images(size: Sequence[int]) -> Tensor:
            return self.setup.place(torch.randn(batch, *size))

        built = [c for c in candidates if c.failed is None]
        jobs = {
            (c.name, backend): _Job(lambda c=c: c.call(images(c.input_size)), backend, self.device)
            for c in built
            for backend in c.backends(self.backends if c.name in self.models else self.backends[:1])
        }
        times = interleaved(jobs, self.device, self.rounds, lambda *done: self.report(stage, *done))
        # A peer is measured with its first backend, where it was measured at all.
        peers = {c.name: next(key for key in jobs if key[0] == c.name) for c in built if c.name in self.peers}
        costs = {c.name: c.gflops for c in built if c.name in peers and jobs[peers[c.name]].failed is None}
        for c in candidates:
            row = {
                "model": c.name,
                "input": list(c.input_size),
                "batch": batch,
                "mode": mode,
                "params": c.params,
                "gflops": None if c.gflops is None else round(c.gflops, 3),
            }
            if c.failed is not None:
                yield {**row, "failed": c.failed, "scan backend": None}
            for key in [key for key in jobs if key[0] == c.name]:
                job, row["scan backend"] = jobs[key], key[1]
                if job.failed is not None:
                    yield {**row, "failed": job.failed}
                    continue
                time = summary(times[key])
                figures = {"images_per_s": round(batch / time["median"] * 1e3, 2), "milliseconds": time}
                if self.memory:
                    figures |= self.peak(job, dict(name=c.name, mode=mode, input_size=c.input_size, batch=batch))
                base = peers[nearest(c.gflops, costs)] if costs and c.name in self.models else key
                if base != key:
                    figures |= {"peer": base[0], **_ratio(times[key], times[base])}
                    if figures["ratio"] < SLOW:
                        figures["operators"] = {op: round(share, 3) for op, share in operators(job, self.device)}
                yield {**row, **figures}

    def peak(self, job: _Job, model: dict[str, Any]) -> dict[str, Any]:
        """Return a row's figures of memory; on a CPU they are measured in a process of their own."""
        if self.device.type != "cpu":
            return {"mebibytes": round(peak_memory(job, self.device) / 2**20, 1)}
        question = {**model, "backend": job.backend, "setup": dataclasses.asdict(self.setup)}
        try:
            taken = int(output_apart("-m", "vssm.profiling.memory_of_model", json.dumps(question)))
        except UserError as error:
            return {"mebibytes": None, "memory failed": str(error).rpartition("failed: ")[2][:200]}
        return {"mebibytes": round(taken / 2**20, 1)}


def _ratio(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Compare the speed with the base's, from the samples of the same rounds."""
    ratios = [theirs / ours for ours, theirs in zip(own, base, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    values = {"ratio": statistics.median(ratios), "ratio q1": low, "ratio q3": high}
    return {name: round(value, 3) for name, value in values.items()}


def _check(modes: Sequence[str], sizes: Sequence[int | None], batches: Sequence[int], rounds: int) -> None:
    for mode in modes:
        if mode not in MODES:
            raise UserError(f"There is no mode '{mode}'; choose of {', '.join(MODES)}.")
    for what, values in (("batch size", batches), ("image size", sizes), ("number of rounds", [rounds])):
        for value in values:
            if value is not None and value < 1:
                raise UserError(f"The {what} must be at least 1, got {value}.")


def _backends(asked: Sequence[str], setup: Setup) -> list[str]:
    """Backends by the names of what will run; "auto" is what a model takes by itself."""
    device, dtype = torch.device(setup.device), getattr(torch, setup.dtype)
    names = []
    for name in asked:
        if name not in BACKENDS:
            raise UserError(f"There is no scan backend '{name}'; choose of {', '.join(BACKENDS)}.")
        name = backend_taken(device) if name == "auto" else name
        if name not in available_backends(device, dtype):
            reason = unavailable_reason(name, device, dtype) if name in BACKENDS else "there is no such backend"
            raise UserError(f"The scan backend '{name}' cannot run on {setup.device}: {reason.rstrip('.')}.")
        names.append(name)
    return list(dict.fromkeys(names))


def benchmark(
    models: Sequence[str],
    setup: Setup | None = None,
    *,
    compare: Sequence[str] = (),
    modes: Sequence[str] = ("infer",),
    img_sizes: Sequence[int | None] = (None,),
    batch_sizes: Sequence[int] = (1,),
    backends: Sequence[str] = ("auto",),
    memory: bool = False,
    rounds: int = 7,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Time models of timm's registry, random weights and images, in interleaved rounds.

    All models of one size, mode and batch take turns, so that a slow spell of the machine falls on all alike. The first
    calls of each are not kept: allocations, compilation, and the timing by which cuDNN and the Triton kernels choose
    their forms. Devices are synchronised before the clock is read.

    Args:
        models: names or wildcards.
        setup: how they run.
        compare: names or wildcards of models that the others are compared with, each with the nearest by GFLOPs. They
            are measured in the same rounds, with the first backend.
        modes: of `MODES`: a forward pass in evaluation mode without gradients; a training step, see `make_call`.
        img_sizes: sides of the square images; None for each model's own size.
        batch_sizes: images a call.
        backends: of the selective scan, see `vssm_kernels.available_backends`; a model without one is measured once.
        memory: measure peak memory too. On a CPU that is a process of its own for each row, which takes seconds; on a
            GPU it is one call more, and always done.
        rounds: samples of each.
        progress: called with (what is done, steps done, steps in all).

    Yields:
        Rows, those of a size, mode and batch together: `model`, `input` [C, H, W], `batch`, `mode`, `params`, `gflops`
        (of a forward pass of one image, see `paper_flops`), `images_per_s` (of the median), `milliseconds` (`summary`
        of a call), and what ran: see `Setup.described`, and `scan backend`, None where nothing was scanned. `mebibytes`
        is the peak of a call beyond weights, images and the optimiser's state. With `compare`, `peer` and `ratio`: how
        many times as many images a second as the peer, the median over the rounds, with the quartiles `ratio q1` and
        `ratio q3`; and `operators`, what the time goes into, where the ratio is below a half. A model that could not be
        built or run, for lack of memory or for a size that it does not take, has `failed`, the reason, in place of
        figures.

    Raises:
        UserError: an unknown name, or an option that makes no sense or cannot be had here.
    """
    setup = setup or Setup()
    wanted, peers = names_of(models), names_of(compare)
    setup.check()
    _check(modes, img_sizes, batch_sizes, rounds)
    if setup.reparam and "train" in modes:
        raise UserError("Re-parameterized models (--reparam) are for inference; they are not trained.")
    asked, device = _backends(backends, setup), torch.device(setup.device)
    memory = memory or device.type == "cuda"
    if memory and device.type != "cpu" and not hasattr(torch.get_device_module(device), "reset_peak_memory_stats"):
        raise UserError(f"Peak memory cannot be measured on the device '{setup.device}'.")
    report = progress or (lambda *_: None)
    plan = _Plan(wanted, peers, asked, setup, memory, rounds, report)
    names = list(dict.fromkeys([*wanted, *peers]))
    with setup.applied():
        ran = setup.described()
        for img_size, mode in itertools.product(img_sizes, modes):
            candidates = []
            for i, name in enumerate(names):
                report(f"building {name}", i, len(names))
                candidates.append(plan.prepare(name, mode, img_size))
            for batch in batch_sizes:
                stage = f"{mode}, {f'{img_size} px, ' if img_size else ''}batch {batch}"
                for row in plan.rows(candidates, mode, batch, stage):
                    yield {**row, **ran, "scan backend": row["scan backend"]}
