"""MSVMamba beyond its parity vectors: sizes, the order of the branches, checkpoints in every layout, its start."""

import functools
import re

import pytest
import timm
import torch

import vssm
from tests import parity
from vssm.models.msvmamba import MSVMamba, checkpoint_filter_fn

PARAMETERS = {
    "msvmamba_nano": 6_864_136,
    "msvmamba_micro": 11_879_272,
    "msvmamba_tiny": 33_046_312,
    "msvmambav3_tiny": 32_263_720,
    "msvmambav3_small": 50_216_296,
    "msvmambav3_base": 90_591_976,
    "msvmamba_pico": 523_304,
    "msvmambav3_pico": 536_408,
}
# The official keys of a small net of each generation, and the model it is of.
RECORDS = {"first": "_unit_v1", "second": "_unit_v3_noz"}
NAMES = {"first": "msvmamba_nano", "second": "msvmambav3_tiny"}
GENERATIONS = list(NAMES)


@functools.cache
def _weights(generation: str) -> dict[str, torch.Tensor]:
    return parity.state_dict(parity.load("msvmamba")["variants"][RECORDS[generation]])


def official_checkpoint(generation: str) -> dict[str, torch.Tensor]:
    return dict(_weights(generation))


def load(checkpoint, generation: str, **kwargs):
    args = dict(embed_dim=16, depths=(1, 2, 1, 1), num_classes=10, device="meta")
    return checkpoint_filter_fn(checkpoint, timm.create_model(NAMES[generation], **dict(args, **kwargs)))


def assert_same(got: dict, want: dict):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_parameters():
    assert set(vssm.list_models("msvmamba*")) == set(PARAMETERS)
    for name, count in PARAMETERS.items():
        assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == count, name


# ---- checkpoints


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_full_branch_is_first(generation):
    """The first generation's files hold the half branch first, the second's the full branch."""
    official = official_checkpoint(generation)
    ours = load(official, generation)
    full = 1 if generation == "first" else 0
    at, mixer = "layers.1.blocks.0.op.", "stages.1.blocks.0.mixer."
    for name in ("dt_projs_weight", "dt_projs_bias"):
        assert torch.equal(ours[mixer + name][0], official[at + name][full])
        assert torch.equal(ours[mixer + name][1], official[at + name][1 - full])
    for name in ("A_logs", "Ds"):
        halves = official[at + name].chunk(2)
        assert torch.equal(ours[mixer + name], torch.cat([halves[full], halves[1 - full]]))
    halves = official[at + "x_proj_weight"]
    assert torch.equal(ours[mixer + "x_proj.weight"], torch.cat([halves[full], halves[1 - full]]))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("key", ["model_ema", "model", "state_dict"])
def test_nested_and_prefixed(generation, key):
    official = official_checkpoint(generation)
    nested = {key: {f"module.module.{k}": v for k, v in official.items()}, "epoch": 3, "steps": 7}
    assert_same(load(nested, generation), load(official, generation))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_averaged_weights_win(generation):
    official = official_checkpoint(generation)
    averaged = {k: v + 1 for k, v in official.items()}
    assert_same(load({"model": official, "model_ema": averaged}, generation), load(averaged, generation))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_linear_layers_saved_as_convolutions(generation):
    official = official_checkpoint(generation)
    linear = re.compile(r"(in_proj|out_proj)\.weight$")
    convolved = {k: v[:, :, None, None] if linear.search(k) else v for k, v in official.items()}
    assert_same(load(convolved, generation), load(official, generation))


def test_old_key_names():
    old = {}
    for k, v in official_checkpoint("first").items():
        k = k.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        k = re.sub(r"(blocks\.\d+)\.norm\.", r"\1.ln_1.", k).replace(".op.", ".self_attention.")
        k = k.replace("classifier.norm.", "norm.").replace("classifier.head.", "head.")
        old[k] = v
    assert_same(load(old, "first"), load(official_checkpoint("first"), "first"))


@pytest.mark.parametrize("name", ["msvmamba_pico", "msvmambav3_pico"])
def test_own_checkpoint_passes_through(name):
    model = timm.create_model(name)
    assert_same(checkpoint_filter_fn(model.state_dict(), model), model.state_dict())


