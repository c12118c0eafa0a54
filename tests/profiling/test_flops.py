"""Counts of operations: what each kind counts, and that no backend matters. Published ones are in tests/test_zoo.py."""

import importlib
import sys

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import vssm
from tests.small import few_stages
from vssm._fvcore import offer_handles
from vssm.models import Family, family_of
from vssm.profiling import count, paper_flops
from vssm.profiling.throughput import scan_backend
from vssm_kernels import available_backends, selective_scan_2d_flops

pytest.importorskip("fvcore")

KINDS = [("paper", False), ("macs", False), ("flops", False), ("macs", True), ("flops", True)]


def check_parts(cost):
    """The parts are the whole, also on paper."""
    outer = [module for module in cost.modules if module.level == 1]
    assert cost.modules[0].flops == cost.flops and cost.modules[0].params == cost.params
    assert 0.99 * cost.flops <= sum(module.flops for module in outer) <= cost.flops
    lines = cost.tree(1).splitlines()
    assert len(lines) == 2 + len(outer) and "(model)" in lines[1] and lines[1].endswith("100.0%")
    assert len({len(line) for line in lines}) == 1
    assert len(cost.tree(0).splitlines()) == 2


# The forward pass as the papers count it, and both passes as PyTorch does.
@pytest.mark.parametrize(("kind", "backward"), [("paper", False), ("flops", True)])
@pytest.mark.parametrize("name", vssm.list_models("*_pico"))
def test_backends_and_shapes_alone_count_the_same(name, kind, backward):
    """The fused scan in C++ and the composed one in PyTorch, run for real, and the count that computes nothing."""
    model = timm.create_model(name, **few_stages(name))
    want = count(model, (3, 40, 64), kind, backward)
    assert want.flops > 0 and want.activations > 0
    check_parts(count(model, (3, 40, 64), kind) if backward else want)
    for backend in {"cpp", "torch"} & set(available_backends("cpu")):
        with scan_backend(backend):
            assert count(model, (3, 40, 64), kind, backward, execute=True) == want


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_models_of_timm_count_the_same_without_values(name):
    model = timm.create_model(name)
    size = model.pretrained_cfg["input_size"]
    for case in (("paper", False), ("flops", True)):
        assert count(model, size, *case) == count(model, size, *case, execute=True)


class _Attention(nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        self.proj = nn.Conv2d(3, 8, 1)
        self.fused = fused

    def forward(self, x):
        q = self.proj(x).flatten(2).unflatten(1, (2, 4)).transpose(-2, -1)
        k = v = q[:, :, ::2]
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.mark.parametrize("execute", [False, True])
@pytest.mark.parametrize(("kind", "backward"), KINDS)
def test_fused_attention_is_two_matrix_products(kind, backward, execute):
    fused, plain = (count(_Attention(f), (3, 6, 5), kind, backward, execute=execute) for f in (True, False))
    assert (fused.flops, fused.activations) == (plain.flops, plain.activations)
    products = 3 * 8 * 30 + 2 * 8 * 30 * 15
    passes = 3 if backward else 1
    first = 3 * 8 * 30 if backward else 0  # nobody wants the gradient of the image
    assert fused.flops == (passes * products - first) * (2 if kind == "flops" else 1)
    assert fused.activations == 8 * 30 + 2 * 30 * 15 + 8 * 30


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GELU()),
        nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2),
    )


# Multiply-adds of the three convolutions at 16 x 12 pixels.
STEM, DEPTHWISE, UP = 48 * 8 * 27, 48 * 8 * 9, 48 * 8 * 2 * 4


@pytest.mark.parametrize("execute", [False, True])
def test_every_kind_by_hand(execute):
    costs = {case: count(net(), (3, 16, 12), *case, execute=execute) for case in KINDS}
    macs = STEM + DEPTHWISE + UP
    assert costs["macs", False].flops == macs and costs["flops", False].flops == 2 * macs
    assert costs["paper", False].flops == macs + 2 * 48 * 8  # two for an element of a BatchNorm
    assert costs["macs", True].flops == 3 * macs - STEM
    assert costs["flops", True].flops == 2 * costs["macs", True].flops
    for cost in costs.values():
        assert cost.activations == 2 * 48 * 8 + 192 * 4
        assert cost.params == sum(p.numel() for p in net().parameters())


def test_modules_by_hand():
    modules = {module.name: module for module in count(net(), (3, 16, 12), "macs", backward=True).modules}
    assert list(modules) == ["", "0", "1", "2", "2.0", "2.1", "3"]
    want = {"": 2 * STEM + 3 * (DEPTHWISE + UP), "0": 2 * STEM, "1": 0, "2": 3 * DEPTHWISE, "2.0": 3 * DEPTHWISE}
    assert {name: modules[name].flops for name in modules} == {**want, "2.1": 0, "3": 3 * UP}
    assert modules["2"].type == "Sequential" and modules["2"].params == modules["2.0"].params == 80


