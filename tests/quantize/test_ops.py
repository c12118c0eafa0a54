"""The parts of quantisers against published code and formulas (tests/data/parity/quantization.json)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import parity
from vssm.quantize import (
    AbsMax,
    MinMaxPerToken,
    Percentile,
    fake_quantize,
    fake_quantize_levels,
    fold_into,
    hadamard,
    has_hadamard,
    quantize,
    rotate,
    search_token_steps,
    search_weight_steps,
    smooth_scales,
    state_factors,
    state_steps,
    token_steps,
    upper_quantile,
)

OPS = parity.load("quantization")["ops"]


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    state = np.random.RandomState(seed)
    return [torch.from_numpy(state.standard_normal(shape).astype(np.float32)) for shape in shapes]


def close(got: torch.Tensor, wanted, rtol: float = 1e-6) -> None:
    wanted = torch.tensor(wanted).view_as(got)
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


def outliers() -> torch.Tensor:
    return torch.from_numpy((np.random.RandomState(41).standard_normal((3, 40, 6)) ** 3).astype(np.float32))


def smoothed() -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (7, 9, 6) and a weight (5, 6)."""
    weight, act = drawn(44, (5, 6), (7, 9, 6))
    return act.abs() * torch.tensor([1, 1, 20, 1, 0.1, 1]), weight


def test_absmax():
    observer, x = AbsMax(), outliers()
    for part in x:
        observer(part)
    close(observer.scale(8), OPS["absmax"]["scale_8"])
    close(observer.scale(4), OPS["absmax"]["scale_4"])
    assert quantize(x, observer.scale(8), 8).flatten()[:12].tolist() == OPS["absmax"]["q8_first12"]
    assert AbsMax().bound is None
    with pytest.raises(RuntimeError, match="AbsMax has seen no tensor"):
        AbsMax().scale(8)


def test_percentile():
    x, record = outliers(), OPS["percentile"]
    for case in record["cases"]:
        observer = Percentile(case["alpha"])
        observer(x)
        close(observer.bound, case["max"])
        close(observer.scale(8), case["scale_8"])
    observer = Percentile(0.99)
    for part in x:
        observer(part)
    close(observer.bound, record["running_max"])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_quantile_is_torchs(alpha):
    x = outliers()
    close(upper_quantile(x, alpha), float(torch.quantile(x, alpha)))


def test_hadamard():
    v = torch.from_numpy(np.random.RandomState(42).standard_normal(16).astype(np.float32))
    close(rotate(v, hadamard(16)), OPS["hadamard"]["y"])
    for n in (1, 2, 12, 20, 40, 96, 192, 160):
        H = hadamard(n)
        assert has_hadamard(n) and torch.equal(H, H.T) and torch.equal(H @ H, n * torch.eye(n))
    for n in (0, 6, 28, 36):
        assert not has_hadamard(n)
        with pytest.raises(ValueError, match=f"got {n}"):
            hadamard(n)


def test_scan_of_eight_bit_tensors():
    """The scan's tensors in 8 bits, the input clipped; decays, steps and states in float32."""
    shapes = {"u": (1, 6, 10), "dt": (1, 6, 10), "A_log": (6, 4), "B": (1, 4, 10), "C": (1, 4, 10)}
    shapes |= {"D": (6,), "bias": (6,), "z": (1, 6, 10)}
    record = OPS["selective_scan_w8a8"]
    floats = dict(zip(shapes, drawn(43, *shapes.values()), strict=True))
    floats["A_log"] *= 0.5
    floats["bias"] *= 0.5
    eight = {}
    for name, x in floats.items():
        observer = Percentile(0.99) if name == "u" else AbsMax()
        observer(x)
        close(observer.scale(8), record[f"scale_{name}"])
        eight[name] = fake_quantize(x, observer.scale(8), 8)
    for tensors, wanted in ((floats, record["y_float"]), (eight, record["y"])):
        y = torch.ops.vssm.selective_scan(
            tensors["u"],
            tensors["dt"],
            A=-tensors["A_log"].exp(),
            B=tensors["B"].unsqueeze(1),
            C=tensors["C"].unsqueeze(1),
            D=tensors["D"],
            z=tensors["z"],
            delta_bias=tensors["bias"],
            delta_softplus=True,
        )
        close(y[0] if isinstance(y, tuple) else y, wanted)


