"""The backends of the selective scan against each other, on the first stage of VMamba-T."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers import add_peers
from registry import Benchmark, Ratio, register

from vssm_kernels import backends, reference

# One image of 224 x 224: 56 x 56 positions, four routes (the groups) of 96 channels.
BATCH, ROUTES, DIM, LENGTH = 1, 4, 96, 56 * 56


def make_inputs(states: int, device: torch.device, batch: int = BATCH) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    channels = ROUTES * DIM
    inputs = [
        torch.randn(batch, channels, LENGTH, generator=gen),
        torch.randn(batch, channels, LENGTH, generator=gen),
        -torch.arange(1.0, states + 1).repeat(channels, 1),
        torch.randn(batch, ROUTES, states, LENGTH, generator=gen),
        torch.randn(batch, ROUTES, states, LENGTH, generator=gen),
        torch.ones(channels),
        torch.randn(channels, generator=gen) - 4,
    ]
    return [x.to(device) for x in inputs]


def build(states: int, device: torch.device) -> dict[str, Callable[[], object] | str]:
    inputs = make_inputs(states, device)
    leaves = [x.clone().requires_grad_() for x in inputs]
    grad_y = torch.randn(BATCH, ROUTES * DIM, LENGTH, generator=torch.Generator().manual_seed(1)).to(device)
    delta, A, bias = inputs[1], inputs[2], inputs[6]

    # The yardstick is the least that plain PyTorch could spend: the decays of one state, and nothing done with them.
    candidates: dict[str, Callable[[], object] | str] = {
        "exp(softplus) alone": lambda: torch.exp(F.softplus(delta + bias[:, None]) * A[:, :1]),
        "loop fwd": lambda: reference.selective_scan_fwd(*inputs, delta_softplus=True),
        "loop fwd+bwd": lambda: torch.autograd.grad(
            (reference.selective_scan_fwd(*leaves, delta_softplus=True)[0],), leaves, (grad_y,)
        ),
    }

    def add(name: str) -> None:
        reason = backends.unavailable_reason(name, device, torch.float32)
        if reason is not None:
            candidates[f"{name} fwd"] = candidates[f"{name} fwd+bwd"] = reason
            return
        module = backends.choose_backend(name, device, torch.float32, 0)

        def forward() -> object:
            return module.selective_scan_fwd(*inputs, delta_softplus=True)

        def both() -> object:
            return forward(), module.selective_scan_bwd(grad_y, None, *inputs, delta_softplus=True)

        candidates[f"{name} fwd"] = forward
        candidates[f"{name} fwd+bwd"] = both

    for name in ("torch", "cpp" if device.type == "cpu" else "triton"):
        add(name)
    add_peers(candidates, inputs, leaves, grad_y)
    return candidates


for states in (1, 16):
    register(
        Benchmark(
            name=f"selective_scan_n{states}",
            about=f"B {BATCH}, {ROUTES} routes of {DIM} channels, L {LENGTH}, N {states}",
            build=lambda device, states=states: build(states, device),
            ratios=[
                Ratio("cpp fwd", "exp(softplus) alone", at_most=0.35 if states == 1 else None),
                Ratio("loop fwd", "cpp fwd", at_least=25),
                Ratio("loop fwd+bwd", "cpp fwd+bwd", at_least=20),
                Ratio("loop fwd", "torch fwd", at_least=5 if states == 1 else None),
                Ratio("loop fwd+bwd", "torch fwd+bwd"),
                Ratio("triton fwd", "exp(softplus) alone"),
                Ratio("loop fwd+bwd", "triton fwd+bwd"),
            ],
        )
    )


def build_bandwidth(states: int, device: torch.device) -> dict[str, Callable[[], object] | str]:
    if device.type == "cpu":
        return dict.fromkeys(("triton fwd", "copy of as many bytes"), "it measures a GPU's memory: --device cuda")
    reason = backends.unavailable_reason("triton", device, torch.bfloat16)
    if reason is not None:
        return {"triton fwd": reason}
    inputs = make_inputs(states, device, batch=64)
    inputs = [x.bfloat16() if x.dim() > 2 else x for x in inputs]
    scan = backends.choose_backend("triton", device, torch.bfloat16, 0).selective_scan_fwd
    moved = sum(x.nbytes for x in inputs) + inputs[0].nbytes  # every input is read once, y written once
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "triton fwd": lambda: scan(*inputs, delta_softplus=True),
        "copy of as many bytes": lambda: target.copy_(source),
    }


register(
    Benchmark(
        name="selective_scan_gpu_bandwidth_n1",
        about=f"B 64, {ROUTES} routes of {DIM} channels, L {LENGTH}, N 1; the copy reads and writes as many bytes",
        build=lambda device: build_bandwidth(1, device),
        dtype="bfloat16",
        # 70 % of the bandwidth of a copy
        ratios=[Ratio("copy of as many bytes", "triton fwd", at_least=0.7)],
    )
)
