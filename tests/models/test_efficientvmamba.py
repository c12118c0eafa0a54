"""EfficientVMamba beyond its parity vectors: sizes, the shared gate, initialisation, checkpoints in every layout."""

import functools
import re

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.optim import param_groups_weight_decay

import vssm  # noqa: F401
from tests import parity
from vssm.models.efficientvmamba import EVSSBlock, InvertedResidual, checkpoint_filter_fn

UNIT = dict(embed_dim=16, depths=(1, 2, 1, 1), num_classes=10)


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    return parity.state_dict(parity.load("efficientvmamba")["variants"]["_unit"])


def official_checkpoint() -> dict[str, torch.Tensor]:
    return dict(_weights())


def load(checkpoint, **kwargs):
    return checkpoint_filter_fn(
        checkpoint, timm.create_model("efficientvmamba_pico", device="meta", **{**UNIT, **kwargs})
    )


def assert_same(got: dict, want: dict):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)


# ---- structure


@pytest.mark.parametrize(
    ("name", "parameters"), [("tiny", 6493660), ("small", 11273688), ("base", 33717136), ("pico", 515646)]
)
def test_parameters(name, parameters):
    model = timm.create_model(f"efficientvmamba_{name}", device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_stages():
    model = timm.create_model("efficientvmamba_base", device="meta")
    kinds = [{type(block) for block in stage.blocks} for stage in model.stages]
    assert kinds == [{EVSSBlock}, {EVSSBlock}, {InvertedResidual}, {InvertedResidual}]
    assert [len(stage.blocks) for stage in model.stages] == [2, 2, 9, 2]


def test_feature_sizes():
    model = timm.create_model("efficientvmamba_pico", features_only=True, device="meta")
    maps = model(torch.empty(1, 3, 75, 101, device="meta"))
    assert [tuple(m.shape[2:]) for m in maps] == [(18, 25), (9, 13), (5, 7), (3, 4)]


def test_smallest_image():
    with torch.no_grad():
        assert timm.create_model("efficientvmamba_pico").eval()(torch.randn(1, 3, 4, 4)).shape == (1, 1000)


def test_stochastic_depth_rises_over_all_stages():
    model = timm.create_model("efficientvmamba_tiny", drop_path_rate=0.1, device="meta")
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i / 9 for i in range(1, 10)])  # the first block has none


def test_too_narrow():
    with pytest.raises(ValueError, match="dims must be at least 8, got 4"):
        timm.create_model("efficientvmamba_pico", embed_dim=4)


