"""VSSD beyond its parity vectors: parameter counts, checkpoints, sizes, precision, published costs."""

import pytest
import timm
import torch

import vssm
from tests import parity
from vssm.models import read_checkpoint
from vssm.models.vssd import MapAttention, checkpoint_filter_fn
from vssm.scans import NonCausalSSD2D

PARAMETERS = {"vssd_micro": 13_512_964, "vssd_tiny": 24_270_724, "vssd_small": 40_075_650, "vssd_base": 88_823_151}
ENTRIES = {"vssd_micro": 379, "vssd_tiny": 421, "vssd_small": 730, "vssd_base": 730}
SHALLOW = dict(depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """The official keys of the first block of every stage of VSSD-M."""
    shapes = parity.load("vssd")["variants"]["vssd_micro"]["state_dict"]
    shapes = {k: v for k, v in shapes.items() if ".blocks." not in k or ".blocks.0." in k}
    return parity.state_dict({"state_dict": shapes})


def assert_same(got: dict, want: dict):
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert len(model.state_dict()) == ENTRIES[name]
    assert all(isinstance(b.mixer, NonCausalSSD2D) for stage in model.stages[:3] for b in stage.blocks)
    assert all(isinstance(b.mixer, MapAttention) for b in model.stages[3].blocks)


@pytest.mark.parametrize("key", ["model", "model_ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_nested_and_prefixed(official, key, prefix):
    model = timm.create_model("vssd_micro", device="meta", **SHALLOW)
    nested = {key: {f"{prefix}{k}": v for k, v in official.items()}, "epoch": 3}
    assert_same(checkpoint_filter_fn(nested, model), checkpoint_filter_fn(official, model))


def test_own_checkpoint_passes_through():
    model = timm.create_model("vssd_pico")
    assert_same(checkpoint_filter_fn(model.state_dict(), model), model.state_dict())


@pytest.mark.parametrize(("name", "key"), [("vssd_micro", "model"), ("vssd_tiny", "model_ema")])
def test_micro_alone_takes_the_raw_weights(tmp_path, name, key):
    """Of the published files only micro's is not named after its averaged weights."""
    options = dict(SHALLOW, embed_dim=16, num_heads=(1, 2, 4, 8), d_state=16, num_classes=10)
    raw = timm.create_model(name, **options).state_dict()
    both = {"model": raw, "model_ema": {k: v + 1 for k, v in raw.items()}}
    torch.save(both, tmp_path / "both.pth")
    overlay = dict(file=str(tmp_path / "both.pth"), num_classes=10)
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    assert_same(loaded.state_dict(), both[key])
    only = {"model": both["model_ema"]}
    assert_same(checkpoint_filter_fn(only, loaded, averaged=name != "vssd_micro"), both["model_ema"])


def test_other_classes_and_channels(tmp_path, official):
    torch.save({"model": official}, tmp_path / "official.pth")
    overlay = dict(file=str(tmp_path / "official.pth"))
    options = dict(pretrained=True, pretrained_cfg_overlay=overlay, **SHALLOW)
    model = timm.create_model("vssd_micro", num_classes=5, in_chans=1, **options)
    assert model.head.fc.weight.shape[0] == 5
    summed = official["patch_embed.conv1.conv.weight"].sum(1, keepdim=True)
    assert torch.allclose(model.stem.conv1.conv.weight, summed, atol=1e-6)


def test_a_checkpoint_of_the_other_architecture_is_explained(official):
    model = timm.create_model("vssd_micro", device="meta", **SHALLOW)
    weights = {**official, "layers.0.blocks.0.attn.extra_norm.weight": torch.ones(48)}
    message = r"unexpected stages\.0\.blocks\.0\.mixer\.extra_norm\.weight.*called iccv2025 are of another architecture"
    with pytest.raises(ValueError, match=message):
        checkpoint_filter_fn(weights, model)


def test_urls():
    tags = {
        "vssd_micro.in1k": "vssd_micro_best.pth",
        "vssd_tiny.in1k": "vssd_tiny_best_ema.pth",
        "vssd_tiny.mesa_in1k": "vssd_tiny_e300_with_mesa.pth",
        "vssd_small.in1k": "vssd_small_best_ema.pth",
        "vssd_small.mesa_in1k": "vssd_small_e300_with_mesa.pth",
        "vssd_base.in1k": "vssd_base_best_ema.pth",
        "vssd_base.mesa_in1k": "vssd_base_e300_with_mesa.pth",
    }
    for tag, file in tags.items():
        cfg = timm.get_pretrained_cfg(tag)
        assert cfg.url == f"https://huggingface.co/YuhengSSS/VSSD/resolve/main/{file}"
    assert set(vssm.list_models("vssd_*")) == {*PARAMETERS, "vssd_pico"}


def test_unreadable_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("size", [(75, 101), (80, 80), (100, 128), (128, 48), (1, 1)])
@torch.no_grad()
def test_any_size(size):
    """The official classifier refuses every size that is not a multiple of 32."""
    model = timm.create_model("vssd_pico").eval()
    y = model.forward_features(torch.randn(1, 3, *size))
    assert y.shape[1:3] == tuple(-(-s // 32) for s in size)
    assert model.forward_head(y).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=(1, 2)), r"one number for each of the 4 stages, got \(1, 2\)"),
        (dict(num_heads=(3, 2, 4, 8)), "inner width 32 is not divisible by 3 heads"),
        (dict(num_heads=(1, 2, 4, 5)), "last stage's width 128 is not divisible by 5 heads"),
    ],
)
def test_wrong_heads(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("vssd_pico", **options)


def test_no_weight_decay():
    model = timm.create_model("vssd_pico", device="meta")
    assert {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()} == {"A_log", "D", "dt_bias"}
