"""The unrolled scans: exact for every mixer, and drawn for every family."""

import math

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from vssm._errors import UserError
from vssm.engine import create_model
from vssm.models import families
from vssm.scans import (
    SNAKE,
    SPIRAL,
    SS2D,
    SSD2D,
    AtrousSS2D,
    AttentionFusionSS2D,
    CascadeSS2D,
    ContinuousSS2D,
    GroupedSS2D,
    HiddenStateMixer,
    LinearScan,
    LocalAttentionSS2D,
    MultiHeadSS2D,
    MultiScaleSS2D,
    NonCausalSSD2D,
    SpatialFusionSS2D,
)
from vssm.viz import (
    attention_maps,
    attention_rollout,
    freeze_scans,
    plot_attention,
    record_scans,
    scan_weights,
)
from vssm.viz.attention import choose_scans, look_from
from vssm_kernels import Route, route_order

H, W, DIM = 5, 4, 16
MIXERS = {
    "cross": lambda: SS2D(DIM, d_state=3),
    "cross, gated": lambda: SS2D(DIM, ssm_ratio=1.0, gate=True),
    "atrous": lambda: AtrousSS2D(DIM, d_state=2),
    "multi-scale": lambda: MultiScaleSS2D(DIM),
    "multi-scale, nearest": lambda: MultiScaleSS2D(DIM, norm_before_merge=False, upsample_mode="nearest"),
    "multi-head": lambda: MultiHeadSS2D(DIM, d_state=2),
    "grouped": lambda: GroupedSS2D(DIM),
    "dual": lambda: SSD2D(DIM, d_state=4, dt_rank=4),
    "dual, spirals": lambda: SSD2D(DIM, d_state=4, dt_rank=4, routes=SPIRAL),
    "non-causal": lambda: NonCausalSSD2D(DIM, 4, d_state=5),
    "hidden state": lambda: HiddenStateMixer(DIM, d_state=3),
    "spatial fusion": lambda: SpatialFusionSS2D(DIM),
    "continuous": lambda: ContinuousSS2D(DIM, d_state=3),
    "cross, after windows": lambda: LocalAttentionSS2D(DIM, 2, 3),
    "all pixels": lambda: LocalAttentionSS2D(DIM, 2, 3, pixels=9),
    "attention fusion": lambda: AttentionFusionSS2D(DIM, 4, 3),
    "attention fusion, all pixels": lambda: AttentionFusionSS2D(DIM, 4, 3, pixels=9),
    "cascade": lambda: CascadeSS2D(DIM, d_state=2),
}


def build(kind):
    torch.manual_seed(0)
    mixer = MIXERS[kind]().double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():  # away from the symmetric start: D, biases, fusion kernels
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer, torch.randn(1, H, W, DIM, dtype=torch.float64)


class Calls(TorchDispatchMode):
    """Keeps the arguments, by name, of every 2-D scan that runs in it."""

    def __init__(self):
        super().__init__()
        self.arguments = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.vssm.selective_scan_2d.default:
            expected = func._schema.arguments
            given = {argument.name: value for argument, value in zip(expected, args, strict=False)}
            defaults = {argument.name: argument.default_value for argument in expected if argument.has_default_value()}
            self.arguments.append(defaults | given | (kwargs or {}))
        return func(*args, **(kwargs or {}))


def scans_of(mixer, x):
    """The arguments of the operator in a mixer's own forward, which `linear_scans` has no part in."""
    with torch.no_grad(), Calls() as calls:
        mixer(x)
    return calls.arguments


def without_skip(call):
    """The result of an operator in a mixer's own forward, for each route, without its skip D u."""
    return torch.ops.vssm.selective_scan_2d(**call | dict(D=None, merge=False, out_dtype=None))


