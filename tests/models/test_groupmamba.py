"""GroupMamba beyond its parity vectors: sizes, heads, checkpoints, initialisation, features."""

import functools
import re

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay

from tests import parity
from vssm.models.groupmamba import checkpoint_filter_fn

PICO = "groupmamba_pico"
SHALLOW = dict(depths=(1, 1, 1, 1))


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


# ---- sizes


@pytest.mark.parametrize(
    ("name", "whole", "one_head", "trunk"),
    [
        ("groupmamba_tiny", 23.362, 22.913, 20.462),
        ("groupmamba_small", 34.782, 34.269, 31.143),
        ("groupmamba_base", 57.151, 56.638, 53.513),
    ],
)
def test_parameters(name, whole, one_head, trunk):
    """Millions; the trunk has neither class block nor classifiers, but all four norms."""
    model = timm.create_model(name, device="meta")
    assert round(count(model.parameters()) / 1e6, 3) == whole
    assert round(count(timm.create_model(name, device="meta", distillation=False).parameters()) / 1e6, 3) == one_head
    backbone = timm.create_model(name, device="meta", features_only=True)
    assert round((count(backbone.parameters()) + count(model.norm.parameters())) / 1e6, 3) == trunk
    # The official layout has the groups apart: 4 x 10 tensors a mixer where there are 10 here.
    mixers = sum(n.endswith(".skip_scale") for n, _ in model.named_parameters())
    official = {"groupmamba_tiny": 1266, "groupmamba_small": 1693, "groupmamba_base": 2120}
    assert len(model.state_dict()) + 3 * 11 * mixers == official[name]


def test_two_epsilons():
    model = timm.create_model(PICO, device="meta")
    small = {n for n, m in model.named_modules() if getattr(m, "eps", None) == 1e-6}
    blocks = {f"stages.{i}.blocks.{j}.norm" for i, depth in enumerate((1, 1, 2, 1)) for j in range(depth)}
    ends = {"stages.0.norm", "stages.1.norm", "stages.2.norm", "norm", "class_block.norm1", "class_block.norm2"}
    assert small == blocks | ends
    assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-5, 1e-6}


# ---- heads


def test_distilled_training():
    torch.manual_seed(0)
    model, x = timm.create_model(PICO, num_classes=5), torch.randn(2, 3, 48, 64)
    assert model.distilled_training
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()  # so that both modes see the same statistics
    y, y_dist = model(x)
    assert y.shape == y_dist.shape == (2, 5) and not torch.allclose(y, y_dist)
    model.set_distilled_training(False)
    assert torch.equal(model(x), (y + y_dist) / 2)
    model.set_distilled_training(True)
    assert torch.equal(model.eval()(x), (y + y_dist) / 2)
    assert model.get_classifier() == (model.head, model.dist_head)


def test_one_head():
    model = timm.create_model(PICO, num_classes=5, distillation=False)
    x = torch.randn(2, 3, 48, 64)
    assert model(x).shape == (2, 5) and model.get_classifier() is model.head
    assert not [n for n, _ in model.named_parameters() if n.startswith("dist_head")]
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.dist_head is None


