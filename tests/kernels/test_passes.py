"""Layers in one pass against the same layers in float64, with every instruction set that this processor has."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.test_cpu import every_variant, needs_library
from tests.scan_2d import CROSS, VOLUME_ROUTES, make_2d
from vssm_kernels import encode_routes, linear
from vssm_kernels.passes import (
    attention_pass,
    conv_pass,
    fusion_pass,
    norm_pass,
    run_act,
    run_excite,
    run_linear,
    scan_pass,
)

pytestmark = needs_library
SILU = nn.SiLU()
HALVES = (torch.bfloat16, torch.float16)


def on_every_variant(compute):
    return [compute() for _ in every_variant()]


def check(compute, want, tolerance, dtype):
    """Rounded once: within half a last place of the dtype, and what float32 sums are off by."""
    for got in on_every_variant(compute):
        assert got.dtype == dtype and got.shape == want.shape
        eps = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0
        assert ((got.double() - want).abs() <= eps * want.abs() + tolerance * max(1, want.abs().max().item())).all()


def rounded(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("channels", [1, 17, 48])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (9, 2)])
@pytest.mark.parametrize(
    "form",
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding=1, bias=False),
        dict(kernel_size=3, padding=1, stride=2),
        dict(kernel_size=7, padding=3, stride=2),
        dict(kernel_size=(1, 5), padding=(3, 2), dilation=(2, 1)),
    ],
)
def test_convolutions(dtype, channels, size, form):
    conv = nn.Conv2d(channels, channels, groups=channels, **form).to(dtype)
    x = rounded(2, *size, 2 * channels, dtype=dtype)[..., channels:]
    double = nn.Conv2d(channels, channels, groups=channels, **form).double()
    double.load_state_dict(conv.state_dict())
    plain = double(x.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    check(lambda: conv_pass(conv, x, SILU), F.silu(plain), 1e-6, dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_decides_the_dtype(dtype):
    conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), rounded(1, 4, 4, 8)
    with torch.autocast("cpu", dtype):
        assert conv_pass(conv, x, SILU).dtype == conv_pass(conv, x.to(dtype), SILU).dtype == dtype
    assert conv_pass(conv, x.to(dtype), SILU) is None  # which the layer refuses


@torch.no_grad()
@pytest.mark.filterwarnings("error:.*lru_cache")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (14, 9)])
def test_fusion_repeats_the_edge(dtype, size, monkeypatch):
    channels, dilations = 19, [1, 3, 5]
    h, other = rounded(2, *size, channels), rounded(2, *size, channels, dtype=dtype, seed=1)
    scale = rounded(2, *size, 3, dtype=dtype, seed=2)[..., 1]
    skip = rounded(channels, seed=3)
    weights = [rounded(channels, 1, 3, 3, seed=4 + d) for d in dilations]
    maps = h.double().permute(0, 3, 1, 2)
    want = sum(
        F.conv2d(F.pad(maps, [d] * 4, mode="replicate"), w.double(), dilation=d, groups=channels)
        for w, d in zip(weights, dilations, strict=True)
    ).permute(0, 2, 3, 1)
    want = scale.double().unsqueeze(-1) * want + skip.double() * other.double()

    def fused():
        return fusion_pass(h, weights, dilations, scale, skip, other, h.dtype)

    check(fused, want, 1e-6, torch.float32)
    # Compiled for inference it is an op, which runs in PyTorch where the library is not asked for.
    ops = []

    def backend(graph, inputs):
        ops.extend(node.target for node in graph.graph.nodes if "state_fusion" in str(node.target))
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    check(compiled, want, 1e-6, torch.float32)
    assert ops == [torch.ops.vssm.state_fusion]
    monkeypatch.setenv("VSSM_BACKEND", "torch")
    check(compiled, want, 1e-6, torch.float32)
    monkeypatch.undo()
    with torch.enable_grad():  # with gradients the layers run
        assert torch.compile(lambda: fused() is None, fullgraph=True, backend="eager")()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_of_compiled_models(dtype):
    h, other = rounded(2, 3, 5, 4), rounded(2, 3, 5, 4, dtype=dtype)
    offsets = [0, 0, -1, 2]
    inputs = (h, rounded(2, 4), offsets, rounded(2, 3, 5), rounded(4), other, dtype)
    torch.library.opcheck(torch.ops.vssm.state_fusion.default, inputs)
    with pytest.raises(ValueError, match="pairs of a row and a column, got 3"):
        torch.ops.vssm.state_fusion(h, rounded(2, 4), [0, 0, 1], *inputs[3:])
    with pytest.raises(ValueError, match="other"):
        torch.ops.vssm.state_fusion(*inputs[:5], other[:1], dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("channels", [1, 17, 80, 100])
@pytest.mark.parametrize("act", [None, nn.SiLU(), nn.GELU()])
def test_norms(dtype, channels, act):
    norm = nn.LayerNorm(channels)
    norm.weight.copy_(rounded(channels))
    norm.bias.copy_(rounded(channels, seed=1))
    # Far from zero, where the mean has to be taken off before squares are summed.
    x = rounded(2, 3, 5, channels, seed=2) + 30
    gate = rounded(2, 3, 5, 2 * channels, dtype=dtype, seed=3)[..., channels:]
    plain = F.layer_norm(x.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    check(lambda: norm_pass(norm, x, dtype), plain, 1e-5, dtype)
    opened = gate if act is None else act(gate)
    if isinstance(act, nn.SiLU):
        opened = F.silu(gate.double())
    check(lambda: norm_pass(norm, x, dtype, gate, act), plain * opened.double(), 1e-5, dtype)
    low = rounded(2, 3, 5, channels, dtype=dtype, seed=2)
    plain = F.layer_norm(low.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    check(lambda: norm_pass(norm, low, dtype), plain, 1e-5, dtype)


@torch.no_grad()
@pytest.mark.parametrize("memory", ["groups last", "groups first"])
def test_norms_of_groups(memory):
    groups, channels = 4, 19
    norm = nn.LayerNorm(groups * channels)
    norm.weight.copy_(rounded(groups * channels))
    x, gate = rounded(2, 3, 5, groups, channels, seed=2), rounded(2, 3, 5, groups, 2 * channels, seed=3)[..., channels:]
    if memory == "groups first":
        x, gate = (m.movedim(3, 0).contiguous().movedim(0, 3) for m in (x, gate))
    weight, bias = (p.double().view(groups, channels) for p in (norm.weight, norm.bias))
    want = (F.layer_norm(x.double(), (channels,)) * weight + bias) * F.silu(gate.double())
    check(lambda: norm_pass(norm, x, x.dtype, gate, nn.SiLU(), groups), want, 1e-5, torch.float32)


@torch.no_grad()
def test_nan_and_infinity_stay():
    conv, norm = nn.Conv2d(16, 16, 1, groups=16, bias=False), nn.LayerNorm(16)
    conv.weight.fill_(1)
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e-6, -6e-8, 65504.0, 0.0, 1.0] * 2)
    for dtype in HALVES:
        x, half = values.view(1, 1, 1, 16).to(dtype), conv.to(dtype)
        for got in on_every_variant(lambda half=half, x=x: conv_pass(half, x, SILU)):
            torch.testing.assert_close(got, F.silu(x.double()).to(dtype), equal_nan=True, rtol=0, atol=0)
        assert all(got.isnan().all() for got in on_every_variant(lambda x=x: norm_pass(norm, x.float(), torch.float32)))


def test_the_layers_run_where_something_looks_at_them():
    conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(1, 4, 4, 8)
    norm = nn.LayerNorm(8)

    def passes(x=x):
        taken = [conv_pass(conv, x, SILU) is not None, norm_pass(norm, x, torch.float32) is not None]
        assert taken[0] == taken[1]
        return taken[0]

    assert not passes()  # autograd
    with torch.no_grad():
        assert passes()
        assert not passes(x.double())
        assert not passes(x[:0])
        with FlopCounterMode(display=False):
            assert not passes()
        seen = []
        torch.func.vmap(lambda x: seen.append(passes(x)) or x)(x)
        assert seen == [False]
        hooks = [layer.register_forward_hook(lambda *args: None) for layer in (conv, norm)]
        assert not passes()
        for hook in hooks:
            hook.remove()
        for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8, padding_mode="circular", padding=1)):
            assert conv_pass(layer, x, SILU) is None
        assert conv_pass(conv, x, nn.GELU()) is None


@torch.no_grad()
def test_the_backend_that_was_asked_for(monkeypatch):
    conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(1, 4, 4, 8)
    monkeypatch.setenv("VSSM_BACKEND", "torch")
    assert conv_pass(conv, x, SILU) is None


LINEAR_ACTS = [None, nn.GELU(), nn.GELU(approximate="tanh"), SILU, nn.ReLU(), nn.Tanh()]


@pytest.fixture
def called(monkeypatch):
    """The layers that are called."""
    found, forward = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: found.append(self) or forward(self, x))
    return found


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2**60])
@pytest.mark.parametrize("act", LINEAR_ACTS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(size, act, bias, monkeypatch):
    """By oneDNN, and of products that are too small for it."""
    monkeypatch.setattr(linear, "_LARGE", size)
    monkeypatch.setattr(linear, "_is_amd", lambda: True)
    layer = nn.Linear(24, 40, bias=bias)
    double = nn.Linear(24, 40, bias=bias).double()
    double.load_state_dict(layer.state_dict())
    whole = rounded(2, 5, 7, 48)
    for x in (whole[..., 24:], whole[..., :24].transpose(1, 2), whole[0, 0, :, :24], whole[:, :0, :, :24]):
        want = double(x.double()) if act is None else act(double(x.double()))
        torch.testing.assert_close(run_linear(layer, x, act).double(), want, rtol=1e-5, atol=1e-6)
    assert run_linear(layer, whole[0, 0, 0, :24], act).shape == (40,)


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
def test_linear_layers_in_half(dtype, called):
    layer, x = nn.Linear(24, 40), rounded(3, 24)
    with torch.autocast("cpu", dtype):
        want = layer(x)
        called.clear()
        assert torch.equal(run_linear(layer, x), want) and torch.equal(run_linear(layer, x.to(dtype)), want)
        assert not called
        assert run_linear(layer.double(), x.double()).dtype == layer(x.double()).dtype == torch.float64
    with pytest.raises(RuntimeError):  # as the layer says it
        run_linear(layer.float(), x.to(dtype))


def test_linear_layers_are_called_where_something_looks_at_them(called, monkeypatch):
    monkeypatch.setattr(linear, "_LARGE", 1)
    monkeypatch.setattr(linear, "_is_amd", lambda: True)
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)

    def calls(layer=layer, x=x):
        called.clear()
        run_linear(layer, x, SILU)
        return bool(called)

    assert calls()  # autograd
    with torch.no_grad():
        assert not calls()
        assert calls(nn.Linear(8, 8, device="meta"), x.to("meta"))
        assert calls(nn.Linear(8, 8, dtype=torch.float64), x.double())
        with FlopCounterMode(display=False):
            assert calls()
        with torch.backends.mkldnn.flags(enabled=False):
            assert calls()
        hook = layer.register_forward_pre_hook(lambda *args: None)
        assert calls()
        hook.remove()
        layer.forward = lambda x: nn.Linear.forward(layer, x)  # as accelerate's hooks do
        assert calls()
        del layer.forward
        adapter = type("Adapter", (nn.Linear,), {})(8, 8)
        assert calls(adapter) and not calls()
        monkeypatch.setattr(linear, "_is_amd", lambda: False)
        assert not calls()  # with its activation
        called.clear()
        assert torch.equal(run_linear(layer, x), layer(x)) and len(called) == 2
    graph = torch.fx.symbolic_trace(Linear())
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return run_linear(self.layer, x)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lies", ["by pixels", "by channels"])
def test_excitation(lies, bias):
    """As the layers give it; they are called where something watches or has replaced them."""
    se, x, calls = SqueezeExcite(16, rd_channels=8, bias=bias), rounded(2, 16, 16, 16), []
    x = x[:, :5] if lies == "by pixels" else x[:, :, :5].permute(0, 2, 3, 1)
    want = se(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    class Counted(SqueezeExcite):
        def __call__(self, x):
            calls.append(x)
            return super().__call__(x)

    se.__class__ = Counted

    def is_called(x=x, kind=Counted):
        calls.clear()
        y = run_excite(se, kind, x)
        assert x.is_meta or torch.allclose(y, want, rtol=1e-5, atol=1e-6)
        return bool(calls)

    assert not is_called()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run_excite(se, Counted, x), want, rtol=2e-2, atol=2e-2)
    with torch.enable_grad():
        assert is_called()
    for layer in (se, se.fc1, se.act, se.fc2, se.gate):
        hook = layer.register_forward_hook(lambda layer, inputs, y: None)
        assert is_called()
        hook.remove()
    with FlopCounterMode(display=False):
        assert is_called()
    assert is_called(kind=SqueezeExcite)
    se.to("meta")
    assert is_called(x.to("meta"))
    se.to_empty(device="cpu")
    se.add_maxpool = True
    calls.clear()
    run_excite(se, Counted, x)
    assert calls
    se.add_maxpool, se.fc2 = False, nn.Sequential(se.fc2)
    calls.clear()
    run_excite(se, Counted, x)
    assert calls


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("routes", [CROSS, VOLUME_ROUTES["six"]], ids=["plane", "volume"])
def test_scans(dtype, routes):
    """The op's own numbers, and none where it would refuse the inputs, or raise them to one dtype."""
    given = make_2d(routes, outer=() if routes is CROSS else (3,))
    maps = {name: given[name].to(dtype) for name in ("u", "dt", "B", "C")}
    given |= {**maps, "routes": encode_routes(routes), "merge": True, "out_dtype": None}
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    for change in ({}, dict(out_dtype=other), dict(merge=False), dict(D=None, C=given["C"].contiguous())):
        got, want = scan_pass(**given | change), torch.ops.vssm.selective_scan_2d(**given | change)
        assert torch.equal(got, want) and got.dtype == want.dtype and got.stride() == want.stride()
    for name, x in maps.items():
        assert scan_pass(**given | {name: x.to(other)}) is None
    assert scan_pass(**given | dict(u=given["u"].double())) is scan_pass(**given | dict(u=given["u"][:0])) is None
    with FlopCounterMode(display=False):
        assert scan_pass(**given) is None
    with torch.enable_grad():
        assert scan_pass(**given) is None


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_attention(dtype):
    q, k, v = (rounded(2, 6, 7, 2, 8, dtype=dtype, seed=i) for i in range(3))
    given = dict(kernel_size=[3, 5], dilation=[1, 2], bias=rounded(2, 5, 9))
    got, want = attention_pass(q, k, v, **given), torch.ops.vssm.neighborhood_attention(q, k, v, **given)
    assert torch.equal(got, want) and got.dtype == dtype
    none, wide = torch.empty(2, 0), v.float()
    got, want = attention_pass(q, k, wide, **given), torch.ops.vssm.neighborhood_sum(none, q, k, wide, **given)
    assert torch.equal(got, want) and got.dtype == torch.float32
    assert attention_pass(q, k, v, **given, weights=none) is not None
    assert attention_pass(q, k, v, **given, weights=torch.empty(2, 1)) is None  # that was kept has to be used
    assert attention_pass(q.double(), k, v, **given) is attention_pass(q[:0], k[:0], v[:0], **given) is None
    with FlopCounterMode(display=False):
        assert attention_pass(q, k, v, **given) is None
    with torch.enable_grad():
        assert attention_pass(q, k, v, **given) is None


def test_activations_in_place():
    act, x = nn.GELU(), rounded(3, 5)
    want, kept = act(x), x.clone()
    assert torch.equal(run_act(act, x), want) and torch.equal(x, kept)  # autograd may want x
    with torch.no_grad():
        for other in (SILU, nn.Sequential(act)):
            assert torch.equal(run_act(other, x), other(kept)) and torch.equal(x, kept)
        hook = act.register_forward_hook(lambda *args: None)
        assert torch.equal(run_act(act, x), want) and torch.equal(x, kept)
        hook.remove()
        assert torch.equal(run_act(act, x), want) and torch.equal(x, want)
        tanh = nn.GELU("tanh")
        assert torch.equal(run_act(tanh, kept.clone()), tanh(kept))
