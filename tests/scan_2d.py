"""Inputs of the 2-D selective scan, and what float64 autograd through the reference makes of them."""

import torch

from vssm_kernels import Route, encode_routes, selective_scan_2d
from vssm_kernels.routes import count_routes, map_rank

NAMES_2D = ("u", "dt", "A", "B", "C", "D", "delta_bias", "dt_weight")
CROSS = (Route(), Route(transpose=True), Route(reverse=True), Route(transpose=True, reverse=True))
ROUTES = {
    "cross": CROSS,
    "strided": tuple(Route(stride=(2, 3), offset=(i, j), transpose=bool(j)) for i in (0, 1) for j in (0, 1, 2)),
    "joined": (Route(reverse=True), (Route(), Route(transpose=True, reverse=True), Route(stride=(1, 2)))),
    "joined-first": ((Route(stride=(2, 1)), Route(transpose=True), Route(reverse=True)), Route()),
    "paths": (
        Route(path="snake", mirror=(False, True)),
        Route(path="diagonal", transpose=True),
        Route(path="spiral", reverse=True, mirror=(True, False)),
    ),
    "one": (Route(transpose=True),),
    "some-empty": (Route(offset=(99, 0)), Route(), (Route(offset=(0, 99)), Route(reverse=True))),
    "all-empty": (Route(offset=(99, 0)), Route(offset=(0, 99))),
}


VOLUME_ROUTES = {
    "six": tuple(Route(axes=axes, reverse=r) for axes in ((0, 1, 2), (0, 2, 1), (1, 2, 0)) for r in (False, True)),
    "strided": tuple(Route(axes=(2, 0, 1), stride=(2, 1, 2), offset=(i, 0, j)) for i in (0, 1) for j in (0, 1)),
    "joined": (Route(axes=(0, 1, 2), mirror=(True, False, True)), (Route(axes=(1, 0, 2)), Route(axes=(2, 1, 0)))),
    "snakes": (Route(axes=(0, 1, 2), path="snake"), Route(axes=(2, 0, 1), path="snake", reverse=True)),
    "some-empty": (Route(axes=(0, 1, 2), offset=(0, 99, 0)), Route(axes=(1, 2, 0))),
    "four": (Route(axes=(3, 0, 2, 1)), Route(axes=(0, 1, 2, 3), path="snake", stride=(1, 2, 1, 1))),
}


def make_2d(
    routes,
    batch=2,
    height=6,
    width=5,
    channels=19,
    states=2,
    rank=3,
    own_input=False,
    absent=(),
    softplus=True,
    seed=0,
    outer=(),
):
    """The streaming inputs as models give them: views of one projection. `rank` None: the step size in full."""
    gen = torch.Generator().manual_seed(seed)
    k = len(routes)

    def randn(*shape):
        return torch.randn(*shape, generator=gen)

    steps = rank or channels
    size = (batch, *outer, height, width)
    dt, B, C = randn(*size, k, steps + 2 * states).split([steps, states, states], dim=-1)
    inputs = dict(
        u=randn(*size, k, channels) if own_input else randn(*size, channels),
        dt=dt,
        A=-torch.rand(k, channels, states, generator=gen) * 4 - 0.05,
        B=B,
        C=C,
        D=randn(k, channels),
        delta_bias=randn(k, channels) - 1,
        dt_weight=randn(k, channels, rank) * rank**-0.5 if rank else None,
    )
    inputs = {name: None if name in absent else x for name, x in inputs.items()}
    if not softplus:  # steps are positive in use; with negative ones the state would grow
        inputs["dt"] = inputs["dt"].abs() * 0.3
        inputs["delta_bias"] = None if inputs["delta_bias"] is None else inputs["delta_bias"].abs() * 0.1
        inputs["dt_weight"] = None if inputs["dt_weight"] is None else inputs["dt_weight"].abs()
    return inputs


def expected_2d(inputs, routes, grad, softplus=True, merge=True):
    """As `expected`. The scale of what sums over positions and channels is that of the terms."""
    leaves = {k: None if x is None else x.detach().double().requires_grad_() for k, x in inputs.items()}
    x = dict(leaves)
    if x["dt_weight"] is not None:
        x["dt"] = torch.einsum("...kr,kdr->...kd", x["dt"], x.pop("dt_weight"))
        x["dt"].retain_grad()
    y = selective_scan_2d(**x, routes=routes, delta_softplus=softplus, merge=merge, backend="reference")
    (y * grad.double()).sum().backward()
    want = {k: None if v is None else v.grad for k, v in leaves.items()}
    scales = {k: 0 if v is None else v.abs().max().item() for k, v in want.items()}
    terms = x["dt"].grad.abs()
    if leaves["dt_weight"] is not None:
        weight, dt = leaves["dt_weight"].detach().abs(), leaves["dt"].detach().abs()
        scales["dt"] = torch.einsum("...kd,kdr->...kr", terms, weight).max().item()
        scales["dt_weight"] = torch.einsum("pkd,pkr->kdr", terms.flatten(0, -3), dt.flatten(0, -3)).max().item()
    scales["delta_bias"] = terms.flatten(0, -3).sum(0).max().item()
    u, g = (v.detach().double().abs() for v in (inputs["u"], grad))
    last = 1 + map_rank(encode_routes(routes))
    scales["D"] = (g.flatten(last).amax(-1) * u.flatten(last).amax(-1)).sum().item()
    return [(y.detach(), y.abs().max().item()), *((want[k], scales[k]) for k in NAMES_2D)]


def gradient_2d(inputs, routes, merge=True):
    code = encode_routes(routes)
    on_map = inputs["u"].shape[: 1 + map_rank(code)]
    shape = (*on_map, *(() if merge else (count_routes(code),)), inputs["u"].shape[-1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_close_2d(got, want, tolerance=3e-6):
    for name, x, (ref, scale) in zip(("y", *NAMES_2D), got, want, strict=True):
        if ref is None:
            assert x is None, name
            continue
        assert x.shape == ref.shape and x.is_contiguous() and x.isfinite().all(), name
        error = (x.double() - ref).abs().max().item()
        assert error <= tolerance * scale, f"{name}: {error:.3g} of {scale:.3g}"