@pytest.mark.parametrize(("alpha", "key"), [(0.5, "alpha_05"), (0.65, "alpha_065")])
def test_smoothing(alpha, key):
    act, weight = smoothed()
    scales = smooth_scales(act.flatten(0, 1).amax(0), weight, alpha)
    close(scales, OPS["smooth"][key])
    for layer in (nn.LayerNorm(6), nn.Linear(4, 6)):
        x = torch.randn(3, layer.weight.shape[-1], generator=torch.Generator().manual_seed(0))
        wanted = layer(x) @ weight.T
        fold_into(layer, scales)
        torch.testing.assert_close(layer(x) @ (weight * scales).T, wanted)


def test_smoothing_does_not_follow_silent_channels():
    scales = smooth_scales(torch.tensor([0.0, 1e-6, 2.0]), torch.ones(2, 3), 0.5)
    assert scales[0] == scales[1] == pytest.approx(1e-3**0.5)


@pytest.mark.parametrize("case", OPS["per_token_static"]["cases"], ids=lambda c: f"{c['levels']}-{c['search']}")
def test_per_token_static(case):
    act, weight = smoothed()
    scales = smooth_scales(act.flatten(0, 1).amax(0), weight, 0.5)
    x, w, levels = act / scales, weight * scales, case["levels"]
    if case["search"]:
        steps, weight_steps = search_token_steps(x, levels), search_weight_steps(w, levels)
    else:
        observer = MinMaxPerToken()
        observer(x[:3])
        observer(x[3:])
        steps = observer.steps(levels)
        weight_steps = w.abs().amax(1, keepdim=True) / (levels // 2 - 1)
    close(steps.step, case["act_step"], 1e-5)
    assert steps.zero.flatten().tolist() == case["act_zero"]
    close(weight_steps, case["weight_step"], 1e-5)
    top = levels // 2 - 1
    w = (w / weight_steps).round().clamp(-top, top) * weight_steps
    y = F.linear(fake_quantize_levels(x, steps.step, steps.zero, levels), w)
    close(y[0], case["output"], 1e-5)


def test_constant_positions_keep_their_value():
    steps = token_steps(torch.tensor([0.0, 3.0, -2.0]), torch.tensor([0.0, 3.0, -2.0]), 256)
    x = torch.tensor([0.0, 3.0, -2.0])
    torch.testing.assert_close(fake_quantize_levels(x, steps.step, steps.zero, 256), x, rtol=1e-3, atol=0)


def test_gradients_pass_the_rounding_and_stop_at_the_range():
    x = torch.tensor([0.26, 100.0], requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    fake_quantize(x, scale, 8).sum().backward()
    assert x.grad.tolist() == [1, 0]
    # Inside: q - x / s; outside: the integer at the end.
    assert float(scale.grad) == pytest.approx((3 - 2.6) + 127, rel=1e-5)


def test_states_are_evened_out_exactly():
    x, dA, dB, C, D = drawn(46, (2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4), (2, 4, 5), (3,))
    dA, record = dA.sigmoid(), OPS["state_reparameterisation"]

    def scan(dA: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        h, out = torch.zeros(2, 3, 4), []
        for t in range(5):
            h = dA[:, :, t] * h + u[:, :, t]
            out.append(h)
        return torch.stack(out, 2)

    u = dB * x.unsqueeze(-1)
    states = scan(dA, u)
    found = state_factors(states)
    for name in ("r_C", "r_L", "r_D"):
        close(getattr(found, name), record[name], 1e-5)
    close(found.decay, record["sA"], 1e-5)
    close(found.input, record["sB"], 1e-5)
    close(found.output, record["sC"], 1e-5)
    scaled = scan(dA * found.decay[:, None], u * found.input)
    close(state_steps(scaled), record["state_interval"], 1e-5)
    y = torch.einsum("bdln,bnl->bdl", states, C) + D[:, None] * x
    again = torch.einsum("bdln,bnl->bdl", scaled, C * found.output) * found.r_C[:, None] + D[:, None] * x
    torch.testing.assert_close(again, y, rtol=1e-5, atol=1e-6)
