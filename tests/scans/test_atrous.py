"""The atrous scan against loops over pixels written from its table of routes."""

import pytest
import torch
import torch.nn.functional as F

from vssm.scans import ATROUS, AtrousSS2D
from vssm.scans.routes import encode_routes, route_order

SIZES = [(4, 6), (5, 4), (4, 5), (7, 5), (1, 1), (1, 6), (3, 1), (2, 2)]


def pixels(k: int, height: int, width: int) -> list[tuple[int, int]]:
    """The pixels of route k over the padded map.

    Even rows of even columns, odd of even, even of odd, odd of odd; 0 and 2 go row by row, 1 and 3 column by column.
    """
    rows = range(k % 2, height + height % 2, 2)
    columns = range(k // 2, width + width % 2, 2)
    if k in (0, 2):
        return [(i, j) for i in rows for j in columns]
    return [(i, j) for j in columns for i in rows]


def scan(mixer: AtrousSS2D, u: torch.Tensor) -> torch.Tensor:
    """(B, H, W, D) one pixel and one recurrence step at a time."""
    batch, height, width, inner = u.shape
    states, rank = mixer.d_state, mixer.dt_rank
    weights = mixer.x_proj.weight.unflatten(0, (4, rank + 2 * states))
    out = {}
    for k in range(4):
        own = slice(k * inner, (k + 1) * inner)
        A, D = -mixer.A_logs[own].exp(), mixer.Ds[own]
        h = u.new_zeros(batch, inner, states)
        for i, j in pixels(k, height, width):
            inside = i < height and j < width
            x = u[:, i, j] if inside else u.new_zeros(batch, inner)  # zeros after the convolution and its activation
            p = x @ weights[k].T
            dt, B, C = p[:, :rank], p[:, rank : rank + states], p[:, rank + states :]
            delta = F.softplus(dt @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])
            h = torch.exp(delta[..., None] * A) * h + delta[..., None] * B[:, None] * x[..., None]
            if inside:
                out[i, j] = (h * C[:, None]).sum(-1) + D * x
    return torch.stack([torch.stack([out[i, j] for j in range(width)], 1) for i in range(height)], 1)


def whole(mixer: AtrousSS2D, x: torch.Tensor) -> torch.Tensor:
    """The mixer, its scan by loops: two halves of the input projection, the second one a gate."""
    inner = mixer.d_inner
    u, z = (x @ mixer.in_proj.weight.T).split(inner, dim=-1)
    u = F.conv2d(u.permute(0, 3, 1, 2), mixer.conv.weight, mixer.conv.bias, padding=1, groups=inner)
    y = scan(mixer, F.silu(u).permute(0, 2, 3, 1))
    y = F.layer_norm(y, (inner,), mixer.out_norm.weight, mixer.out_norm.bias, 1e-5)
    return (y * F.silu(z)) @ mixer.out_proj.weight.T


def randomised(**options) -> AtrousSS2D:
    """Every parameter random, in float64: the usual start (D = 1, equal A) would hide a mix-up."""
    g = torch.Generator().manual_seed(0)
    mixer = AtrousSS2D(**{**dict(dim=6, d_state=3, dt_rank=2), **options}).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return mixer


def image(height: int, width: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(2, height, width, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_routes_are_the_table(size):
    height, width = size
    padded = (height + height % 2, width + width % 2)
    for k, route in enumerate(ATROUS):
        assert route_order(route, *padded).tolist() == [i * padded[1] + j for i, j in pixels(k, height, width)]
    visited = torch.cat([route_order(route, *padded) for route in ATROUS])
    assert sorted(visited.tolist()) == list(range(padded[0] * padded[1]))


@pytest.mark.parametrize("size", SIZES)
def test_mixer_and_gradients(size):
    mixer, x = randomised(), image(*size)
    weight = image(*size).flip(0)
    results = []
    for f in (mixer, lambda x: whole(mixer, x)):
        mixer.zero_grad()
        x_ = x.clone().requires_grad_()
        y = f(x_)
        (y * weight).sum().backward()
        results.append([y.detach(), x_.grad, *(p.grad.clone() for p in mixer.parameters())])
    names = ["output", "input", *(n for n, _ in mixer.named_parameters())]
    for name, got, want in zip(names, *results, strict=True):
        assert torch.allclose(got, want, rtol=1e-8, atol=1e-9), name


@pytest.mark.parametrize("size", [(3, 2), (1, 1), (3, 5)])
def test_gradcheck(size):
    mixer = randomised(dim=2, d_state=2, dt_rank=1, ssm_ratio=1.0)
    assert torch.autograd.gradcheck(mixer, image(*size, dim=2).requires_grad_())


@torch.no_grad()
def test_same_as_the_strided_routes():
    """The mixer cuts the map into phases; the op walks the routes over the whole map. ATROUS describes both."""
    mixer, u = randomised(), image(8, 6, 12)
    dt, B, C = (u @ mixer.x_proj.weight.T).unflatten(-1, (4, -1)).split([2, 3, 3], dim=-1)
    A, D = -mixer.A_logs.exp().unflatten(0, (4, 12)), mixer.Ds.unflatten(0, (4, 12))
    want = torch.ops.vssm.selective_scan_2d(
        u, dt, A, B, C, D, mixer.dt_projs_bias, mixer.dt_projs_weight, encode_routes(ATROUS), True, True, None, "torch"
    )
    assert torch.allclose(mixer.mix(u), want, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_padding_decays_the_state():
    """Cutting off a column is not the same as never having padded: the state decays between two rows of route 2."""
    mixer, x = randomised(), image(4, 5)
    u = F.silu(x @ torch.eye(6, 12, dtype=torch.float64))
    padded = F.pad(u, (0, 0, 0, 1))
    assert torch.allclose(mixer.mix(u), mixer.mix(padded)[:, :, :5], rtol=1e-12)
    without = mixer.mix(u[:, :, :4])[:, :, 3]  # the same pixels of routes 2 and 3, without the column behind them
    got = mixer.mix(u)[:, :, 3]
    assert not torch.allclose(got[:, 2], without[:, 2], rtol=1e-3)


@torch.no_grad()
def test_export_follows_the_size():
    """One exported program for every even size; the crop of odd ones puts a guard on the parity."""
    mixer = randomised().eval()
    dynamic = {"x": dict.fromkeys(range(3), torch.export.Dim.AUTO)}
    program = torch.export.export(mixer, (image(4, 6),), dynamic_shapes=dynamic).module()
    x = image(10, 8)[:1]
    assert torch.allclose(program(x), mixer(x), rtol=1e-9, atol=1e-10)


def test_defaults():
    mixer = AtrousSS2D(32, device="meta")
    assert (mixer.d_inner, mixer.d_state, mixer.dt_rank, mixer.gate) == (64, 16, 2, True)
    assert mixer.conv.bias is not None and mixer.x_proj.weight.shape == (4 * 34, 64)


def test_scan_reads_halves_and_gives_float32_under_autocast():
    torch.manual_seed(0)
    mixer, x = AtrousSS2D(16), torch.randn(1, 7, 6, 16)
    seen = []
    op = torch.ops.vssm.selective_scan_2d

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            if func is op.default:
                seen.append((args[0].dtype, args[2].dtype, y.dtype))
            return y

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Spy():
        y = mixer(x)
    assert seen == [(torch.bfloat16, torch.float32, torch.float32)] and y.dtype == torch.bfloat16
