"""The fused scan of a map against the one composed of gathers, the 1-D scan and scatters, at the stages of VMamba."""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from registry import Benchmark, Ratio, register

from vssm_kernels import Route, backends, encode_routes
from vssm_kernels.scan_2d import scan_2d_bwd, scan_2d_fwd

CROSS = encode_routes((Route(), Route(transpose=True), Route(reverse=True), Route(transpose=True, reverse=True)))
# Size of the map, channels and rank of the step size in the four stages of VMamba-T, for images of 224 x 224.
STAGES = ((56, 96, 6), (28, 192, 12), (14, 384, 24), (7, 768, 48))


def make_inputs(
    batch: int,
    size: int,
    channels: int,
    rank: int,
    states: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list:
    gen = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen).to(device)

    # Views of one projection, as in a model.
    projected = randn(batch, size, size, 4, rank + 2 * states).to(dtype)
    dt, B, C = projected.split([rank, states, states], dim=-1)
    A = -torch.arange(1.0, states + 1, device=device).repeat(4, channels, 1)
    D, bias = torch.ones(4, channels, device=device), randn(4, channels) - 4
    return [randn(batch, size, size, channels).to(dtype), dt, A, B, C, D, bias, randn(4, channels, rank) * rank**-0.5]


def composed(module: ModuleType) -> tuple[Callable, Callable]:
    """The forward and the backward of a map's scan that a backend's scan of sequences makes."""
    return partial(scan_2d_fwd, module.selective_scan_fwd), partial(scan_2d_bwd, module.selective_scan_bwd)


def build(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backend: str | None = None
) -> dict[str, Callable[[], object] | str]:
    inputs = make_inputs(*shape, device, dtype)
    u, dt, A, B, C, D, bias, weight = inputs
    grad = torch.randn(u.shape, generator=torch.Generator().manual_seed(1)).to(u)
    every_step = torch.einsum("bhwkr,kdr->bhwkd", dt, weight.to(dtype))
    candidates: dict[str, Callable[[], object] | str] = {
        # The least that plain PyTorch could spend on N = 1, with the step size given.
        "exp(softplus) alone": lambda: torch.exp(F.softplus(every_step + bias) * A[..., 0]),
    }

    def add(name: str, forward: Callable, backward: Callable, inputs: list) -> None:
        def run_forward() -> object:
            return forward(*inputs, CROSS, True, True, dtype)

        candidates[f"{name} fwd"] = run_forward
        candidates[f"{name} fwd+bwd"] = lambda: (run_forward(), backward(grad, *inputs, CROSS, True, True))

    backend = backend or ("cpp" if device.type == "cpu" else "triton")
    reason = backends.unavailable_reason(backend, device, torch.float32)
    if reason is not None:
        return candidates | {f"{name} {part}": reason for name in ("composed", "fused") for part in ("fwd", "fwd+bwd")}
    module = backends.choose_backend(backend, device, torch.float32, 0)
    add("composed", *composed(module), inputs)
    if not hasattr(module, "selective_scan_2d_fwd"):
        return candidates | dict.fromkeys(("fused fwd", "fused fwd+bwd"), f"backend '{backend}' has no fused 2-D scan")
    fused = module.selective_scan_2d_fwd, module.selective_scan_2d_bwd
    add("fused", *fused, inputs)

    def expanded_before() -> object:
        positions = dt.shape[:3].numel()
        steps = torch.bmm(dt.reshape(positions, 4, -1).transpose(0, 1), weight.to(dtype).mT).view(4, *u.shape)
        return fused[0](u, steps.permute(1, 2, 3, 0, 4), A, B, C, D, bias, None, CROSS, True, True, dtype)

    if backend == "triton":
        for paired, blocks in ((False, module.choose_blocks_2d(u.shape[-1], A.shape[-1])), (True, None)):
            name = "opposite directions paired" if paired else "a program a route"
            candidates[f"fused fwd, {name}"] = partial(
                fused[0], *inputs, CROSS, True, True, dtype, blocks=blocks, paired=paired
            )
    if dtype != torch.float32:  # what a model under autocast asks for
        candidates["fused fwd, float32 out"] = lambda: fused[0](*inputs, CROSS, True, True, torch.float32)
    candidates["step size by a matrix product, fused fwd"] = expanded_before
    return candidates


def add_benchmark(name: str, batch: int, size: int, channels: int, rank: int, states: int, ratios: list[Ratio]) -> None:
    register(
        Benchmark(
            name=name,
            about=f"B {batch}, {size} x {size}, D {channels}, 4 routes, R {rank}, N {states}",
            build=partial(build, (batch, size, channels, rank, states), torch.float32),
            ratios=ratios,
        )
    )


for batch in (1, 8):
    for stage, (size, channels, rank) in enumerate(STAGES, start=1):
        add_benchmark(
            f"selective_scan_2d_n1_stage{stage}_b{batch}",
            *(batch, size, channels, rank, 1),
            [
                Ratio("composed fwd", "fused fwd", at_least=4 if rank < 24 else 3),
                Ratio("composed fwd+bwd", "fused fwd+bwd", at_least=2.5 if rank < 24 else 1.8),
                Ratio("fused fwd", "exp(softplus) alone", at_most=0.5 if rank < 24 else None),
                Ratio("step size by a matrix product, fused fwd", "fused fwd", at_least=1),
            ],
        )
    # Vanilla VMamba-T: inner width twice the width, sixteen states.
    for stage, (size, channels, rank) in ((1, (56, 192, 6)), (3, (14, 768, 24))):
        add_benchmark(
            f"selective_scan_2d_n16_stage{stage}_b{batch}",
            *(batch, size, channels, rank, 16),
            [
                Ratio("composed fwd", "fused fwd", at_least=2),
                Ratio("composed fwd+bwd", "fused fwd+bwd", at_least=1.5),
                Ratio("step size by a matrix product, fused fwd", "fused fwd"),
            ],
        )


def build_on_gpu(shape: tuple[int, ...], device: torch.device) -> dict[str, Callable[[], object] | str]:
    if device.type == "cpu":
        forms = ("fused fwd, a program a route", "fused fwd, opposite directions paired")
        names = ("composed fwd", "composed fwd+bwd", "fused fwd", "fused fwd+bwd", *forms)
        return dict.fromkeys(names, "its size and its targets are for a GPU: --device cuda")
    return build(shape, torch.bfloat16, device)


# Targets set before anything was measured, for an H200. The bytes alone take 0.14 ms with opposite directions in one
# program and 0.65 ms unfused. "fused" is whichever form was fastest here.
for name, batch, stage, states in (("n1_stage1", 128, 1, 1), ("n1_stage3", 128, 3, 1), ("n16_stage1", 64, 1, 16)):
    size, channels, rank = STAGES[stage - 1]
    channels *= 1 if states == 1 else 2  # vanilla VMamba-T: inner width twice the width
    register(
        Benchmark(
            name=f"selective_scan_2d_gpu_{name}_b{batch}",
            about=f"B {batch}, {size} x {size}, D {channels}, 4 routes, R {rank}, N {states}",
            build=partial(build_on_gpu, (batch, size, channels, rank, states)),
            dtype="bfloat16",
            ratios=[
                Ratio("composed fwd", "fused fwd"),
                Ratio("composed fwd+bwd", "fused fwd+bwd", at_least=3 if name == "n1_stage1" else None),
                Ratio("step size by a matrix product, fused fwd", "fused fwd"),
                Ratio("fused fwd, a program a route", "fused fwd, opposite directions paired"),
            ],
            limits={"fused fwd": 0.25} if name == "n1_stage1" else {},
        )
    )
