"""The scan of a volume in six directions against attention over its tokens, and against permuted copies.

Width 96 and one state, as in the first stage of a VMamba-T: the scan with its low-rank step size, attention with three
heads, both without the projections before and after.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from registry import Benchmark, Ratio, register
from selective_scan_2d import composed

from vssm_kernels import Route, backends, encode_routes
from vssm_kernels.routes import on_flat_maps

CROSS_3D = tuple(Route(axes=axes, reverse=r) for r in (False, True) for axes in ((0, 1, 2), (0, 2, 1), (1, 2, 0)))
MAPS = ("u", "dt", "B", "C")
WIDTH, HEADS, RANK = 96, 3, 6
# Above so many tokens attention takes minutes on a CPU.
MOST_ON_A_CPU = 32**3


def build(side: int, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Callable | str]:
    gen = torch.Generator().manual_seed(0)
    count, code, size = len(CROSS_3D), encode_routes(CROSS_3D), (side,) * 3

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen).to(device)

    # Views of one projection, as in a model.
    dt, B, C = randn(1, *size, count, RANK + 2).to(dtype).split([RANK, 1, 1], dim=-1)
    inputs = dict(
        u=randn(1, *size, WIDTH).to(dtype),
        dt=dt,
        A=-torch.ones(count, WIDTH, 1, device=device),
        B=B,
        C=C,
        D=torch.ones(count, WIDTH, device=device),
        delta_bias=randn(count, WIDTH) - 4,
        dt_weight=randn(count, WIDTH, RANK) * RANK**-0.5,
    )
    how = dict(code=code, delta_softplus=True, merge=True)
    grad = randn(1, *size, WIDTH).to(dtype)
    candidates: dict[str, Callable | str] = {}

    def add(name: str, forward: Callable, backward: Callable) -> None:
        forward, backward = on_flat_maps(forward, MAPS), on_flat_maps(backward, (*MAPS, "grad"))
        run = partial(forward, **inputs, **how, out_dtype=dtype)
        candidates[f"{name} fwd"] = run
        candidates[f"{name} fwd+bwd"] = lambda: (run(), backward(grad=grad, **inputs, **how))

    backend = "cpp" if device.type == "cpu" else "triton"
    reason = backends.unavailable_reason(backend, device, torch.float32)
    if reason is None:
        module = backends.choose_backend(backend, device, torch.float32, 0)
        add("scan", module.selective_scan_2d_fwd, module.selective_scan_2d_bwd)
        add("scan of permuted copies", *composed(module))
    else:
        names = ("scan", "scan of permuted copies")
        candidates |= {f"{name} {part}": reason for name in names for part in ("fwd", "fwd+bwd")}

    if device.type == "cpu" and side**3 > MOST_ON_A_CPU:
        reason = f"minutes on a CPU; {(side // 32) ** 6} times that of 32^3 tokens"
        return candidates | {"attention fwd": reason, "attention fwd+bwd": reason}
    leaves = [randn(1, HEADS, side**3, WIDTH // HEADS).to(dtype).requires_grad_() for _ in range(3)]
    given = [x.detach() for x in leaves]
    out = torch.ones_like(given[0])
    candidates["attention fwd"] = lambda: F.scaled_dot_product_attention(*given)
    candidates["attention fwd+bwd"] = lambda: torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, out)
    return candidates


for side in (16, 32, 64):
    register(
        Benchmark(
            name=f"volume_attention_{side}",
            about=f"B 1, {side} x {side} x {side} tokens, D {WIDTH}, 6 routes, R {RANK}, N 1; {HEADS} heads",
            build=partial(build, side),
            ratios=[
                Ratio("attention fwd", "scan fwd"),
                Ratio("attention fwd+bwd", "scan fwd+bwd"),
                Ratio("scan of permuted copies fwd", "scan fwd"),
                Ratio("scan of permuted copies fwd+bwd", "scan fwd+bwd"),
            ],
        )
    )
