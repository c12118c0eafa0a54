"""The multi-scale mixer against its definition, token by token and in float64."""

import pytest
import torch
import torch.nn.functional as F

from vssm.scans import CROSS, MULTISCALE, MultiScaleSS2D
from vssm_kernels.routes import decode_routes, encode_routes

FIRST: dict = {}  # the arXiv version
SECOND = dict(gate=False, ssm_ratio=1.0, norm_before_merge=False, upsample_mode="nearest")
OPTIONS = {
    "first": FIRST,
    "second": SECOND,
    "second-gated": dict(SECOND, gate=True),
    "many-states": dict(d_state=3, dt_rank=2),
}
SIZES = [(5, 4), (7, 3), (1, 6), (1, 1)]


def randomised(**options) -> MultiScaleSS2D:
    """Every parameter random, in float64: the usual start (D = 1, equal A) would hide a mix-up."""
    g = torch.Generator().manual_seed(0)
    mixer = MultiScaleSS2D(16, **options).double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return mixer


def image(size, dim=16):
    return torch.randn(2, *size, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scan(mixer: MultiScaleSS2D, tokens: torch.Tensor, k: int) -> torch.Tensor:
    """The recurrence over tokens (B, L, D) with the parameters of branch k, one token after the other."""
    rows, own = mixer.dt_rank + 2 * mixer.d_state, slice(k * mixer.d_inner, (k + 1) * mixer.d_inner)
    A, state, outputs = -mixer.A_logs[own].exp(), 0, []
    for u in tokens.unbind(1):
        projected = u @ mixer.x_proj.weight[k * rows : (k + 1) * rows].T
        dt, B, C = projected.split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
        delta = F.softplus(dt @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])
        state = (delta[..., None] * A).exp() * state + (delta * u)[..., None] * B[:, None, :]
        outputs.append((state * C[:, None, :]).sum(-1) + mixer.Ds[own] * u)
    return torch.stack(outputs, dim=1)


def half_order(height: int, width: int) -> list[list[tuple[int, int]]]:
    """The pixels of the half branch in the order visited: three parts of one sequence."""
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    return [rows[::-1], columns, columns[::-1]]


def resize_matrix(small: int, size: int, mode: str) -> torch.Tensor:
    """How much of each of `small` lines is in each of `size` lines."""
    m = torch.zeros(size, small, dtype=torch.float64)
    for i in range(size):
        if mode == "nearest":
            m[i, i // 2] = 1
        else:
            source = max((i + 0.5) * small / size - 0.5, 0)
            low = int(source)
            m[i, low] += 1 - (source - low)
            m[i, min(low + 1, small - 1)] += source - low
    return m


def definition(mixer: MultiScaleSS2D, x: torch.Tensor, reset: bool = False) -> torch.Tensor:
    _, height, width, _ = x.shape
    x = x @ mixer.in_proj.weight.T
    x, z = x.chunk(2, dim=-1) if mixer.gate else (x, None)
    first = x.permute(0, 3, 1, 2)
    groups = mixer.d_inner
    full = F.silu(F.conv2d(first, mixer.conv.weight, mixer.conv.bias, padding=1, groups=groups))
    conv = mixer.conv_half
    half = F.silu(F.conv2d(first, conv.weight, conv.bias, stride=2, padding=3, groups=groups))
    small = (half.shape[2], half.shape[3])
    assert small == (-(-height // 2), -(-width // 2))

    def norm(y):
        return F.layer_norm(y, (groups,), mixer.out_norm.weight, mixer.out_norm.bias, 1e-5)

    each, merged = (norm, lambda y: y) if mixer.norm_before_merge else (lambda y: y, norm)
    full = each(scan(mixer, full.permute(0, 2, 3, 1).flatten(1, 2), 0)).unflatten(1, (height, width))

    parts = half_order(*small)
    tokens = [torch.stack([half[:, :, i, j] for i, j in part], dim=1) for part in parts]
    if reset:
        outputs = [each(scan(mixer, t, 1)) for t in tokens]
    else:
        outputs = each(scan(mixer, torch.cat(tokens, dim=1), 1)).split(small[0] * small[1], dim=1)
    pixels: dict = {}
    for part, output in zip(parts, outputs, strict=True):
        for pixel, y in zip(part, output.unbind(1), strict=True):
            pixels[pixel] = pixels.get(pixel, 0) + y
    half = torch.stack([pixels[i, j] for i in range(small[0]) for j in range(small[1])], dim=1).unflatten(1, small)
    vertical = resize_matrix(small[0], height, mixer.upsample_mode)
    horizontal = resize_matrix(small[1], width, mixer.upsample_mode)
    half = torch.einsum("ih,jw,bhwd->bijd", vertical, horizontal, half)

    y = merged(full + half)
    squeezed = y.mean((1, 2)) @ mixer.se.fc1.weight[:, :, 0, 0].T
    y = y * torch.sigmoid(squeezed.relu() @ mixer.se.fc2.weight[:, :, 0, 0].T)[:, None, None]
    return (y if z is None else y * F.silu(z)) @ mixer.out_proj.weight.T


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_definition(options, size):
    mixer, x = randomised(**options), image(size).requires_grad_()
    got, want = mixer(x), definition(mixer, x)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-10)
    inputs = dict(mixer.named_parameters(), x=x)
    g = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = [torch.autograd.grad(y, list(inputs.values()), g) for y in (got, want)]
    for name, a, b in zip(inputs, *gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9), name


@pytest.mark.parametrize("options", [FIRST, SECOND], ids=["first", "second"])
@torch.no_grad()
def test_the_state_runs_on_between_the_three_directions(options):
    mixer, x = randomised(**options), image((6, 5))
    got = mixer(x)
    assert torch.allclose(got, definition(mixer, x), rtol=1e-9, atol=1e-10)
    assert (got - definition(mixer, x, reset=True)).abs().max() > 1e-3 * got.abs().max()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_float32_and_autocast(options):
    mixer, x = randomised(**options), image((9, 6))
    exact = mixer(x)
    mixer.float()
    assert torch.allclose(mixer(x.float()).double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mixer(x.float())
    assert low.dtype == torch.bfloat16 and (low.double() - exact).abs().max() < 0.05 * exact.abs().max()


def test_initial_parameters():
    torch.manual_seed(0)
    mixer = MultiScaleSS2D(64)
    for conv in (mixer.se.fc1, mixer.se.fc2):
        assert 0.015 < conv.weight.std() < 0.025 and conv.bias is None
    assert (mixer.A_logs == 0).all() and (mixer.Ds == 1).all()
    step = F.softplus(mixer.dt_projs_bias)
    assert step.min() > 0.9e-3 and step.max() < 0.11
    assert mixer.x_proj.weight.abs().max() <= 128**-0.5 and mixer.dt_projs_weight.abs().max() <= 4**-0.5
    assert mixer.conv_half.weight.abs().max() <= 1 / 7 < 1.05 * mixer.conv_half.weight.abs().max()


def test_two_sequences_four_directions():
    sequences = decode_routes(encode_routes(MULTISCALE))
    assert [len(routes) for routes in sequences] == [1, 3]
    assert set().union(*sequences) == set(CROSS)


def test_unknown_upsampling():
    with pytest.raises(ValueError, match="upsample_mode must be bilinear or nearest, got 'bicubic'"):
        MultiScaleSS2D(16, upsample_mode="bicubic")
