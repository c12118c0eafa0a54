"""Official files of weights, downloaded or not, in models; how files are read is tested in tests/test_checkpoint.py."""

import importlib.util
import pickle
import sys
import types

import pytest
import timm
import torch

from vssm.models import vssd

from .tester import Official, assert_same

OFFICIAL = Official("vmamba", "vmamba_tiny_s1l8")


class _Node(dict):
    """Like the class in which yacs keeps a configuration: a dict with attributes."""


@pytest.fixture
def official_file(monkeypatch):
    # Where yacs is not installed, Python looks for the package before the module in it.
    if importlib.util.find_spec("yacs") is None:
        monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    return write_official_file


def write_official_file(path, weights: dict, key: str = "model"):
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


def test_official_file_with_a_pickled_config(tmp_path, official_file):
    weights = OFFICIAL.weights()
    official_file(tmp_path / "official.pth", weights)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "official.pth", weights_only=True)
    overlay = dict(file=str(tmp_path / "official.pth"))
    model = OFFICIAL.create(device=None, pretrained=True, pretrained_cfg_overlay=overlay)
    assert_same(model.state_dict(), OFFICIAL.convert(weights))
    assert "state_dict" not in model.pretrained_cfg


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


def test_foreign_checkpoint(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    overlay = dict(file=str(tmp_path / "resnet.pth"))
    with pytest.raises(ValueError, match=r"VMamba.*stem\..*conv1\."):
        timm.create_model("vmamba_pico", pretrained=True, pretrained_cfg_overlay=overlay)


def test_no_weights_in_the_file():
    with pytest.raises(ValueError, match="epoch"):
        OFFICIAL.convert({"epoch": 1})


def test_pretrained_takes_the_file_of_the_config(tmp_path, monkeypatch, official_file):
    """The whole path of `pretrained=True`, with the release file served from a local directory."""
    official_file(tmp_path / "vssm1_tiny_0230s_ckpt_epoch_264.pth", OFFICIAL.weights())
    wanted = []

    def download(url, path, *args, **kwargs):
        wanted.append(url)
        (tmp_path / url.rsplit("/", 1)[-1]).rename(path)

    monkeypatch.setattr("timm.models._hub.download_url_to_file", download)
    model = OFFICIAL.create(device=None, pretrained=True, cache_dir=str(tmp_path / "cache"))
    assert wanted == [timm.get_pretrained_cfg("vmamba_tiny_s1l8").url]
    assert_same(model.state_dict(), OFFICIAL.convert(OFFICIAL.weights()))


def test_failed_download_is_one_sentence(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._hub.download_url_to_file", fail)
    with pytest.raises(RuntimeError, match=r"vmamba_tiny_s1l8.*https"):
        timm.create_model("vmamba_tiny_s1l8", pretrained=True, cache_dir=str(tmp_path))


def test_unknown_model_and_option():
    with pytest.raises(RuntimeError, match="vmamba_gigantic"):
        timm.create_model("vmamba_gigantic")
    with pytest.raises(TypeError, match="not_an_option"):
        timm.create_model("vmamba_pico", not_an_option=1)


@pytest.mark.parametrize(("name", "key"), [("vssd_micro", "model"), ("vssd_tiny", "model_ema")])
def test_vssd_micro_alone_takes_the_raw_weights(tmp_path, name, key):
    """Of the published files only micro's is not named after its averaged weights."""
    options = dict(depths=(1, 1, 1, 1), dims=16, num_heads=(1, 2, 4, 8), d_state=16, num_classes=10)
    raw = timm.create_model(name, **options).state_dict()
    both = {"model": raw, "model_ema": {k: v + 1 for k, v in raw.items()}}
    torch.save(both, tmp_path / "both.pth")
    overlay = dict(file=str(tmp_path / "both.pth"), num_classes=10)
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    assert_same(loaded.state_dict(), both[key])
    only = {"model": both["model_ema"]}
    assert_same(vssd.checkpoint_filter_fn(only, loaded, averaged=name != "vssd_micro"), both["model_ema"])


def test_addresses_that_nobody_could_verify_are_marked():
    for name in ("efficientvmamba_tiny", "efficientvmamba_small", "efficientvmamba_base"):
        assert "not verified" in timm.get_pretrained_cfg(name).description