def test_other_classes_and_channels(tmp_path):
    torch.save({"model_ema": official_checkpoint("second")}, tmp_path / "second.pth")
    overlay = dict(file=str(tmp_path / "second.pth"), num_classes=10)
    args = dict(embed_dim=16, depths=(1, 2, 1, 1), pretrained=True, pretrained_cfg_overlay=overlay)
    model = timm.create_model("msvmambav3_tiny", num_classes=5, in_chans=1, **args)
    assert model.head.fc.weight.shape[0] == 5 and model.stem.conv1.weight.shape[1] == 1
    backbone = timm.create_model("msvmambav3_tiny", features_only=True, **args)
    want = official_checkpoint("second")["layers.0.blocks.0.op.conv2d_b1.weight"]
    assert torch.equal(backbone.model.stages[0].blocks[0].mixer.conv_half.weight, want)


def test_the_other_generation_is_refused():
    for written, wanted in (GENERATIONS, GENERATIONS[::-1]):
        with pytest.raises(ValueError, match=r"does not fit this MSVMamba: missing stages\.1\.downsample|missing stem"):
            load(official_checkpoint(written), wanted)


def test_missing_keys_and_other_widths_are_named():
    broken = official_checkpoint("first")
    del broken["layers.2.blocks.0.op.conv2d_b1.bias"]
    with pytest.raises(ValueError, match=r"missing stages\.2\.blocks\.0\.mixer\.conv_half\.bias; unexpected none"):
        load(broken, "first")
    with pytest.raises(ValueError, match=r"wrong shape .*instead of"):
        load(official_checkpoint("first"), "first", embed_dim=32)


def test_where_weights_are():
    for size in ("tiny", "small", "base"):
        url = timm.get_pretrained_cfg(f"msvmambav3_{size}").url
        assert url == f"https://huggingface.co/YuhengSSS/MSVMamba/resolve/main/msvmambav3_{size}_224.pth"
    for size in ("nano", "micro", "tiny"):
        with pytest.raises(ValueError, match=rf"msvmamba_{size} has no published weights .*Google Drive folder id 1"):
            timm.create_model(f"msvmamba_{size}", pretrained=True)


# ---- behaviour


def test_initialisation():
    torch.manual_seed(0)
    model = timm.create_model("msvmamba_pico", embed_dim=64, depths=(1, 1))
    block = model.stages[1].blocks[0]
    for weight in (block.mixer.in_proj.weight, block.mixer.out_proj.weight, block.mixer.se.fc1.weight):
        assert 0.018 < weight.std() < 0.022
    assert 0.018 < model.head.fc.weight.std() < 0.022 and (model.head.fc.bias == 0).all()
    bound = 128**-0.5  # the feed-forward layer starts like the convolutions it is made of officially
    assert 0.95 * bound < block.mlp.fc1.weight.abs().max() <= bound and block.mlp.fc1.bias.abs().max() > 0
    assert block.mixer.x_proj.weight.abs().max() > 0.98 * 256**-0.5


def test_no_weight_decay():
    model = timm.create_model("msvmamba_pico", device="meta")
    assert {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()} == {"A_logs", "Ds", "dt_projs_bias"}


def test_stochastic_depth_rises_over_all_blocks():
    model = timm.create_model("msvmambav3_pico", drop_path_rate=0.4, device="meta")
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("name", ["msvmamba_pico", "msvmambav3_pico"])
@pytest.mark.parametrize("size", [(4, 4), (5, 31), (17, 6)])
@torch.no_grad()
def test_small_images(name, size):
    torch.manual_seed(0)
    assert timm.create_model(name, num_classes=3).eval()(torch.randn(1, 3, *size)).isfinite().all()


@pytest.mark.parametrize("name", ["msvmamba_pico", "msvmambav3_pico"])
def test_float64_and_half_agree_with_float32(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        y = model(x)
        exact = model.double()(x.double())
        half = model.bfloat16()(x.bfloat16())
    assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-5)
    assert torch.allclose(half.double(), exact, rtol=0.1, atol=0.05)


def test_unknown_upsampling():
    with pytest.raises(ValueError, match="upsample_mode must be bilinear or nearest, got 'area'"):
        MSVMamba(upsample_mode="area", device="meta")
