"""A state larger than its sequence: the scans of Mamba-FSCIL's projector, N = R = 256 on maps of 4 to 49 positions."""

from collections.abc import Callable
from functools import partial

import torch
from registry import Benchmark, Ratio, register
from selective_scan_2d import composed, make_inputs

from vssm_kernels import Route, backends, encode_routes, reference

# Rows, columns, each followed by its reverse.
ROUTES = encode_routes((Route(), Route(reverse=True), Route(transpose=True), Route(transpose=True, reverse=True)))
STATES = RANK = 256


def build(batch: int, size: int, channels: int, device: torch.device) -> dict[str, Callable[[], object] | str]:
    inputs = make_inputs(batch, size, channels, RANK, STATES, device)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])
    candidates: dict[str, Callable[[], object] | str] = {}

    def add(name: str, forward: Callable, backward: Callable) -> None:
        def run_forward() -> object:
            return forward(*inputs, ROUTES, True, True, torch.float32)

        candidates[f"{name} fwd"] = run_forward
        candidates[f"{name} fwd+bwd"] = lambda: (run_forward(), backward(grad, *inputs, ROUTES, True, True))

    if batch * size * size * channels * STATES < 1e8:
        add("reference", *composed(reference))
    else:
        reason = "some 20 GB and minutes"
        candidates |= dict.fromkeys(("reference fwd", "reference fwd+bwd"), reason)
    backend = "cpp" if device.type == "cpu" else "triton"
    reason = backends.unavailable_reason(backend, device, torch.float32)
    if reason is not None:
        return candidates | dict.fromkeys(("backend fwd", "backend fwd+bwd"), reason)
    module = backends.choose_backend(backend, device, torch.float32, 0)
    add("backend", module.selective_scan_2d_fwd, module.selective_scan_2d_bwd)
    return candidates


# The maps and widths of the recipes for CIFAR-100, mini-ImageNet and CUB-200.
for size, channels in ((2, 640), (5, 512), (7, 1024)):
    for batch in (1, 16):
        register(
            Benchmark(
                name=f"few_positions_n256_{size}x{size}_b{batch}",
                about=f"B {batch}, {size} x {size}, D {channels}, 4 routes, R {RANK}, N {STATES}",
                build=partial(build, batch, size, channels),
                ratios=[
                    Ratio("reference fwd", "backend fwd", at_least=1),
                    Ratio("reference fwd+bwd", "backend fwd+bwd", at_least=1),
                ],
            )
        )