class OwnNet(nn.Sequential):
    """A model of a family of its own."""


def declare(monkeypatch, **fields):
    own = Family("own", "Own", (OwnNet,), **fields)
    monkeypatch.setattr(vssm.profiling.flops, "family_of", lambda m: own if isinstance(m, OwnNet) else family_of(m))


def test_counted_in_training(monkeypatch):
    model = nn.Sequential(net(), OwnNet(*net()))
    model[1][0] = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    evaluated = paper_flops(model, (3, 16, 12))
    declare(monkeypatch, counted_in_training=True)
    cost = count(model, (3, 16, 12))
    assert cost.flops - evaluated == 3 * 48 * 8  # five for an element of its BatchNorm, not two
    assert {m.name: m.flops for m in cost.modules}["1.1"] == 5 * 48 * 8


def test_a_scan_by_hand():
    """9 per state and one for the skip in every kind, and the expansion of the step size, a matrix product."""
    mixer = timm.create_model("vmamba_tiny_v0", device="meta").stages[0].blocks[0].mixer
    tokens, inner, states, rank = 20, 192, 16, 6
    image = lambda model, x: type(model).forward(model, x.movedim(1, -1))  # noqa: E731
    scan = selective_scan_2d_flops(1, [tokens] * 4, inner, states)
    projections = 2 * 96 * inner + 9 * inner + 4 * inner * (rank + 2 * states) + 4 * rank * inner + inner * 96
    cost = {kind: count(mixer, (96, 4, 5), kind, forward=image).flops for kind in ("paper", "macs", "flops")}
    assert cost["flops"] == scan + 2 * tokens * projections
    assert 2 * cost["macs"] == cost["flops"]
    assert cost["paper"] == scan + tokens * (projections + 5 * inner)
    assert 3 * cost["flops"] == count(mixer, (96, 4, 5), "flops", True, forward=image).flops + 4 * tokens * 96 * inner


def test_the_model_is_left_as_it_is():
    model = net().train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for execute in (False, True):
        for case in KINDS:
            count(model, (3, 16, 12), *case, execute=execute)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_size_counts():
    model = timm.create_model("vmamba_pico")
    small, large = paper_flops(model, (3, 64, 64)), paper_flops(model, (3, 128, 128))
    assert 3.9 < large / small < 4.01


def test_what_is_left_out_can_be_said(monkeypatch):
    model = timm.create_model("vmamba_pico")
    whole = paper_flops(model, (3, 64, 64))
    norms = whole - paper_flops(model, (3, 64, 64), uncounted=("aten::layer_norm",))
    assert 0 < norms < 0.2 * whole
    declare(monkeypatch, uncounted_operators=("aten::layer_norm",))
    assert whole - paper_flops(nn.Sequential(OwnNet(model)), (3, 64, 64)) == norms  # wherever in a network it is


class _ReadsValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if self.conv.bias.sum().item() < 1e9 else x


@pytest.mark.parametrize(("kind", "backward"), KINDS)
def test_a_model_that_needs_values_is_run(kind, backward):
    model = _ReadsValues()
    assert count(model, (3, 6, 5), kind, backward) == count(model, (3, 6, 5), kind, backward, execute=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kind="flop"), r"kind must be one of paper, macs, flops, got 'flop' \(did you mean 'flops'"),
        (dict(backward=True), "the papers count only the forward pass"),
        (dict(input_size=(224, 224)), r"must be \(C, H, W\) or \(C, D, H, W\), positive integers, got \(224, 224\)"),
        (dict(input_size=(3, 0, 224)), "positive integers, got"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        count(net(), **arguments)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no parameter that wants a gradient"):
        count(net().requires_grad_(False), (3, 16, 12), "flops", backward=True)


@pytest.mark.parametrize("imported_before", [True, False])
def test_fvcore_by_itself_counts_the_scans(monkeypatch, imported_before):
    if imported_before:
        module = importlib.import_module("fvcore.nn.flop_count")
        known = {name: x for name, x in module._DEFAULT_SUPPORTED_OPS.items() if not name.startswith("vssm::")}
        monkeypatch.setattr(module, "_DEFAULT_SUPPORTED_OPS", known)
        offer_handles()
    else:
        monkeypatch.delitem(sys.modules, "fvcore.nn.flop_count")
        module = importlib.import_module("fvcore.nn.flop_count")
    model = timm.create_model("vmamba_pico")
    counted = module.FlopCountAnalysis(model, torch.zeros(1, 3, 32, 32))
    counted.unsupported_ops_warnings(False).tracer_warnings("none")
    with_scan, without = (
        count(model, (3, 32, 32), "paper", uncounted=left_out).flops for left_out in ((), ["vssm::selective_scan_2d"])
    )
    assert counted.by_operator()["selective_scan_2d"] == with_scan - without > 0
    assert not any(name.startswith("vssm::") for name in counted.unsupported_ops())
