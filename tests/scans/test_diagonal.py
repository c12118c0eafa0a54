"""HiPPO, the starts of S4D, and S4D along routes: official numbers, and the two forms against each other."""

import numpy as np
import pytest
import timm
import torch

from tests import parity
from vssm.scans import CROSS, S4D, S4D2D, hippo_legs, hippo_legs_spectrum, s4d_A, s4d_kernel, scan_weights

OPS = parity.load("state_space_variants")["ops"]


@pytest.mark.parametrize("states", [8, 16, 32])
@pytest.mark.parametrize("kind", ["real", "lin", "inv", "legs"])
def test_official_tables(states, kind):
    """The signs of the imaginary parts are the papers'; the official code has the conjugates."""
    table = OPS["s4d_init"]["values"][f"N={states}"][kind]
    A = s4d_A(kind, states)
    expected = torch.complex(
        *(torch.tensor(x, dtype=torch.float64) for x in (table["A_real"], [-v for v in table["A_imag"]]))
    )
    torch.testing.assert_close(A, expected, rtol=1e-6, atol=1e-7)
    if kind == "legs":
        given = hippo_legs_spectrum(states)[1].abs()
        torch.testing.assert_close(given, torch.tensor(table["B_abs"], dtype=torch.float64), rtol=1e-6, atol=0)


def test_hippo_legs():
    A, b = hippo_legs(4)
    expected = torch.tensor(OPS["s4d_init"]["hippo_legs_A_4"], dtype=torch.float64)
    torch.testing.assert_close(A, expected, rtol=1e-6, atol=0)
    expected = torch.tensor(OPS["s4d_init"]["hippo_legs_B_4"], dtype=torch.float64)
    torch.testing.assert_close(b, expected, rtol=1e-6, atol=0)
    values, _, vectors = hippo_legs_spectrum(4)
    p = (torch.arange(4, dtype=torch.float64) + 0.5).sqrt()
    normal = (A + p[:, None] * p).to(vectors.dtype)
    torch.testing.assert_close(normal @ vectors, vectors * values)


def test_the_official_kernel_and_its_convolution():
    case = OPS["s4d_kernel"]
    rng = np.random.RandomState(34)
    C = torch.from_numpy(rng.standard_normal((2, 4, 2)).astype(np.float32))
    log_dt = torch.from_numpy((rng.standard_normal(2) * 0.3 - 2).astype(np.float32))
    u = torch.from_numpy(rng.standard_normal((2, 10)))
    layer = S4D(2, 8).double()
    with torch.no_grad():
        layer.C.copy_(C)
        layer.log_dt.copy_(log_dt)
        layer.Ds.zero_()
    kernel = s4d_kernel(*layer.system(), 10)
    expected = torch.tensor(case["kernel"], dtype=torch.float64).view(2, 10)
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-5 * expected.std().item())
    y = layer(u.T.unsqueeze(0))[0].T
    expected = torch.tensor(case["y"], dtype=torch.float64).view(2, 10)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * expected.std().item())


@pytest.mark.parametrize("A_init", ["real", "lin", "inv", "legs"])
def test_the_convolution_is_the_recurrence(A_init):
    torch.manual_seed(0)
    layer = S4D(3, 6, A_init).double()
    u = torch.randn(2, 17, 3).double()
    torch.testing.assert_close(layer(u), layer.recurrence(u))
    half = layer.float()(u.bfloat16())
    assert half.dtype == torch.bfloat16 and (half - u).isfinite().all()


def test_along_routes():
    """It is causal along each route, every parameter has a gradient, and its linear form gives the scan."""
    torch.manual_seed(0)
    mixer = S4D2D(4, d_state=4, routes=CROSS[:1], d_conv=1, ssm_ratio=1.0)
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    y = mixer(x)
    (reach,) = torch.autograd.grad(y[0, 1, 1].sum(), x, retain_graph=True)
    reach = reach[0].abs().sum(-1).flatten()
    assert (reach > 1e-5 * reach.max()).tolist() == [True] * 6 + [False] * 6  # the FFT rounds what is later
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in mixer.parameters())
    mixer = S4D2D(4, d_state=4)
    (scan,) = mixer.linear_scans(x)
    weights = scan_weights(scan, torch.arange(12))
    merged = (weights * scan.source).sum((1, 2))
    skip = mixer.ssm.Ds.unflatten(0, (4, -1)).sum(0) * scan.source.flatten(0, 2)
    torch.testing.assert_close(merged + skip, mixer.mix(scan.source).flatten(0, 2), rtol=1e-4, atol=1e-5)


def test_a_backbone_of_it():
    model = timm.create_model("vmamba_pico", mixer="s4d", d_state=4, num_classes=3, A_init="legs")
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 3)
    assert {"stages.0.blocks.0.mixer.ssm.C", "stages.0.blocks.0.mixer.ssm.A_imag"} <= model.no_weight_decay()


def test_what_is_refused():
    with pytest.raises(ValueError, match="the start must be lin, inv, legs or real, got 'hippo'"):
        S4D(2, 4, "hippo")
    with pytest.raises(ValueError, match="must be even, got 3"):
        s4d_A("lin", 3)