def test_one_gate_weighs_both_branches():
    """With the second branch silent, a block adds the scan times its own gate; and the other way round."""
    torch.manual_seed(0)
    block = EVSSBlock(16).eval().double()
    x = torch.randn(1, 6, 5, 16, dtype=torch.float64)
    zero = torch.zeros_like(x)
    with torch.no_grad():
        n = block.norm(x)
        s = block.mixer(n)
        c = block.pw_conv(block.conv(n.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        assert torch.allclose(block(x), x + block.gate(s) + block.gate(c))
        assert not torch.allclose(block(x), x + block.gate(s + c), rtol=1e-4)
        assert torch.equal(block.gate(zero), zero)
        # The weights come from the mean of the normalised map; the map itself is not normalised.
        mean = torch.nn.functional.layer_norm(s, (16,), eps=1e-5).mean((1, 2))
        hidden = torch.nn.functional.gelu(mean @ block.gate.mlp.fc1.weight.T + block.gate.mlp.fc1.bias)
        weight = torch.sigmoid(hidden @ block.gate.mlp.fc2.weight.T + block.gate.mlp.fc2.bias)
        assert torch.allclose(block.gate(s), s * weight[:, None, None])


def test_initial_parameters():
    torch.manual_seed(0)
    model = timm.create_model("efficientvmamba_tiny")
    block, residual = model.stages[1].blocks[0], model.stages[2].blocks[0]
    for linear in (block.mixer.in_proj, block.gate.mlp.fc1, model.stages[1].downsample.reduction, model.head.fc):
        assert 0.018 < linear.weight.std() < 0.022
        assert linear.bias is None or not linear.bias.any()
    for conv in (block.pw_conv, residual.se.fc1, residual.conv_pw.conv):  # as PyTorch: uniform
        bound = conv.weight[0].numel() ** -0.5
        assert 0.98 * bound < conv.weight.abs().max() <= bound
        assert conv.bias is None or conv.bias.any()
    assert torch.allclose(block.mixer.A_logs[5].exp(), torch.arange(1.0, 17))


def test_no_weight_decay():
    model = timm.create_model("efficientvmamba_pico", device="meta")
    spared = {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()}
    assert spared == {"A_logs", "Ds", "dt_projs_bias"}
    groups = param_groups_weight_decay(model, 0.04, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert {n for n, p in model.named_parameters() if p.dim() > 1 and id(p) not in decayed} == {
        n for n in model.no_weight_decay() if not n.endswith("Ds")
    }


def test_float64_and_half_agree_with_float32():
    torch.manual_seed(0)
    model = timm.create_model("efficientvmamba_pico").eval()
    x = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        y = model(x)
        exact = model.double()(x.double())
        half = model.bfloat16()(x.bfloat16())
    assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-5)
    assert torch.allclose(half.double(), exact, rtol=0.1, atol=0.05)


# ---- checkpoints


@pytest.mark.parametrize("key", ["state_dict", "ema_model", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "module.module.module."])
def test_nested_and_prefixed(key, prefix):
    weights = {prefix + k: v for k, v in official_checkpoint().items()}
    assert_same(load({key: weights, "epoch": 291} if key else weights), load(official_checkpoint()))


def test_averaged_weights_win():
    """A file of the official training code: raw weights, and averaged ones of the wrapped model."""
    official = official_checkpoint()
    averaged = {f"module.module.{k}": v + 1 for k, v in official.items()}
    file = {"epoch": 292, "model": official, "ema_model": averaged, "optimizer": {"state": {}}}
    assert_same(load(file), load({k: v + 1 for k, v in official.items()}))


def test_everything_is_loaded():
    model = timm.create_model("efficientvmamba_pico", device="meta", **UNIT)
    weights = load(official_checkpoint())
    assert weights.keys() == model.state_dict().keys()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_early_key_names():
    early = {}
    for k, v in official_checkpoint().items():
        k = k.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        k = re.sub(r"(blocks\.\d+)\.norm\.", r"\1.ln_1.", k).replace(".op.", ".self_attention.")
        early[k.replace("classifier.norm.", "norm.").replace("classifier.head.", "head.")] = v
    assert_same(load(early), load(official_checkpoint()))


def test_own_checkpoint_passes_through():
    model = timm.create_model("efficientvmamba_pico")
    assert_same(checkpoint_filter_fn(model.state_dict(), model), model.state_dict())


def test_flat_stage_of_another_depth_is_named():
    """Blocks of the flat stages count from 1 in the file, from 0 here."""
    with pytest.raises(ValueError, match=r"missing stages\.2\.blocks\.1\."):
        load(official_checkpoint(), depths=(1, 2, 2, 1))


def test_missing_and_foreign_keys_are_named():
    broken = official_checkpoint()
    del broken["layers.2.1.conv_pw2.1.running_var"]
    with pytest.raises(ValueError, match=r"missing stages\.2\.blocks\.0\.conv_pwl\.bn\.running_var; unexpected none"):
        load(broken)
    foreign = {**official_checkpoint(), "layers.0.blocks.0.norm2.weight": torch.zeros(16)}  # a block with an MLP
    with pytest.raises(ValueError, match=r"missing none; unexpected stages\.0\.blocks\.0\.norm2\.weight"):
        load(foreign)


def test_width_of_the_yaml_file_is_refused():
    with pytest.raises(ValueError, match=r"wrong shape .*instead of"):
        load(official_checkpoint(), embed_dim=24)


def test_other_classes_and_channels(tmp_path):
    torch.save({"state_dict": official_checkpoint()}, tmp_path / "unit.ckpt")
    overlay = dict(file=str(tmp_path / "unit.ckpt"), num_classes=10)
    model = timm.create_model(
        "efficientvmamba_pico",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        **{**UNIT, "num_classes": 5},
        in_chans=1,
    )
    want = official_checkpoint()
    assert model.head.fc.weight.shape[0] == 5
    assert torch.allclose(model.stem.conv.weight, want["patch_embed.0.weight"].sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(model.stages[0].blocks[0].mixer.A_logs, want["layers.0.blocks.0.op.A_logs"])


def test_published_weights():
    for size in ("Tiny", "Small", "Base"):
        cfg = timm.get_pretrained_cfg(f"efficientvmamba_{size.lower()}")
        assert cfg.url == (
            f"https://huggingface.co/TerryPei/EfficientVMamba-{size}/resolve/main/efficient_vmamba_{size.lower()}.ckpt"
        )
        assert "not verified" in cfg.description
    with pytest.raises(ValueError, match="efficientvmamba_pico has no published weights"):
        timm.create_model("efficientvmamba_pico", pretrained=True)