def test_no_classes_and_no_pooling():
    model, x = timm.create_model(PICO), torch.randn(2, 3, 64, 96)
    model.reset_classifier(0)
    features = model.eval()(x)
    assert features.shape == (2, 64)
    assert torch.equal(features, model.forward_head(model.forward_features(x), pre_logits=True))
    assert model.train()(x).shape == (2, 64)  # nothing for a teacher to teach
    model.eval().reset_classifier(0, "")
    assert torch.equal(model(x), model.norm(model.forward_features(x)))
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3) and not model.head.training and not model.dist_head.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(global_pool="max"), "global_pool must be 'avg' or '', got 'max'"),
        (dict(global_pool=""), "1000 classes need global_pool='avg', got ''"),
        (dict(embed_dims=(16, 32, 62, 64)), "a multiple of the 4 routes and at least 16.*got 62"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(PICO, device="meta", **options)


def test_weights_are_on_google_drive():
    with pytest.raises(ValueError, match="groupmamba_tiny has no .*1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o"):
        timm.create_model("groupmamba_tiny", pretrained=True)


# ---- features


@torch.no_grad()
def test_features():
    """Stages 1 to 3 give normalised maps; the last map is raw, and normalised if asked for."""
    torch.manual_seed(0)
    model, x = timm.create_model(PICO).eval(), torch.randn(1, 3, 75, 101)
    last, maps = model.forward_intermediates(x, output_fmt="NHWC")
    assert torch.equal(last, maps[-1]) and torch.equal(last, model.forward_features(x))
    normed = model.forward_intermediates(x, norm=True, output_fmt="NHWC", intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps[:3], normed[:3], strict=True))
    assert torch.equal(normed[3], model.norm(maps[3]))
    for m in normed:
        assert m.mean(-1).abs().max() < 1e-5
    assert [tuple(m.shape[1:3]) for m in maps] == [(19, 26), (10, 13), (5, 7), (3, 4)]


def test_features_leave_the_head_out():
    model = timm.create_model(PICO, features_only=True, out_indices=(0, 3))
    names = {n.split(".")[1] for n, _ in model.named_parameters()}
    assert names == {"stem", "stages"}
    maps = model(torch.randn(1, 3, 64, 64))
    sum(m.square().mean() for m in maps).backward()
    # The last map wants the norms of the stages before it.
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_stage_norm_is_grouped_with_its_last_block():
    model = timm.create_model(PICO, device="meta")
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["stages.2.norm.weight"] == groups["stages.2.blocks.1.norm.weight"]
    assert groups["stages.0.norm.weight"] < groups["norm.weight"] <= groups["class_block.norm1.weight"]


# ---- initialisation, precision


def test_initial_parameters():
    torch.manual_seed(0)
    model = timm.create_model(PICO)
    dwconv = model.stages[3].blocks[0].mlp.dwconv
    assert abs(dwconv.weight.std() - (2 / 9) ** 0.5) < 0.03 and (dwconv.bias == 0).all()
    assert abs(model.stem.conv2.conv.weight.std() - (2 / (9 * 16)) ** 0.5) < 0.01
    assert abs(model.stages[3].downsample.conv.weight.std() - (2 / (9 * 64)) ** 0.5) < 0.005
    mixer = model.stages[3].blocks[0].mixer
    assert abs(mixer.conv.weight.std() - (2 / 9) ** 0.5) < 0.05 and (mixer.conv.bias == 0).all()
    assert abs(mixer.proj.weight.std() - 0.02) < 2e-3 and (mixer.proj.bias == 0).all()
    assert mixer.skip_scale.item() == 1 and (mixer.A_logs == 0).all() and (mixer.Ds == 1).all()
    rates = [getattr(b.drop_path, "drop_prob", 0) for s in model.stages for b in s.blocks]
    assert rates == [0] * 5
    model = timm.create_model(PICO, drop_path_rate=0.4, device="meta")
    rates = [getattr(b.drop_path, "drop_prob", 0) for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@torch.no_grad()
def test_float64_and_half_agree_with_float32():
    torch.manual_seed(0)
    model, x = timm.create_model(PICO).eval(), torch.randn(1, 3, 45, 61)
    y = model(x)
    exact = model.double()(x.double())
    half = model.bfloat16()(x.bfloat16())
    assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-5)
    assert torch.allclose(half.double(), exact, rtol=0.1, atol=0.05)


def test_no_weight_decay():
    model = timm.create_model(PICO, device="meta")
    spared = {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()}
    assert spared == {"A_logs", "Ds", "dt_projs_bias"}
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for n, p in model.named_parameters():
        # As officially: out_norm and skip_scale have one dimension here too, whatever was stacked.
        assert (id(p) in decayed) == (p.dim() > 1 and n.rsplit(".", 1)[-1] not in spared), n


