"""ConvSSM: official numbers, frames at once against frame by frame, and what a frame takes."""

import numpy as np
import pytest
import torch

from tests import parity
from vssm.scans import ConvSSM, hippo_legs_spectrum

CASE = parity.load("state_space_variants")["ops"]["convs5"]


def test_the_official_numbers():
    rng = np.random.RandomState(31)
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32))  # noqa: E731
    frames = draw(5, 1, 4, 5, 3)
    B, C, log_dt = draw(8, 27) / 27**0.5, draw(27, 8) / 72**0.5, draw(4) * 0.3 - 2
    V = torch.complex(*(torch.tensor(CASE[f"V_{part}"]).view(8, 4) for part in ("real", "imag")))
    layer = ConvSSM(3, 4)
    with torch.no_grad():
        layer.A_logs.copy_((-torch.tensor(CASE["Lambda_real"])).log())
        layer.A_imag.copy_(torch.tensor(CASE["Lambda_imag"]))
        layer.log_dt.copy_(log_dt)
        layer.B.copy_(torch.view_as_real((V.mH @ B.to(V.dtype)).view(4, 3, 3, 3)))
        layer.C.copy_(torch.view_as_real((C.to(V.dtype) @ V).view(3, 3, 3, 4).permute(0, 3, 1, 2)))
        layer.D.zero_()
    decay = torch.complex(*(torch.tensor(CASE[f"A_bar_{part}"]) for part in ("real", "imag")))
    torch.testing.assert_close(layer.discrete()[0], decay, rtol=1e-5, atol=1e-6)
    expected = torch.tensor(CASE["y"]).view(5, 1, 4, 5, 3).transpose(0, 1)
    y = layer(frames.transpose(0, 1))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * expected.std().item())
    state = None
    for frame in frames:
        _, state = layer.step(frame, state)
    expected = torch.tensor(CASE["last_state_abs"]).view(1, 4, 5, 4)
    torch.testing.assert_close(state.abs().permute(0, 2, 3, 1), expected, rtol=0, atol=1e-5 * expected.std().item())


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_frames_at_once_are_frames_one_by_one(chunk):
    torch.manual_seed(0)
    layer = ConvSSM(2, 4, blocks=2, chunk=chunk).double()
    u = torch.randn(2, 7, 3, 4, 2).double()
    state, results = None, []
    for frame in u.unbind(1):
        y, state = layer.step(frame, state)
        results.append(y)
    torch.testing.assert_close(layer(u), torch.stack(results, 1))


def test_what_a_frame_takes():
    """All frames before it, nothing of later ones or other videos; every parameter has a gradient."""
    torch.manual_seed(0)
    layer = ConvSSM(2, 3, chunk=2)
    u = torch.randn(2, 5, 3, 3, 2, requires_grad=True)
    y = layer(u)
    (reach,) = torch.autograd.grad(y[0, 2].sum(), u, retain_graph=True)
    assert [bool(frame.any()) for frame in reach[0]] == [True] * 3 + [False] * 2 and not reach[1].any()
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(u), y)


def test_its_start():
    """Each block is the spectrum of a HiPPO-LegS; a bad size is refused."""
    layer = ConvSSM(2, 4, blocks=2)
    torch.testing.assert_close(layer.A_imag.double(), hippo_legs_spectrum(4)[0].imag.repeat(2), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="the kernel must be odd, got 2"):
        ConvSSM(2, 4, kernel=2)
    with pytest.raises(ValueError, match="3 blocks do not divide 4 states"):
        ConvSSM(2, 4, blocks=3)
