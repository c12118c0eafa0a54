"""The hidden-state mixer against a loop over channels and positions that follows the paper's steps."""

import pytest
import torch

from vssm.scans import HiddenStateMixer


def mixer(dim=6, d_state=4, **kwargs):
    torch.manual_seed(0)
    layer = HiddenStateMixer(dim, d_state, dtype=torch.float64, **kwargs)
    with torch.no_grad():
        layer.D.normal_()
    return layer


def reference(layer, x):
    """One image, one position, one state at a time."""
    batch, height, width, _ = x.shape
    n = layer.d_state
    projected = torch.einsum("bhwc,nc->bhwn", x, layer.bcdt_proj.weight)
    taps = torch.zeros_like(projected)
    for i in range(height):
        for j in range(width):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        taps[:, i, j] += layer.conv.weight[:, 0, di + 1, dj + 1] * projected[:, i + di, j + dj]
    b, c, dt = taps[..., :n], taps[..., n : 2 * n], taps[..., 2 * n :]
    y, states = torch.zeros_like(x), []
    for image in range(batch):
        h = []
        for state in range(n):
            score = dt[image, :, :, state] + layer.A[state]
            share = score.exp() / score.exp().sum()  # over all positions
            h.append((share * b[image, :, :, state])[..., None].mul(x[image]).sum((0, 1)))
        h = torch.stack(h)
        value, gate = (h @ layer.hz_proj.weight.T).split(layer.d_inner, dim=-1)
        h = (value * gate * gate.sigmoid() + value * layer.D) @ layer.out_proj.weight.T
        states.append(h)
        for state in range(n):
            y[image] += c[image, :, :, state, None] * h[state]
    return y, torch.stack(states)


@pytest.mark.parametrize("size", [(5, 4), (1, 1), (1, 6), (3, 1)])
@pytest.mark.parametrize("options", [{}, dict(d_state=1), dict(ssm_ratio=2.0)])
def test_against_the_loop(size, options):
    layer = mixer(**options)
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    got, want = layer(x), reference(layer, x)
    assert got[0].shape == x.shape and got[1].shape == (2, layer.d_state, 6)
    weights = [torch.randn_like(t) for t in got]
    inputs = [x, *layer.parameters()]
    grads = [
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(ts, weights, strict=True)), inputs) for ts in (got, want)
    ]
    for a, b in [*zip(got, want, strict=True), *zip(*grads, strict=True)]:
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_the_function():
    layer = mixer(4, 2)
    x = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_a_is_without_effect():
    layer, x = mixer(), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    y, h = layer(x)
    (y.sum() + h.sum()).backward()
    assert layer.A.grad.abs().max() < 1e-12
    with torch.no_grad():
        layer.A.add_(torch.randn(4))
    assert torch.allclose(layer(x)[0], y, rtol=1e-9, atol=1e-12)


def test_initial_parameters():
    torch.manual_seed(0)
    layer = HiddenStateMixer(64, 200)
    assert 1 <= layer.A.min() < 1.5 and 15.5 < layer.A.max() <= 16 and layer.D.item() == 1
    for projection in (layer.bcdt_proj, layer.hz_proj, layer.out_proj):
        bound = projection.in_features**-0.5
        assert 0.9 * bound < projection.weight.abs().max() <= bound


@torch.no_grad()
def test_weights_of_positions_are_float32_in_half_precision():
    layer = HiddenStateMixer(16, 4)
    x = torch.randn(2, 9, 7, 16)
    want = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (layer(x)[0] - want).abs().max() < 0.05 * want.abs().max()
    seen = []
    softmax = torch.ops.aten._softmax.default

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is softmax:
                seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with Spy():
        y, h = layer.bfloat16()(x.bfloat16())
    assert seen == [torch.float32] and y.dtype == h.dtype == torch.bfloat16
    assert (y.float() - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize("options", [dict(d_state=0), dict(ssm_ratio=0.0)])
def test_nothing_to_mix(options):
    with pytest.raises(ValueError, match="d_state and the inner width must be at least 1, got"):
        HiddenStateMixer(8, **options)
