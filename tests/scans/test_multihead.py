"""The multi-head scan: its walks, its gate, and the first encoder layer of the official network."""

import math
import re
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests import parity
from vssm.layers import PatchMerging, PatchStem
from vssm.scans import DIAGONAL, RASTER, SNAKE, SPIRAL, MultiHeadSS2D, route_order
from vssm.scans.multihead import scan_route_attention
from vssm_kernels import Route, encode_routes, reference, selective_scan_2d

OFFICIAL = parity.load("mhsvm")
HEADS = dict(C=SNAKE, X=DIAGONAL, S=SPIRAL, Z=RASTER)


@pytest.mark.parametrize("grid", OFFICIAL["routes"], ids=lambda g: f"{g['h']}x{g['w']}")
def test_routes_of_the_official_generator(grid):
    routes = [route for head in HEADS.values() for route in head]
    for route, expected in zip(routes, grid["routes"], strict=True):
        order = route_order(route, grid["h"], grid["w"])
        assert order[:16].tolist() == expected["head"], expected["name"]
        for indices, key in ((order, "crc32_tindex"), (order.argsort(), "crc32_pindex")):
            assert zlib.crc32(indices.numpy().astype("<i8").tobytes()) == expected[key], (expected["name"], key)


@pytest.mark.parametrize("route", [*SNAKE, *DIAGONAL, *SPIRAL, Route(path="spiral", stride=(2, 1), offset=(1, 0))])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 1), (4, 3), (5, 6)])
def test_scan_along_any_walk(route, reverse, size):
    """Against the 1-D reference on a sequence read with plain indexing, put back the same way."""
    g = torch.Generator().manual_seed(0)
    route = route._replace(reverse=reverse)
    order = route_order(route, *size)
    shape = (2, *size)
    u, dt, B, C = (torch.randn(*shape, n, generator=g, dtype=torch.float64) for n in (3, 3, 2, 2))
    A = -torch.rand(3, 2, generator=g, dtype=torch.float64)
    one = [x.unsqueeze(3) for x in (dt, B, C)]
    got = selective_scan_2d(u, one[0], A[None], one[1], one[2], routes=(route,))
    if not len(order):  # a stride that leaves no pixel
        assert (got == 0).all()
        return
    along = [x.flatten(1, 2)[:, order].transpose(1, 2) for x in (u, dt, B, C)]
    y, _ = reference.selective_scan_fwd(along[0], along[1], A, along[2][:, None], along[3][:, None], None, None, True)
    want = torch.zeros(2, math.prod(size), 3, dtype=torch.float64)
    want[:, order] = y.transpose(1, 2)
    assert torch.allclose(got, want.unflatten(1, size), rtol=1e-10, atol=1e-12)


def test_walks_survive_encoding():
    assert len(encode_routes((*DIAGONAL, *SPIRAL))) == 4 * len(encode_routes((Route(),)))
    with pytest.raises(
        ValueError, match="path of a route must be one of raster, snake, diagonal, spiral, got 'zigzag'"
    ):
        encode_routes((Route(path="zigzag"),))