# ---- checkpoints


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    """The official keys of the first block of every stage."""
    shapes = parity.load("groupmamba")["variants"]["groupmamba_tiny"]["state_dict"]
    return parity.state_dict({"state_dict": {k: v for k, v in shapes.items() if not re.match(r"block\d\.[1-9]", k)}})


def official() -> dict[str, torch.Tensor]:
    return dict(_weights())


def load(checkpoint, **kwargs):
    return checkpoint_filter_fn(checkpoint, timm.create_model("groupmamba_tiny", device="meta", **SHALLOW, **kwargs))


def assert_same(got: dict, want: dict):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_stacking():
    weights, ours = official(), load(official())
    group = "block3.0.attn.mamba_g{}."
    mixer = "stages.2.blocks.0.mixer."
    for k in range(4):
        old, part = group.format(k + 1), slice(87 * k, 87 * (k + 1))
        for name in ("in_proj", "out_proj"):
            assert torch.equal(ours[f"{mixer}{name}_weight"][k], weights[f"{old}{name}.weight"])
        for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
            assert torch.equal(ours[mixer + name][k], weights[old + name][0])
        for name in ("A_logs", "Ds", "out_norm.weight", "out_norm.bias"):
            assert torch.equal(ours[mixer + name][part], weights[old + name])
        assert torch.equal(ours[f"{mixer}conv.weight"][part], weights[f"{old}conv2d.weight"])


@pytest.mark.parametrize("key", [None, "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_nested_and_prefixed(key, prefix):
    weights = {f"{prefix}{k}": v for k, v in official().items()}
    assert_same(load(weights if key is None else {key: weights, "max_accuray_ema": 83.3}), load(official()))


def test_averaged_weights_win():
    averaged = {k: v + 1 for k, v in official().items()}
    assert_same(load({"model": official(), "model_ema": averaged}), load(averaged))


def test_own_checkpoint_passes_through():
    model = timm.create_model(PICO)
    assert_same(checkpoint_filter_fn(model.state_dict(), model), model.state_dict())


def test_one_head_takes_a_distilled_checkpoint():
    both, one = load(official()), load(official(), distillation=False)
    assert both.keys() - one.keys() == {"dist_head.weight", "dist_head.bias"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("block2.0.mlp.fc1.weight", r"missing stages\.1\.blocks\.0\.mlp\.fc1\.weight; unexpected none"),
        (
            "post_network.0.attn.mamba_g3.in_proj.weight",
            r"missing class_block\.mixer\.in_proj_weight; unexpected class_block\.mixer\.mamba_g1\.in_proj_weight",
        ),
    ],
)
def test_a_missing_key_is_named(key, message):
    broken = official()
    del broken[key]
    with pytest.raises(ValueError, match=message):
        load(broken)


def test_another_width_is_named():
    with pytest.raises(ValueError, match=r"does not fit this GroupMamba: missing stages\.2.*wrong shape"):
        load(official(), embed_dims=(64, 128, 352, 448))


def test_pretrained_from_a_file(tmp_path):
    torch.save({"model_ema": official(), "epoch": 299}, tmp_path / "tiny.pth")
    overlay = dict(file=str(tmp_path / "tiny.pth"))
    model = timm.create_model("groupmamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **SHALLOW)
    assert_same(model.state_dict(), load(official()))
    other = timm.create_model(
        "groupmamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1, **SHALLOW
    )
    assert other.head.weight.shape == other.dist_head.weight.shape == (5, 448)
    summed = model.stem.conv1.conv.weight.sum(1, keepdim=True)
    assert torch.allclose(other.stem.conv1.conv.weight, summed, atol=1e-6)
    backbone = timm.create_model(
        "groupmamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **SHALLOW
    )
    assert torch.equal(backbone.model.stages[2].norm.weight, official()["norm3.weight"])
