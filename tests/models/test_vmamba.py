"""VMamba beyond its parity vectors: checkpoints in every layout, pretrained loading, hubs, compilation, encoders."""

import functools
import pickle
import re
import sys
import types
import zipfile

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

import vssm
from tests import parity
from vssm.models import read_checkpoint
from vssm.models.vmamba import checkpoint_filter_fn

PUBLISHED = [n for n in vssm.list_models("vmamba_*") if timm.get_pretrained_cfg(n).url]


SHALLOW = dict(depths=(1, 1, 1, 1))


@functools.cache
def _weights(key: str) -> dict[str, torch.Tensor]:
    """The official keys of the first block of every stage: all kinds of keys there are, at a tenth of the cost."""
    shapes = parity.load("vmamba")["variants"][key]["state_dict"]
    shapes = {k: v for k, v in shapes.items() if ".blocks." not in k or ".blocks.0." in k}
    return parity.state_dict({"state_dict": shapes})


def official_checkpoint() -> dict[str, torch.Tensor]:
    """A shallow VMamba-T[s1l8] in the present official layout."""
    return dict(_weights("vmamba_tiny_s1l8"))


def vanilla_checkpoint() -> dict[str, torch.Tensor]:
    return dict(_weights("vanilla_vmamba_tiny"))


def load(checkpoint, name="vmamba_tiny_s1l8", **kwargs):
    model = timm.create_model(name, device="meta", **SHALLOW, **kwargs)
    return checkpoint_filter_fn(checkpoint, model)