def test_gate_between_its_bounds():
    y = torch.randn(5, 7, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gate = scan_route_attention(y, 0.0) / y.sum(-2)
    assert gate.min() > 2 / 3 - 1e-4 and gate.max() < 2
    shifted = scan_route_attention(y, 0.5)
    assert torch.allclose(shifted, y.sum(-2) * (gate - 0.5))
    assert torch.autograd.gradcheck(lambda v: scan_route_attention(v, 0.4), y[:1, :2].clone().requires_grad_())


def test_gate_of_walks_that_agree_is_closed():
    y = torch.ones(2, 4, 3, requires_grad=True)
    out = scan_route_attention(y, 0.0)
    out.sum().backward()
    assert (out == 0).all() and y.grad.isfinite().all()


@pytest.mark.parametrize("size", [(5, 4), (1, 1)])
def test_mixer_against_heads_one_by_one(size):
    torch.manual_seed(0)
    mixer = MultiHeadSS2D(13, heads=(SNAKE, SPIRAL, RASTER), d_state=3, threshold=0.1).double()
    torch.nn.init.normal_(mixer.A_logs)
    x = torch.randn(2, *size, 13, dtype=torch.float64)
    u, z = mixer.in_proj(x).chunk(2, -1)
    u = F.silu(mixer.conv(u.permute(0, 3, 1, 2))).flatten(2)  # (B, C, L)
    heads = []
    for h, pair in enumerate((SNAKE, SPIRAL, RASTER)):
        s = torch.einsum("sc,bcl->bsl", mixer.head_proj.weight[4 * h : 4 * h + 4], u)
        walks = []
        for k in range(4):
            order = route_order(pair[k // 2], *size)
            order = order.flip(0) if k % 2 else order
            i = 4 * h + k
            dt, B, C = torch.einsum("ps,bsl->bpl", mixer.x_proj_weight[i], s[:, :, order]).split([1, 3, 3], 1)
            A = -mixer.A_logs[4 * i : 4 * i + 4].exp()
            D, bias = mixer.Ds[4 * i : 4 * i + 4], mixer.dt_projs_bias[i]
            delta = mixer.dt_projs_weight[i] @ dt
            y, _ = reference.selective_scan_fwd(s[:, :, order], delta, A, B[:, None], C[:, None], D, bias, True)
            walks.append(y[:, :, order.argsort()])
        heads.append(scan_route_attention(torch.stack(walks).permute(1, 3, 0, 2), 0.1))
    y = mixer.merge_proj(mixer.merge_norm(torch.cat(heads, -1))).unflatten(1, size)
    want = mixer.out_norm(y) * F.silu(z)
    assert torch.allclose(mixer(x), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", OFFICIAL["variants"])
@torch.no_grad()
def test_first_encoder_layer_of_the_official_network(name):
    """Patch embedding, two blocks x + mixer(norm(x)) and patch merging: the first two recorded maps."""
    record = OFFICIAL["variants"][name]
    # Of the tensors that the official module holds twice, these are the ones in use.
    weights = {
        re.sub(r"\.scanning\.seq2seq_engine\.", ".mambaeng.", k): v
        for k, v in parity.state_dict(record).items()
        if ".mambaeng." not in k and not k.endswith("x_ssproj_W")
    }
    letters = "CXSZ" if "4head" in name else "CXS"
    stem = PatchStem(3, 96)
    stem.load_state_dict({k: weights[f"vmunet.patch_embed.{o}"] for k, o in _names("conv:proj norm:norm")})
    down = PatchMerging(96, 192)
    down.load_state_dict(
        {k: weights[f"vmunet.layers.0.downsample.{k}"] for k in ("norm.weight", "norm.bias", "reduction.weight")}
    )
    threshold = float(name.rsplit("_t", 1)[1])
    blocks = []
    for b in range(2):
        prefix = f"vmunet.layers.0.blocks.{b}"
        norm, mixer = torch.nn.LayerNorm(96), MultiHeadSS2D(96, [HEADS[k] for k in letters], threshold=threshold)
        norm.load_state_dict({k: weights[f"{prefix}.ln_1.{k}"] for k in ("weight", "bias")})
        own = {k: weights[f"{prefix}.self_attention.{o}"] for k, o in _names("conv:conv2d out_norm:out_norm")}
        own["in_proj.weight"] = weights[f"{prefix}.self_attention.in_proj.weight"]
        own["head_proj.weight"] = weights[f"{prefix}.self_attention.mhs.x_ssproj.weight"]
        own["merge_proj.weight"] = weights[f"{prefix}.self_attention.mhs.y_proj.weight"]
        own |= {f"merge_norm.{k}": weights[f"{prefix}.self_attention.mhs.cat_norm.{k}"] for k in ("weight", "bias")}
        for k in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
            parts = [weights[f"{prefix}.self_attention.mhs.scanhead_{c}.mambaeng.{k}"] for c in letters]
            own[k] = torch.cat(parts)
        mixer.load_state_dict(own)
        blocks.append((norm, mixer))
    for case in record["cases"]:
        x = parity.image(case)
        x = stem(x.expand(-1, 3, -1, -1))
        parity.check_summary(x.permute(0, 3, 1, 2), case["features"][0], 1e-5, "patch embedding")
        for norm, mixer in blocks:
            x = x + mixer(norm(x))
        parity.check_summary(down(x).permute(0, 3, 1, 2), case["features"][1], 1e-4, "first layer")


def _names(pairs: str):
    for pair in pairs.split():
        ours, theirs = pair.split(":")
        for leaf in ("weight", "bias"):
            yield f"{ours}.{leaf}", f"{theirs}.{leaf}"


def test_every_parameter_gets_a_gradient_under_autocast():
    torch.manual_seed(0)
    mixer = MultiHeadSS2D(16, d_state=2)
    for linear in (mixer.in_proj, mixer.head_proj, mixer.merge_proj):  # the initial values are small, bfloat16 coarse
        torch.nn.init.normal_(linear.weight, std=0.25)
    x = torch.randn(2, 5, 3, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())
    assert x.grad.abs().sum() > 0
    want = mixer(x)
    assert (y - want).norm() < 0.05 * want.norm()


def test_scripts_and_traces():
    torch.manual_seed(0)
    mixer, x = MultiHeadSS2D(16, d_state=2).eval(), torch.randn(1, 4, 6, 16)
    assert torch.allclose(torch.jit.script(mixer)(x), mixer(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.fx.symbolic_trace(mixer)(x), mixer(x))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dim=3), "3 channels are too few for 4 heads"),
        (dict(dim=16, heads=(SNAKE, RASTER[:1])), r"every head needs as many routes, got \[2, 1\]"),
        (dict(dim=16, heads=()), r"every head needs as many routes, got \[\]"),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadSS2D(**kwargs)


def test_initial_steps():
    step = F.softplus(MultiHeadSS2D(32).dt_projs_bias)
    assert step.min() > 0.9e-3 and step.max() < 0.11
    assert np.isclose(MultiHeadSS2D(32).A_logs[5].exp().tolist(), range(1, 17)).all()
