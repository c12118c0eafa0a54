"""Spatial-Mamba beyond its parity vectors: parameter counts, checkpoints, sizes, precision, published costs."""

import pytest
import timm
import torch

import vssm
from tests import parity
from vssm.models.spatialmamba import checkpoint_filter_fn
from vssm.profiling import paper_flops

PARAMETERS = {"spatialmamba_tiny": 26_748_862, "spatialmamba_small": 43_074_280, "spatialmamba_base": 95_745_592}
SHALLOW = dict(depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """The official keys of the first block of every stage of Spatial-Mamba-T."""
    shapes = parity.load("spatialmamba")["variants"]["spatialmamba_tiny"]["state_dict"]
    shapes = {k: v for k, v in shapes.items() if ".blocks." not in k or ".blocks.0." in k}
    return parity.state_dict({"state_dict": shapes})


def assert_same(got: dict, want: dict):
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert len(model.state_dict()) == (553 if name == "spatialmamba_tiny" else 931)
    assert set(vssm.list_models("spatialmamba_*")) == {*PARAMETERS, "spatialmamba_pico"}


@pytest.mark.parametrize("key", ["model", "model_ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_nested_and_prefixed(official, key, prefix):
    model = timm.create_model("spatialmamba_tiny", device="meta", **SHALLOW)
    nested = {key: {f"{prefix}{k}": v for k, v in official.items()}, "epoch": 3}
    assert_same(checkpoint_filter_fn(nested, model), checkpoint_filter_fn(official, model))


def test_own_checkpoint_passes_through():
    model = timm.create_model("spatialmamba_pico")
    assert_same(checkpoint_filter_fn(model.state_dict(), model), model.state_dict())


def test_a_file_fetched_by_hand(tmp_path, official):
    torch.save({"model_ema": official}, tmp_path / "official.pth")
    overlay = dict(file=str(tmp_path / "official.pth"))
    options = dict(pretrained=True, pretrained_cfg_overlay=overlay, **SHALLOW)
    model = timm.create_model("spatialmamba_tiny", num_classes=5, in_chans=1, **options)
    assert model.head.fc.weight.shape[0] == 5
    kernel = official["layers.1.blocks.0.self_attention.state_fusion.kernel_3_2"]
    assert torch.equal(model.stages[1].blocks[0].mixer.fusion.kernel5, kernel)
    bias = official["layers.3.blocks.0.self_attention.dt_projs_bias"]
    assert torch.equal(model.stages[3].blocks[0].mixer.dt_projs_bias[0], bias)


@pytest.mark.parametrize("name", PARAMETERS)
def test_google_drive_is_named(name):
    with pytest.raises(ValueError, match=rf"{name} has no published weights .*drive\.google\.com/file/d/1"):
        timm.create_model(name, pretrained=True, device="meta")


def test_a_missing_key_is_named(official):
    model = timm.create_model("spatialmamba_tiny", device="meta", **SHALLOW)
    broken = {k: v for k, v in official.items() if k != "layers.2.blocks.0.self_attention.state_fusion.alpha"}
    with pytest.raises(ValueError, match=r"missing stages\.2\.blocks\.0\.mixer\.fusion\.alpha; unexpected none"):
        checkpoint_filter_fn(broken, model)


@pytest.mark.parametrize("size", [(75, 101), (70, 90), (33, 32), (1, 1)])
@torch.no_grad()
def test_any_size(size):
    model = timm.create_model("spatialmamba_pico").eval()
    y = model.forward_features(torch.randn(1, 3, *size))
    assert y.shape[1:3] == tuple(-(-s // 32) for s in size)
    assert model.forward_head(y).isfinite().all()


def test_no_weight_decay():
    model = timm.create_model("spatialmamba_pico", device="meta")
    assert {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()} == {"A_logs", "Ds", "dt_projs_bias"}


@pytest.mark.parametrize(
    ("name", "network", "scan"),
    [
        ("spatialmamba_tiny", 4.449, 0.018),
        ("spatialmamba_small", 7.089, 0.028),
        ("spatialmamba_base", 15.759, 0.042),
    ],
)
def test_published_gflops(name, network, scan):
    """The official counter's digits: of the network, counted in training mode, and of the states."""
    pytest.importorskip("fvcore")
    model = timm.create_model(name, device="meta")
    blocks = [(i, block.mixer) for i, stage in enumerate(model.stages) for block in stage.blocks]
    states = sum(7 * (56 // 2**i) ** 2 * mixer.d_inner for i, mixer in blocks)
    assert round(states / 1e9, 3) == scan
    assert round((paper_flops(model) - states) / 1e9, 3) == network
