"""Files of the official training of Mamba YOLO: whole modules in half precision, of classes not installed."""

import functools
import sys
import types

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from vssm.checkpoint import CheckpointError, load_checkpoint, read_checkpoint, unwrap_state_dict
from vssm.engine.checkpoint import load_weights
from vssm.mm import convert_detector_checkpoint

from .test_yolo import detector_of, official_of

KEY = "_unit_detector"


@pytest.fixture
def official_classes(monkeypatch):
    """Classes under the official names, which are gone when a file is read."""
    module = types.ModuleType("ultralytics.nn.tasks")
    for name, bases in (("DetectionModel", (nn.Module,)), ("SS2D", (nn.Module,)), ("IterableSimpleNamespace", ())):
        setattr(module, name, type(name, bases, {"__module__": module.__name__}))
    core = type("SelectiveScanCore", (torch.autograd.Function,), {"__module__": module.__name__})
    module.SelectiveScanCore = core
    with monkeypatch.context() as patch:
        for name in ("ultralytics", "ultralytics.nn"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        yield module
    assert "ultralytics" not in sys.modules


def whole(classes, weights):
    """A tree of modules with these parameters and buffers, and with what the official ones hold besides."""
    root = classes.DetectionModel()
    root.args, root.names, root.yaml = classes.IterableSimpleNamespace(), {0: "digit"}, {"nc": 3}
    for name, value in weights.items():
        module, *parts = root, *name.split(".")
        for part in parts[:-1]:
            if part not in module._modules:
                inner = classes.SS2D() if part == "op" else nn.Sequential()
                inner.drop_path, inner.act = DropPath(0.1), nn.SiLU()
                inner.selective_scan = functools.partial(classes.SelectiveScanCore.apply, backend="core")
                module.add_module(part, inner)
            module = module._modules[part]
        if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked"):
            module.register_buffer(parts[-1], value)
        else:
            module.register_parameter(parts[-1], nn.Parameter(value))
    root.register_buffer("scratch", torch.ones(3), persistent=False)
    return root.half()


def save(path, classes, key="ema", weights=None):
    weights = weights or {**official_of(KEY), "model.21.dfl.conv.weight": torch.arange(16.0).view(1, 16, 1, 1)}
    file = {
        "epoch": 3,
        "best_fitness": 0.4,
        "model": None,
        "ema": None,
        "optimizer": None,
        "train_args": {"imgsz": 640},
    }
    torch.save({**file, key: whole(classes, weights)}, path)
    return {name: value.half().float() if value.is_floating_point() else value for name, value in weights.items()}


@pytest.mark.parametrize("key", ["ema", "model"])
def test_all_weights_come_out_in_float32(key, tmp_path, official_classes):
    want = save(tmp_path / "best.pt", official_classes, key)
    del sys.modules["ultralytics.nn.tasks"], sys.modules["ultralytics.nn"], sys.modules["ultralytics"]
    got = unwrap_state_dict(read_checkpoint(tmp_path / "best.pt"), whole=True)
    want = {name.removeprefix("model."): value for name, value in want.items()}
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert {value.dtype for value in got.values()} == {torch.float32, torch.int64}


def test_detector_and_backbone_load_it(tmp_path, official_classes):
    want = save(tmp_path / "best.pt", official_classes)
    detector = detector_of(KEY)
    load_weights(tmp_path / "best.pt", detector)
    loaded = detector.state_dict()
    converted = convert_detector_checkpoint({"state_dict": want}, detector)
    assert loaded.keys() == converted.keys() and all(torch.equal(loaded[name], converted[name]) for name in loaded)
    backbone = timm.create_model("mambayolo_pico", depths=(2, 2, 4, 2))
    load_checkpoint(backbone, tmp_path / "best.pt")
    weights = backbone.state_dict()
    assert all(torch.equal(weights[name], loaded[f"backbone.model.model.{name}"]) for name in weights)
    again = detector_of(KEY, train_cfg=None)
    again.backbone.load_pretrained(str(tmp_path / "best.pt"))
    assert torch.equal(
        again.backbone.state_dict()["model.model.stem.conv1.conv.weight"], weights["stem.conv1.conv.weight"]
    )


def test_what_is_no_weight_is_refused(tmp_path, official_classes):
    """Parts that are missing, a function that would be called, and what is no module."""
    weights = official_of(KEY)
    save(tmp_path / "short.pt", official_classes, weights={k: v for k, v in weights.items() if ".21.cv3." not in k})
    with pytest.raises(CheckpointError, match=r"missing.*cls_branches"):
        load_weights(tmp_path / "short.pt", detector_of(KEY))
    module = official_classes.DetectionModel()
    module.hook = official_classes.SelectiveScanCore.forward
    torch.save({"model": module}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="getattr"):
        read_checkpoint(tmp_path / "code.pt")
    settings = official_classes.IterableSimpleNamespace()
    settings.names = {0: "digit"}
    torch.save({"model": settings}, tmp_path / "settings.pt")
    with pytest.raises(CheckpointError, match=r"settings\.pt' holds .*IterableSimpleNamespace that is no module"):
        read_checkpoint(tmp_path / "settings.pt")
