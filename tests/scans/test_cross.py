"""The cross-scan mixers against their definitions, written out with the readable 1-D ops."""

import pytest
import torch
import torch.nn.functional as F

from vssm.scans import (
    BIDIRECTIONAL,
    CROSS,
    DIAGONAL,
    SNAKE,
    SPIRAL,
    SS2D,
    SSD2D,
    UNIDIRECTIONAL,
    CascadeSS2D,
    MultiHeadSS2D,
)
from vssm_kernels import Route, read_map, reference, route_order


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, in float64: the usual start (D = 1, equal A) would hide a mix-up."""
    g = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return module


def image(height=5, width=4, dim=16):
    return torch.randn(2, height, width, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scan_sequence(mixer: SS2D, x: torch.Tensor, k: int) -> torch.Tensor:
    """(Bt, L, D) through the projections and the scan of route k: (Bt, L, D)."""
    rows = mixer.dt_rank + 2 * mixer.d_state
    projected = x @ mixer.x_proj.weight[k * rows : (k + 1) * rows].T
    dt, B, C = projected.split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    delta = (dt @ mixer.dt_projs_weight[k].T).mT
    own = slice(k * mixer.d_inner, (k + 1) * mixer.d_inner)
    y, _ = reference.selective_scan_fwd(
        x.mT,
        delta,
        -mixer.A_logs[own].exp(),
        B.mT[:, None],
        C.mT[:, None],
        mixer.Ds[own],
        mixer.dt_projs_bias[k],
        delta_softplus=True,
    )
    return y.mT


def read(x: torch.Tensor, route: Route) -> torch.Tensor:
    """(Bt, H, W, D) to (Bt, L, D), by the numbers of the pixels."""
    return x.flatten(1, 2)[:, route_order(route, *x.shape[1:3])]


def write(y: torch.Tensor, route: Route, height: int, width: int) -> torch.Tensor:
    x = torch.empty_like(y)
    x[:, route_order(route, height, width)] = y
    return x.unflatten(1, (height, width))


def before_scan(mixer, x):
    x = mixer.in_proj(x)
    if getattr(mixer, "gate", False):
        x, z = x.chunk(2, dim=-1)
    else:
        z = None
    return mixer.act(mixer.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)), z


@pytest.mark.parametrize("routes", [CROSS, UNIDIRECTIONAL, BIDIRECTIONAL], ids=["cross", "one-directional", "both"])
@pytest.mark.parametrize(
    "options", [{}, dict(gate=True, d_state=3), dict(d_conv=0, ssm_ratio=1.0), dict(conv_bias=True)]
)
@torch.no_grad()
def test_ss2d(routes, options):
    mixer, x = randomised(SS2D(16, routes=routes, **options)), image()
    u, z = before_scan(mixer, x)
    y = 0
    for k, route in enumerate(routes):
        y = y + write(scan_sequence(mixer, read(u, route), k), route, 5, 4)
    y = mixer.out_norm(y)
    want = mixer.out_proj(y if z is None else y * mixer.act(z))
    assert torch.allclose(mixer(x), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [(5, 4), (1, 6), (3, 1)])
@torch.no_grad()
def test_cascade(size):
    """Rows then columns; the reversed half's result is added as it comes, reversed."""
    mixer, x = randomised(CascadeSS2D(16, d_state=2)), image(*size)
    u, _ = before_scan(mixer, x)

    def lines(x, first):  # along the third dimension, each line a sequence of its own
        x = F.layer_norm(x, (mixer.d_inner,))
        out = torch.empty_like(x)
        for i in range(x.shape[1]):
            line = x[:, i]
            out[:, i] = scan_sequence(mixer, line, first) + scan_sequence(mixer, line.flip(1), first + 1)
        return out

    y = lines(lines(u, 0).transpose(1, 2), 2).transpose(1, 2)
    assert torch.allclose(mixer(x), mixer.out_proj(mixer.out_norm(y)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("routes", [CROSS, (*SNAKE, *SPIRAL), DIAGONAL], ids=["cross", "snakes", "diagonals"])
@torch.no_grad()
def test_ssd2d(routes):
    mixer, x = randomised(SSD2D(16, d_state=3, dt_rank=4, chunk_size=8, routes=routes)), image()
    u, _ = before_scan(mixer, x)
    rows, y = 4 + 2 * 3, 0
    for k, route in enumerate(routes):
        sequence = read(u, route)
        dt, B, C = (sequence @ mixer.x_proj.weight[k * rows : (k + 1) * rows].T).split([4, 3, 3], dim=-1)
        heads = sequence.unflatten(-1, (4, 4))
        A, D, bias = -mixer.A_logs[k].exp(), mixer.Ds[k], mixer.dt_projs_bias[k]
        out = reference.ssd_fwd(heads, dt, A, B[:, :, None], C[:, :, None], D, bias, dt_softplus=True)
        y = y + write(out.flatten(2), route, 5, 4)
    assert torch.allclose(mixer(x), mixer.out_proj(mixer.out_norm(y)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mixer", [SS2D, CascadeSS2D, SSD2D, MultiHeadSS2D])
def test_an_empty_batch(mixer):
    """Gives an empty result, and every parameter a gradient of zeros."""
    mixer = mixer(16)
    x = torch.zeros(0, 5, 4, 16, requires_grad=True)
    y = mixer(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert all(p.grad.count_nonzero() == 0 for p in mixer.parameters())


def test_heads_must_divide():
    with pytest.raises(ValueError, match="inner width 16 is not divisible by 3 heads"):
        SSD2D(16, dt_rank=3)


def test_initial_parameters():
    torch.manual_seed(0)
    mixer = SS2D(64, d_state=4)
    assert torch.allclose(mixer.A_logs[7].exp(), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    step = F.softplus(mixer.dt_projs_bias)
    assert step.min() > 0.9e-3 and step.max() < 0.11 and (mixer.Ds == 1).all()
    assert mixer.x_proj.weight.abs().max() <= 128**-0.5 and mixer.dt_projs_weight.abs().max() <= 4**-0.5


def test_scan_reads_halves_and_gives_float32_under_autocast():
    torch.manual_seed(0)
    x = torch.randn(1, 7, 6, 32)
    kept, lowered = SS2D(32, scan_float32=True), SS2D(32)
    lowered.load_state_dict(kept.state_dict())
    seen = []
    op = torch.ops.vssm.selective_scan_2d

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            if func is op.default:
                seen.append((args[0].dtype, args[1].dtype, args[2].dtype, y.dtype))
            return y

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Spy():
        outputs = [kept(x), lowered(x)]
    assert seen == [(torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)] * 2
    assert all(y.dtype == torch.bfloat16 for y in outputs)


def test_route_pictures_of_strided_routes():
    pixels = torch.arange(12).view(1, 3, 4)
    route = Route(stride=(2, 2), offset=(0, 1), transpose=True, reverse=True)
    assert read_map(pixels, (route,)).tolist() == [[[11], [3], [9], [1]]]