@pytest.mark.parametrize("kind", MIXERS)
def test_the_weights_give_the_scans_result(kind):
    """Sum over positions s of W_ts u_s = y_t, for each route, channel and position t."""
    mixer, x = build(kind)
    for scan in freeze_scans(mixer, x):
        with torch.no_grad():
            result = scan.apply(scan.source)  # (1, H, W, R, D)
        positions = torch.arange(H * W)
        for route in range(len(scan.routes)):
            weights = scan_weights(scan, positions, route)  # (L, h, w, D)
            u = scan.source
            if u.dim() == 5:
                u = u[:, :, :, route]  # one route a sequence
            total = (weights * u).sum((1, 2))
            torch.testing.assert_close(total, result[0, :, :, route].flatten(0, 1), rtol=1e-9, atol=1e-11)
        every = scan_weights(scan, positions)
        apart = sum(scan_weights(scan, positions, route) for route in range(len(scan.routes)))
        torch.testing.assert_close(every, apart, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("kind", MIXERS)
def test_the_frozen_scan_is_what_the_mixer_computes(kind):
    """The result that the weights add up to is the module's own, taken from its forward."""
    mixer, x = build(kind)
    scans = freeze_scans(mixer, x)
    y = scans[0].apply(scans[0].source)[0]
    calls = scans_of(mixer, x)
    if kind.startswith("cross") or kind in ("multi-head", "grouped", "continuous"):
        expected = without_skip(calls[0])[0]
    elif kind == "atrous":
        expected = without_skip(calls[0])[0, :H, :W].sum(2, keepdim=True)  # of the padded map
    elif kind.startswith("multi-scale"):
        expected = without_skip(calls[0])[0]
        half = without_skip(calls[1]).sum(3)
        half = torch.nn.functional.interpolate(half.permute(0, 3, 1, 2), size=(H, W), mode=mixer.upsample_mode)
        torch.testing.assert_close(
            scans[1].apply(scans[1].source)[0].sum(2), half[0].permute(1, 2, 0), rtol=1e-9, atol=1e-11
        )
    elif kind.startswith("dual"):
        merged = []
        mixer.out_norm.register_forward_pre_hook(lambda _, inputs: merged.append(inputs[0]))
        mixer(x)
        skip = (mixer.Ds.sum(0)[:, None] if mixer.Ds.dim() == 2 else mixer.Ds.sum(0)).expand(-1, mixer.head_dim)
        expected, y = merged[0][0] - skip.flatten() * scans[0].source[0], y.sum(2)
    elif kind == "non-causal":
        normed = []
        mixer.D.zero_()
        original = torch.nn.functional.layer_norm
        torch.nn.functional.layer_norm = lambda y, *rest: normed.append(y) or original(y, *rest)
        try:
            mixer(x)
        finally:
            torch.nn.functional.layer_norm = original
        expected = normed[0][0].unsqueeze(2)
    elif kind == "hidden state":
        given, taken = mixer.positions(x)
        states = torch.einsum("bln,blc->bnc", given, x.flatten(1, 2))
        mixed, _ = mixer(x)
        h, z = mixer.hz_proj(states).chunk(2, dim=-1)
        h = mixer.out_proj(h * (torch.nn.functional.silu(z) + mixer.D))
        torch.testing.assert_close(mixed.flatten(1, 2), taken @ h)  # these are the forward's own weights
        expected = torch.einsum("bln,bnc->blc", taken, states).unflatten(1, (H, W))[0].unsqueeze(2)
    elif kind == "spatial fusion":
        u = scans[0].source
        expected = (mixer.mix(u) - mixer.Ds * u)[0].unsqueeze(2)
    elif kind == "all pixels":
        inputs = []
        mixer.proj.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        mixer(x)
        expected = (inputs[0] - mixer.project(x)[3])[0].unsqueeze(2)
    elif kind.startswith("attention fusion"):
        inputs = []
        mixer.norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        if mixer.ssm is not None:  # what is not linear in the states, and what mixes their channels
            torch.nn.init.eye_(mixer.ssm.fusion.weight)
            mixer.ssm.Ds.zero_()
            mixer.ssm.fusion.bias.zero_()
        mixer(x)
        expected = inputs[0][0].unsqueeze(2)
    else:  # cascade: with its skips and the mean that the norm subtracts, the frozen scan is the mixer's own
        mixer.Ds.zero_()
        scans = freeze_scans(mixer, x)
        rows, columns = scans_of(mixer, x)
        scanned = torch.ops.vssm.selective_scan_2d(**rows)[:, 0]
        shift = scanned.mean(-1, keepdim=True) / (scanned.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        u = shift.transpose(0, 1).expand(-1, -1, mixer.d_inner)  # (W, H, D)
        shift = columns["u"] * 0 + torch.stack([u, u.flip(1)], dim=2).unsqueeze(1)
        offset = torch.ops.vssm.selective_scan_2d(**columns | dict(u=shift))[:, 0].transpose(0, 1)
        u = torch.nn.functional.silu(mixer.conv(mixer.in_proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        expected = (mixer.mix(u)[0] + offset).unsqueeze(2)
        y = scans[0].apply(scans[0].source)[0]
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)


def test_the_weights_are_the_formula():
    """C_t exp(A sum of dt) dt_s B_s, written out along each route."""
    mixer, x = build("cross")
    (scan,) = freeze_scans(mixer, x)
    (call,) = scans_of(mixer, x)
    dt, A, B, C, bias, weight = (call[name] for name in ("dt", "A", "B", "C", "delta_bias", "dt_weight"))
    step = torch.nn.functional.softplus(torch.einsum("hwkr,kdr->hwkd", dt[0], weight) + bias).flatten(0, 1)
    B, C = B[0].flatten(0, 1), C[0].flatten(0, 1)
    query = 2 * W + 1
    routes = (Route(), Route(transpose=True), Route(reverse=True), Route(transpose=True, reverse=True))
    for k, route in enumerate(routes):
        order = route_order(route, H, W).tolist()
        place = order.index(query)
        expected = torch.zeros(H * W, mixer.d_inner, dtype=torch.float64)
        for at, source in enumerate(order[: place + 1]):
            decay = torch.exp(A[k] * step[order[at + 1 : place + 1], k].sum(0)[:, None])  # (D, N)
            expected[source] = (C[query, k] * decay * B[source, k]).sum(-1) * step[source, k]
        found = scan_weights(scan, torch.tensor([query]), k)[0].flatten(0, 1)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    attention = attention_maps(mixer, x, (2, 1))
    torch.testing.assert_close(attention.merged, sum(attention.routes.values()))
    assert list(attention.routes) == ["rows", "columns", "rows, backwards", "columns, backwards"]
    # A causal route sees nothing behind the pixel.
    assert attention.routes["rows"].flatten()[query + 1 :].abs().max() == 0
    assert attention.routes["rows"].flatten()[: query + 1].abs().min() > 0


@pytest.mark.parametrize("kind", MIXERS)
def test_merging_keeps_what_a_constant_input_gives(kind):
    """For an input of ones the merged map sums to the mean over channels of the merged result."""
    mixer, x = build(kind)
    attention = attention_maps(mixer, x, (3, 2))
    assert attention.merged.shape == (H, W)
    scans = freeze_scans(mixer, x)
    total = sum(scan.apply(torch.ones_like(scan.source))[0, 3, 2].sum() / scan.channels for scan in scans)
    assert math.isclose(attention.merged.sum().item(), total.item(), rel_tol=1e-9, abs_tol=1e-12)


def test_heads_walk_routes_of_the_same_name():
    mixer, x = build("multi-head")
    names = list(attention_maps(mixer, x, (0, 0)).routes)
    assert len(names) == 16 == len(set(names))
    assert names[:4] == ["snake", "snake, backwards", "snake, transposed", "snake, transposed, backwards"]
    torch.manual_seed(0)
    twice = MultiHeadSS2D(DIM, heads=(SNAKE, SNAKE)).double().eval()
    assert "snake (2)" in attention_maps(twice, x, (0, 0)).routes


def test_a_mixer_from_elsewhere():
    """Whatever has the method `linear_scans` has attention."""

    class RowMean(torch.nn.Module):
        def forward(self, x):
            return x.mean(2, keepdim=True).expand_as(x)

        def linear_scans(self, x):
            return [LinearScan(x, lambda u: self(u).unsqueeze(3), ("the row",), x.shape[-1])]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = RowMean()

        def forward_features(self, image):
            return self.mixer(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    ((name, (mixer, x)),) = record_scans(Network(), torch.randn(1, 3, H, W)).items()
    attention = attention_maps(mixer, x, (2, 1), name)
    assert name == "mixer" and list(attention.routes) == ["the row"]
    expected = torch.zeros(H, W)
    expected[2] = 1 / W
    torch.testing.assert_close(attention.merged, expected)


def test_rollout():
    mixer, x = build("cross")
    one = attention_rollout([(mixer, x)], (2, 1))
    row = attention_maps(mixer, x, (2, 1)).merged.abs()
    expected = 0.5 * row / row.sum()
    expected[2, 1] += 0.5
    torch.testing.assert_close(one, expected.float())
    two = attention_rollout([(mixer, x), (mixer, x)], (2, 1))
    assert math.isclose(two.sum().item(), 1, rel_tol=1e-5) and two.min() >= 0
    assert two[2, 1] < one[2, 1]
    with pytest.raises(UserError, match="all 8100 positions of the 90 x 90 map.*up to 6400"):
        attention_rollout([(mixer, torch.zeros(1, 90, 90, DIM))], (0, 0))


@pytest.mark.parametrize("name", [name for family in families() for name in family.variants if name.endswith("_pico")])
def test_every_family(name):
    model = create_model(name).eval()
    recorded = record_scans(model, torch.randn(1, 3, 128, 192))
    last = choose_scans(recorded, None)[-1]
    attention = look_from(recorded, last, (0.5, 0.99), rollout=True)
    height, width = attention.merged.shape
    assert attention.pixel == (height // 2, width - 1) and height * 3 == width * 2
    assert attention.merged.isfinite().all() and attention.merged.abs().max() > 0
    assert math.isclose(attention.rollout.sum().item(), 1, rel_tol=1e-4)


def test_patches_beside_a_class_token():
    """The weights of a patch on the map are the mixer's own on the sequence, the class token left out of it."""
    model = create_model("vim_pico").double().eval()
    (scans, _), *_ = record_scans(model, torch.randn(1, 3, 48, 64, dtype=torch.float64)).values()
    (scan,), (whole,) = freeze_scans(scans, None), scans.mixer.linear_scans(scans.x)
    for patch, place in ((5, 5), (6, 7)):  # the class token stands between them
        weights = scan_weights(scan, torch.tensor([patch]))[0].flatten(0, 1)
        expected = scan_weights(whole, torch.tensor([place]))[0, 0]
        torch.testing.assert_close(weights, torch.cat([expected[:6], expected[7:]]), rtol=1e-9, atol=1e-12)


def test_picture(tmp_path):
    model = create_model("msvmamba_pico").eval()
    recorded = record_scans(model, torch.randn(1, 3, 64, 64))
    names = choose_scans(recorded, None)
    attentions = [look_from(recorded, name, (0.2, 0.7), rollout=number > 0) for number, name in enumerate(names)]
    path = plot_attention(Image.new("RGB", (64, 64)), attentions, tmp_path / "deep" / "a.png", columns=4)
    with Image.open(path) as picture:
        assert picture.width > 800
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match="at least one"):
        plot_attention(Image.new("RGB", (64, 64)), [], path)


def test_mistakes():
    mixer, x = build("cross")
    with pytest.raises(UserError, match=r"row 5, column 0\) is outside of the map of 5 x 4"):
        attention_maps(mixer, x, (5, 0))
    with pytest.raises(TypeError, match="Linear is no scan"):
        freeze_scans(torch.nn.Linear(2, 2), x)
    with pytest.raises(UserError, match="ConvNeXt has no scan"):
        record_scans(create_model("test_convnext"), torch.zeros(1, 3, 32, 32))
    recorded = record_scans(create_model("vmamba_pico"), torch.zeros(1, 3, 32, 32))
    assert choose_scans(recorded, ["stages.1"]) == [[n for n in recorded if n.startswith("stages.1.")][-1]]
    with pytest.raises(UserError, match="no scan 'stages.9'.*there are stages.0"):
        choose_scans(recorded, ["stages.9"])
