"""Spatial-Mamba's mixer against its definition, written out position by position and tap by tap."""

import pytest
import timm
import torch
import torch.nn.functional as F

from vssm.scans import SpatialFusionSS2D
from vssm.scans.spatial_fusion import FusedStateFusion, StateFusion

SIZES = [(7, 13), (5, 4), (2, 9), (1, 6), (1, 1)]  # the padding is 5


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, in float64: the usual start (kernels, scales and D all 1) would hide a mix-up."""
    g = torch.Generator().manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return module


def image(height: int, width: int, dim: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, height, width, dim, generator=g, dtype=torch.float64, requires_grad=True)


def fused_states(fusion: StateFusion, h: torch.Tensor) -> torch.Tensor:
    """(B, H, W, D): every tap reads the pixel that its own offset, clamped to the map, points at."""
    rows, columns = torch.arange(h.shape[1]), torch.arange(h.shape[2])
    out = torch.zeros_like(h)
    for i, (dilation, kernel) in enumerate(((1, fusion.kernel1), (3, fusion.kernel3), (5, fusion.kernel5))):
        for a in range(3):
            for b in range(3):
                from_row = (rows + (a - 1) * dilation).clamp(0, h.shape[1] - 1)
                from_column = (columns + (b - 1) * dilation).clamp(0, h.shape[2] - 1)
                out = out + fusion.alpha[i] * kernel[:, 0, a, b] * h[:, from_row][:, :, from_column]
    return out


def definition(mixer: SpatialFusionSS2D, x: torch.Tensor) -> torch.Tensor:
    batch, height, width, _ = x.shape
    inner, rank = mixer.d_inner, mixer.dt_rank
    u, z = (x @ mixer.in_proj.weight.T).split([inner, inner], dim=-1)
    u = F.conv2d(u.permute(0, 3, 1, 2), mixer.conv.weight, mixer.conv.bias, padding=1, groups=inner)
    u = F.silu(u).permute(0, 2, 3, 1)
    low, B, C = (u @ mixer.x_proj.weight.T).split([rank, 1, 1], dim=-1)
    step = (1 + (low @ mixer.dt_projs_weight[0].T + mixer.dt_projs_bias[0]).exp()).log()
    decay = (-step * mixer.A_logs[:, 0].exp()).exp()
    entering = step * B * u
    state, states = torch.zeros(batch, inner, dtype=x.dtype), []
    for i in range(height):
        for j in range(width):
            state = decay[:, i, j] * state + entering[:, i, j]
            states.append(state)
    h = torch.stack(states, dim=1).reshape(batch, height, width, inner)
    y = C * fused_states(mixer.fusion, h) + mixer.Ds * u
    y = F.layer_norm(y, (inner,), mixer.out_norm.weight, mixer.out_norm.bias, 1e-5)
    return (y * F.silu(z)) @ mixer.out_proj.weight.T


def assert_same_gradients(got, want, inputs, rtol=1e-7, atol=1e-9):
    g = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(got, inputs, g), torch.autograd.grad(want, inputs, g), strict=True):
        assert torch.allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("size", SIZES)
def test_output_and_gradients(size):
    mixer, x = randomised(SpatialFusionSS2D(6)), image(*size)
    y, want = mixer(x), definition(mixer, x)
    assert torch.allclose(y, want, rtol=1e-9, atol=1e-10)
    assert_same_gradients(y, want, [x, *mixer.parameters()])


@pytest.mark.parametrize("size", SIZES)
def test_fusion(size):
    """On maps smaller than the padding too, with the kernels apart and merged."""
    fusion, h = randomised(StateFusion(6)), image(*size)
    want = fused_states(fusion, h)
    y = fusion(h)
    assert torch.allclose(y, want, rtol=1e-10, atol=1e-12)
    assert_same_gradients(y, want, [h, *fusion.parameters()])
    merged = fusion.fuse()
    assert isinstance(merged, FusedStateFusion) and merged.weight.shape == (6, 1, 11, 11)
    assert (merged.weight != 0).sum() == 6 * 25
    assert torch.allclose(merged(h), want, rtol=1e-10, atol=1e-12)
    assert_same_gradients(merged(h), fused_states(fusion, h), [h])


def test_a_merged_mixer_is_the_same_and_still_learns():
    mixer, x = randomised(SpatialFusionSS2D(6)), image(5, 7)
    want = mixer(x)
    apart = torch.autograd.grad(want.square().sum(), [x, mixer.A_logs], retain_graph=True)
    assert mixer.fuse() is mixer and mixer.fuse().training
    y = mixer(x)
    assert torch.allclose(y, want, rtol=1e-10, atol=1e-12)
    *together, kernel = torch.autograd.grad(y.square().sum(), [x, mixer.A_logs, mixer.fusion.weight])
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(apart, together, strict=True))
    assert kernel.abs().sum() > 0


@torch.no_grad()
def test_nothing_is_cached():
    """The evaluation of the official code keeps the kernel of its first call, whatever is loaded later."""
    mixer, x = randomised(SpatialFusionSS2D(6)).eval(), image(5, 7)
    before = mixer(x)
    mixer.fusion.alpha.mul_(2)
    assert not torch.allclose(mixer(x), before) and torch.allclose(mixer(x), definition(mixer, x))


@torch.no_grad()
def test_timm_merges_a_copy():
    torch.manual_seed(0)
    model = timm.create_model("spatialmamba_pico").eval()
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(1, 3, 75, 101)
    merged = timm.utils.reparameterize_model(model)
    assert not any(isinstance(m, StateFusion) for m in merged.modules())
    assert sum(isinstance(m, StateFusion) for m in model.modules()) == 5
    assert torch.allclose(merged(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
@torch.no_grad()
def test_fusion_stays_in_float32(dtype, merge):
    """27 taps of 10 000 leave the range of float16, under autocast and in a module that was cast whole."""
    fusion = StateFusion(4)
    fusion = fusion.fuse() if merge else fusion
    h = torch.full((1, 6, 6, 4), 1e4)
    with torch.autocast("cpu", dtype=dtype):
        y = fusion(h)
    assert y.dtype == torch.float32 and (y == 27e4).all()
    y = fusion.to(dtype)(h.to(dtype))
    assert y.dtype == torch.float32 and torch.allclose(y, torch.tensor(27e4), rtol=1e-2)


@torch.no_grad()
def test_mixer_in_half_precision():
    torch.manual_seed(0)
    mixer, x = SpatialFusionSS2D(16), torch.randn(1, 9, 11, 16)
    exact = mixer.double()(x.double())
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
        mixer.float()
        with torch.autocast("cpu", dtype=dtype):
            outputs = [mixer(x)]
        outputs.append(mixer.to(dtype)(x.to(dtype)))
        for y in outputs:
            assert y.dtype == dtype and (y.double() - exact).norm() / exact.norm() < tolerance


def test_initial_parameters():
    torch.manual_seed(0)
    mixer = SpatialFusionSS2D(64)
    assert all((p == 1).all() for p in mixer.fusion.parameters())
    assert (mixer.A_logs == 0).all() and (mixer.Ds == 1).all() and mixer.conv.bias is not None
    step = F.softplus(mixer.dt_projs_bias)
    assert step.min() > 0.9e-3 and step.max() < 0.11
    assert mixer.x_proj.weight.abs().max() <= 128**-0.5 and mixer.dt_projs_weight.abs().max() <= 4**-0.5