def assert_same(got: dict, want: dict):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("key", ["model", "model_ema", "state_dict", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_nested_and_prefixed(key, prefix):
    official = official_checkpoint()
    nested = {key: {f"{prefix}{k}": v for k, v in official.items()}, "epoch": 3}
    assert_same(load(nested), load(official))


def test_averaged_weights_win():
    official = official_checkpoint()
    averaged = {k: v + 1 for k, v in official.items()}
    assert_same(load({"model": official, "model_ema": averaged}), load(averaged))


def test_linear_layers_saved_as_convolutions():
    official = official_checkpoint()
    linear = re.compile(r"(in_proj|out_proj|fc1|fc2)\.weight$")
    convolved = {k: v[:, :, None, None] if linear.search(k) else v for k, v in official.items()}
    assert sum(v.dim() == 4 for v in convolved.values()) > sum(v.dim() == 4 for v in official.values())
    assert_same(load(convolved), load(official))


def test_one_file_layout():
    flat = {}
    for k, v in official_checkpoint().items():
        k = k.replace("x_proj_weight", "x_proj.weight").replace("dt_projs_weight", "dt_projs.weight")
        flat[k] = v.flatten(0, 1) if "x_proj." in k or "dt_projs.weight" in k else v
    assert_same(load(flat), load(official_checkpoint()))


def test_one_file_layout_of_patch_merging():
    names = {"downsample.norm.": "downsample.1.", "downsample.reduction.": "downsample.2."}
    flat = {}
    for k, v in vanilla_checkpoint().items():
        for old, new in names.items():
            k = k.replace(old, new)
        flat[k] = v
    assert_same(load(flat, "vmamba_tiny_v0"), load(vanilla_checkpoint(), "vmamba_tiny_v0"))


def test_early_key_names():
    early = {}
    for k, v in vanilla_checkpoint().items():
        k = k.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        k = re.sub(r"(blocks\.\d+)\.norm\.", r"\1.ln_1.", k).replace(".op.", ".self_attention.")
        k = k.replace("classifier.norm.", "norm.").replace("classifier.head.", "head.")
        early[k] = v
    assert_same(load(early, "vmamba_tiny_v0"), load(vanilla_checkpoint(), "vmamba_tiny_v0"))


def test_own_checkpoint_passes_through():
    model = timm.create_model("vmamba_pico")
    assert_same(checkpoint_filter_fn(model.state_dict(), model), model.state_dict())


# ---- files


class _Node(dict):
    """What yacs keeps a configuration in: a dict subclass with attributes."""


def official_file(path, weights: dict, key: str = "model"):
    """Like a training run of the official code: weights, a pickled yacs node, an optimiser state, numpy scalars."""
    import numpy as np

    module = types.ModuleType("yacs.config")
    module.CfgNode = _Node
    _Node.__module__, _Node.__qualname__, _Node.__name__ = "yacs.config", "CfgNode", "CfgNode"
    sys.modules["yacs.config"] = module
    try:
        config = _Node(MODEL=_Node(NAME="vssm", DROP=0.2), AMP=True)
        config.__dict__["__immutable__"] = True
        optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
        torch.save(
            {key: weights, "optimizer": optimizer, "max_accuracy": np.float64(82.6), "epoch": 264, "config": config},
            path,
        )
    finally:
        del sys.modules["yacs.config"]


def test_official_file_with_a_pickled_config(tmp_path):
    weights = official_checkpoint()
    official_file(tmp_path / "official.pth", weights)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "official.pth", weights_only=True)
    overlay = dict(file=str(tmp_path / "official.pth"))
    model = timm.create_model("vmamba_tiny_s1l8", pretrained=True, pretrained_cfg_overlay=overlay, **SHALLOW)
    assert_same(model.state_dict(), load(weights))
    assert "state_dict" not in model.pretrained_cfg


class _Evil:
    def __reduce__(self):
        return (exec, ("import vssm; vssm.was_run = True",))


def test_no_code_of_a_checkpoint_runs(tmp_path):
    torch.save({"model": official_checkpoint(), "config": _Evil()}, tmp_path / "evil.pth")
    try:
        read_checkpoint(tmp_path / "evil.pth")
    except ValueError as error:
        assert "evil.pth" in str(error)
    assert not hasattr(vssm, "was_run")


def test_safetensors_and_other_classes(tmp_path):
    from safetensors.torch import save_file

    source = timm.create_model("vmamba_pico")
    save_file(source.state_dict(), tmp_path / "pico.safetensors")
    overlay = dict(file=str(tmp_path / "pico.safetensors"))
    same = timm.create_model("vmamba_pico", pretrained=True, pretrained_cfg_overlay=overlay)
    assert_same(same.state_dict(), source.state_dict())
    other = timm.create_model("vmamba_pico", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1)
    assert other.head.fc.weight.shape[0] == 5
    summed = source.state_dict()["stem.conv1.weight"].sum(1, keepdim=True)
    assert torch.allclose(other.state_dict()["stem.conv1.weight"], summed, atol=1e-6)
    backbone = timm.create_model("vmamba_pico", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    assert torch.equal(backbone.model.stem.conv1.weight, source.stem.conv1.weight)


def test_truncated_file(tmp_path):
    official_file(tmp_path / "whole.pth", official_checkpoint())
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"half\.pth' is truncated or not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "half.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth' is truncated or not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "text.pth")
    (tmp_path / "half.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match=r"half\.safetensors' is truncated or not a safetensors file"):
        read_checkpoint(tmp_path / "half.safetensors")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as z:
        z.writestr("a", "b")
    with pytest.raises(ValueError, match=r"zip\.pth"):
        read_checkpoint(tmp_path / "zip.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth' does not exist"):
        read_checkpoint(tmp_path / "absent.pth")


def test_foreign_checkpoint(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    overlay = dict(file=str(tmp_path / "resnet.pth"))
    with pytest.raises(ValueError, match=r"does not fit this VMamba: missing stem\..*unexpected conv1\."):
        timm.create_model("vmamba_pico", pretrained=True, pretrained_cfg_overlay=overlay)


def test_one_missing_key_is_named():
    broken = official_checkpoint()
    del broken["layers.2.blocks.0.op.A_logs"]
    with pytest.raises(ValueError, match=r"missing stages\.2\.blocks\.0\.mixer\.A_logs; unexpected none"):
        load(broken)


def test_another_width_is_named():
    with pytest.raises(ValueError, match=r"wrong shape .*instead of"):
        load(official_checkpoint(), embed_dim=64)


def test_no_weights_in_the_file():
    with pytest.raises(ValueError, match="holds no weights; its keys are epoch"):
        load({"epoch": 1})


def test_unpublished_weights_are_an_error():
    with pytest.raises(ValueError, match="vmamba_pico has no published weights"):
        timm.create_model("vmamba_pico", pretrained=True)


def test_published_urls():
    assert len(PUBLISHED) == 9
    for name in PUBLISHED:
        url = timm.get_pretrained_cfg(name).url
        assert url.startswith("https://github.com/MzeroMiko/VMamba/releases/download/%23v") and url.endswith(".pth")


def test_pretrained_takes_the_file_of_the_config(tmp_path, monkeypatch):
    """The whole path of `pretrained=True`, with the release file served from a local directory."""
    official_file(tmp_path / "vssm1_tiny_0230s_ckpt_epoch_264.pth", official_checkpoint())
    wanted = []

    def download(url, path, *args, **kwargs):
        wanted.append(url)
        (tmp_path / url.rsplit("/", 1)[-1]).rename(path)

    monkeypatch.setattr("timm.models._hub.download_url_to_file", download)
    model = timm.create_model("vmamba_tiny_s1l8", pretrained=True, cache_dir=str(tmp_path / "cache"), **SHALLOW)
    assert wanted == [timm.get_pretrained_cfg("vmamba_tiny_s1l8").url]
    assert_same(model.state_dict(), load(official_checkpoint()))


def test_failed_download_is_one_sentence(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._hub.download_url_to_file", fail)
    with pytest.raises(RuntimeError, match=r"cannot download the weights of vmamba_tiny_s1l8 from https.*by hand"):
        timm.create_model("vmamba_tiny_s1l8", pretrained=True, cache_dir=str(tmp_path))


def test_hub_round_trip(tmp_path):
    source = timm.create_model("vmamba_pico", num_classes=7).eval()
    timm.models.save_for_hf(source, tmp_path, model_config=dict(num_classes=7))
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source(x), back(x))


# ---- options


def test_unknown_scan():
    with pytest.raises(
        ValueError, match="scan must be one of cross, unidirectional, bidirectional, cascade, got 'zigzag'"
    ):
        timm.create_model("vmamba_pico", scan="zigzag")


def test_ssd_takes_no_gate():
    with pytest.raises(ValueError, match="neither a gate nor a cascade"):
        timm.create_model("vmamba_tiny_m2", gate=True)


def test_unknown_model_and_option():
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("vmamba_gigantic")
    with pytest.raises(TypeError, match="not_an_option"):
        timm.create_model("vmamba_pico", not_an_option=1)


@pytest.mark.parametrize("options", [dict(ssd=True, d_state=8), dict(scan="cascade"), dict(gate=True, d_state=4)])
def test_float64_and_half_agree_with_float32(options):
    torch.manual_seed(0)
    model = timm.create_model("vmamba_pico", **options).eval()
    x = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        y = model(x)
        exact = model.double()(x.double())
        half = model.bfloat16()(x.bfloat16())
    assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-5)
    assert torch.allclose(half.double(), exact, rtol=0.1, atol=0.05)


def test_no_weight_decay():
    model = timm.create_model("vmamba_pico", device="meta")
    spared = {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()}
    assert spared == {"A_logs", "Ds", "dt_projs_bias"}
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for n, p in model.named_parameters():
        expected = p.dim() > 1 and n.rsplit(".", 1)[-1] not in spared
        assert (id(p) in decayed) == expected, n


# ---- other programs


def test_segmentation_models_encoder():
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = smp.Unet("tu-vmamba_pico", encoder_weights=None, classes=3).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.slow
def test_compile_fullgraph():
    import shutil

    if not any(shutil.which(c) for c in ("g++", "clang++")):
        pytest.skip("torch.compile on a CPU needs a C++ compiler")
    torch.manual_seed(0)
    block = timm.create_model("vmamba_pico").stages[1].blocks[0].train()
    compiled = torch.compile(block, fullgraph=True)
    x = torch.randn(2, 8, 6, 64)
    results = []
    for f in (block, compiled):
        x_ = x.clone().requires_grad_()
        block.zero_grad()
        y = f(x_)
        y.square().mean().backward()
        results.append((y.detach(), x_.grad, block.mixer.A_logs.grad.clone()))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
