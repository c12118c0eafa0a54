"""The grouped mixer against four separate scans, one direction each, written plainly."""

import pytest
import torch
import torch.nn.functional as F

from vssm.scans import CROSS, UNIDIRECTIONAL, GroupedSS2D
from vssm_kernels import Route, encode_routes


def randomised(**options) -> GroupedSS2D:
    """Groups of 7 channels, every parameter random, in float64: the usual start would hide a mix-up."""
    g = torch.Generator().manual_seed(0)
    mixer = GroupedSS2D(28, reduction=7, **options).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return mixer


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, height, width, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pixels(k: int, height: int, width: int) -> list[tuple[int, int]]:
    """The order in which group k reads the map."""
    rows = [(h, w) for h in range(height) for w in range(width)]
    columns = [(h, w) for w in range(width) for h in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]][k]


def one_group(mixer: GroupedSS2D, n: torch.Tensor, k: int) -> torch.Tensor:
    """Group k of the normalised map, (B, H, W, D), through its own gated scan."""
    _, height, width, dim = n.shape
    own = slice(k * dim, (k + 1) * dim)
    R, N = mixer.dt_rank, mixer.d_state
    u, z = (n @ mixer.in_proj_weight[k].T).chunk(2, dim=-1)
    conv = F.conv2d(u.permute(0, 3, 1, 2), mixer.conv.weight[own], mixer.conv.bias[own], padding=1, groups=dim)
    u = F.silu(conv).permute(0, 2, 3, 1)
    A = -mixer.A_logs[own].exp()
    state, out = 0, {}
    for h, w in pixels(k, height, width):
        x = u[:, h, w]
        dt, B, C = (x @ mixer.x_proj_weight[k].T).split([R, N, N], dim=-1)
        step = F.softplus(dt @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])[:, :, None]
        state = (step * A).exp() * state + step * B[:, None] * x[:, :, None]
        out[h, w] = (state * C[:, None]).sum(-1) + mixer.Ds[own] * x
    y = torch.stack([torch.stack([out[h, w] for w in range(width)], dim=1) for h in range(height)], dim=1)
    y = F.layer_norm(y, (dim,), mixer.out_norm.weight[own], mixer.out_norm.bias[own])
    return (y * F.silu(z)) @ mixer.out_proj_weight[k].T


def reference(mixer: GroupedSS2D, x: torch.Tensor) -> torch.Tensor:
    norm = mixer.norm
    n = F.layer_norm(x, (28,), norm.weight, norm.bias, 1e-5)
    m = torch.cat([one_group(mixer, part, k) for k, part in enumerate(n.chunk(4, dim=-1))], dim=-1)
    squeezed = F.relu(mixer.gate.fc1(n.flatten(1, 2).mean(1)))
    g = torch.sigmoid(mixer.gate.fc2(squeezed))[:, None, None]
    y = m * mixer.skip_scale * n * g
    return mixer.proj(F.layer_norm(y, (28,), norm.weight, norm.bias, 1e-5))


@pytest.mark.parametrize("size", [(5, 4), (3, 6), (1, 7), (1, 1)])
@pytest.mark.parametrize("options", [{}, dict(d_state=3, dt_rank=2)], ids=["usual", "3-states"])
def test_output_and_gradients(size, options):
    mixer = randomised(**options)
    results = []
    for f in (mixer, lambda x: reference(mixer, x)):
        x = image(*size).requires_grad_()
        y = f(x)
        grads = torch.autograd.grad((y * image(*size).flip(-1)).sum(), [x, *mixer.parameters()], materialize_grads=True)
        results.append([y, *grads])
    for name, got, want in zip(["output", "x", *dict(mixer.named_parameters())], *results, strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-9), name


def test_one_pixel_ignores_the_state_matrix():
    mixer = randomised()
    mixer(image(1, 1)).sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())
    assert (mixer.A_logs.grad == 0).all()


@torch.no_grad()
def test_routes_are_data():
    """Other routes, other results; as many groups as routes."""
    x = image(4, 5)
    assert not torch.allclose(randomised()(x), randomised(routes=UNIDIRECTIONAL)(x))
    two = randomised(routes=(Route(), Route(reverse=True)))
    assert two.in_proj_weight.shape == (2, 28, 14) and two(x).shape == x.shape


def test_width_is_checked():
    with pytest.raises(ValueError, match="a multiple of the 4 routes and at least 16, the channel reduction; got 30"):
        GroupedSS2D(30)
    with pytest.raises(ValueError, match="at least 16, the channel reduction; got 12"):
        GroupedSS2D(12)


def test_initial_parameters():
    torch.manual_seed(0)
    mixer = GroupedSS2D(128, d_state=2)
    assert torch.allclose(mixer.A_logs[7].exp(), torch.tensor([1.0, 2.0])) and (mixer.Ds == 1).all()
    step = F.softplus(mixer.dt_projs_bias)
    assert step.min() > 0.9e-3 and step.max() < 0.11
    assert mixer.x_proj_weight.abs().max() <= 32**-0.5 and mixer.dt_projs_weight.abs().max() <= 2**-0.5
    assert abs(mixer.in_proj_weight.std() - 0.02) < 1e-3 and abs(mixer.out_proj_weight.std() - 0.02) < 1e-3
    assert mixer.skip_scale.item() == 1 and mixer.dt_rank == 2
    assert mixer.route_code == encode_routes(CROSS)


@torch.no_grad()
def test_scan_reads_halves_and_gives_float32_under_autocast():
    torch.manual_seed(0)
    mixer, x, seen = GroupedSS2D(32), torch.randn(1, 7, 6, 32), []
    op = torch.ops.vssm.selective_scan_2d

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            if func is op.default:
                seen.append((args[0].dtype, args[2].dtype, y.dtype))
            return y

    exact = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), Spy():
        y = mixer(x)
    assert seen == [(torch.bfloat16, torch.float32, torch.float32)] and y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), exact, rtol=0.1, atol=0.05)
