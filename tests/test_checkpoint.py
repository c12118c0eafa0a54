"""The policy of vssm.checkpoint: what is read, inert and refused, how names are mapped, what fits."""

import datetime
import importlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import vssm
from tests.small import few_stages
from vssm import checkpoint as checkpoints
from vssm.checkpoint import (
    CheckpointError,
    Inert,
    MissingCheckpointError,
    StateDictError,
    build_filter,
    check_fit,
    inert_names,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    rename,
    reshape_like,
    unwrap_state_dict,
)

PICOS = [name for name in vssm.list_models() if name.endswith("_pico")]


def assert_same(got, want):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.fixture(scope="module")
def pico():
    torch.manual_seed(0)
    return timm.create_model("vmamba_pico", num_classes=7)


# ---- reading


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def archive(path, data, storage=b"\0" * 16, **options):
    """A file like those of torch.save around a pickle written by hand."""
    with zipfile.ZipFile(path, "w", **options) as z:
        for name, value in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", "data/0": storage}.items():
            z.writestr(f"a/{name}", value)
    return path


def one_tensor(values=4, size=4, stride=1):
    """The pickle of {"w": tensor}, whose storage and shape claim what the arguments say."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(values) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + number(size) + b"\x85" + number(stride)
    return b"\x80\x02}" + text("w") + tensor + b"\x85\x89ccollections\nOrderedDict\n)RtRs."


class Calls:
    def __init__(self, function, *arguments):
        self.state = function, arguments

    def __reduce__(self):
        return self.state


class Node(dict):
    """A dict with attributes, as configurations are."""


class Options:
    pass


@pytest.fixture
def foreign(monkeypatch):
    """Classes of a package that exists while a file is written, and not when it is read."""
    module = types.ModuleType("strange.config")
    for cls in (Node, Options):
        monkeypatch.setattr(cls, "__module__", "strange.config")
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "strange", types.ModuleType("strange"))
    monkeypatch.setitem(sys.modules, "strange.config", module)

    def forget():
        monkeypatch.delitem(sys.modules, "strange.config")
        monkeypatch.delitem(sys.modules, "strange")

    return forget


def test_one_policy_under_every_name():
    assert vssm.models.read_checkpoint is read_checkpoint
    assert importlib.import_module("vssm.models._checkpoint").unwrap_state_dict is unwrap_state_dict


def test_the_engine_raises_the_same_error():
    pytest.importorskip("mmengine")
    assert importlib.import_module("vssm.engine").CheckpointError is CheckpointError


def test_what_is_read(tmp_path):
    content = {
        "weights": {"w": torch.arange(6.0).reshape(2, 3).t(), "half": torch.ones(2, dtype=torch.bfloat16)},
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": [1, 2.5, None, True, "text", b"bytes", (1, 2), {3}, 2**80],
        "numpy": [np.float64(82.6), np.int64(7), np.arange(6, dtype=np.int32).reshape(2, 3), np.array(["a", "bc"])],
        "ordered": OrderedDict(a=1),
        "empty": torch.empty(0, 3),
    }
    back = read_checkpoint(save(tmp_path / "x.pth", content))
    assert_same(back["weights"], content["weights"])
    assert back["plain"] == content["plain"] and back["ordered"] == {"a": 1} and back["empty"].shape == (0, 3)
    assert back["numpy"][:2] == [82.6, 7] and back["numpy"][2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert back["numpy"][3].tolist() == ["a", "bc"]
    assert inert_names(back) == []
    save_file({"w": torch.ones(2)}, tmp_path / "named_otherwise.bin")
    assert read_checkpoint(tmp_path / "named_otherwise.bin")["w"].tolist() == [1, 1]


def test_what_is_inert(tmp_path, foreign):
    node, options = Node(a=1), Options()
    options.anything = node.attribute = 5
    counts = defaultdict(list)
    counts["x"].append(1)
    content = {"node": node, "options": options, "path": Path("x"), "day": datetime.date(2024, 5, 1), "counts": counts}
    save(tmp_path / "x.pth", {"model": {"w": torch.ones(1)}, **content})
    foreign()
    back = read_checkpoint(tmp_path / "x.pth")
    assert back["node"] == {"a": 1} and back["counts"] == {"x": [1]}
    assert isinstance(back["options"], Inert) and repr(back["options"]) == "<inert strange.config.Options>"
    assert {"strange.config.Node", "strange.config.Options", "datetime.date"} <= set(inert_names(back))
    assert inert_names(back["model"]) == []


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("true",), "posix.system"),
        (exec, ("1",), "builtins.exec"),
        (eval, ("1",), "builtins.eval"),
        (getattr, (nn.Linear, "forward"), "builtins.getattr"),
        (importlib.import_module, ("antigravity",), "importlib.import_module"),
        (torch.load, ("x",), "torch.serialization.load"),
        (bytearray, (1 << 40,), "builtins.bytearray"),
        (__import__("subprocess").Popen, (["true"],), "subprocess.Popen"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_refused(function, arguments, name, tmp_path):
    save(tmp_path / "x.pth", {"model": {"w": torch.ones(1)}, "extra": Calls(function, *arguments)})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert f"holds code ({name})" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("weights_only", "truncated", "safe_globals"))


def test_a_pickled_module_is_refused_by_name(tmp_path, pico, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_state_dict", lambda *a, **k: pytest.fail("timm read the file"))
    save(tmp_path / "whole.pth", pico)
    with pytest.raises(CheckpointError, match=r"vssm\.models\.vmamba\.VMamba.*state_dict\(\)"):
        timm.create_model("vmamba_pico", pretrained=True, pretrained_cfg_overlay=dict(file=tmp_path / "whole.pth"))
    save(tmp_path / "nested.pth", {"model": nn.Linear(1, 1), "epoch": 1})
    with pytest.raises(CheckpointError, match=r"Linear under 'model'"):
        unwrap_state_dict(read_checkpoint(tmp_path / "nested.pth"))


def itself():
    return b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s."


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "truncated"),
    "zeros": (lambda path: path.write_bytes(b"\0" * 999), "zeros"),
    "a text": (lambda path: path.write_text("hello"), "truncated or not a PyTorch checkpoint"),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "a web page"),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a bare pickle"),
    "a start without an end": (lambda path: path.write_bytes(b"PK\3\4" + b"x" * 999), "truncated"),
    "another zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"), "zip|truncated"),
    "a list": (lambda path: save(path, [1, 2]), "holds a list"),
    "no pickle": (lambda path: archive(path, b""), "damaged"),
    "a cut text": (lambda path: archive(path, b"\x80\x02X\xff\xff\xff\x7fabc."), "damaged"),
    "an unknown instruction": (lambda path: archive(path, b"\x80\x02\xff."), "damaged"),
    "a negative number of values": (lambda path: archive(path, one_tensor(values=-4)), "damaged"),
    "more values than stored": (lambda path: archive(path, one_tensor(values=5)), "damaged"),
    "a tensor beyond its storage": (lambda path: archive(path, one_tensor(size=5)), "damaged"),
    "one value for many": (lambda path: archive(path, one_tensor(size=10**12, stride=0)), "damaged"),
    "itself": (lambda path: archive(path, itself()), "holds itself"),
    "deep": (
        lambda path: archive(path, b"\x80\x02" + (b"}" + text("model")) * 20000 + b"}" + b"s" * 20000 + b"."),
        "nested deeper",
    ),
    "compressed": (lambda path: archive(path, one_tensor(), compression=zipfile.ZIP_DEFLATED), "compressed archive"),
    "another protocol": (lambda path: save(path, {"w": torch.ones(1)}, pickle_protocol=4), "pickle protocol 4"),
    "a folder": (lambda path: path.mkdir(), "is not a file"),
    "a pipe": (os.mkfifo, "is not a file"),
    "an array of objects": (lambda path: save(path, {"a": np.array([{}, 1], dtype=object)}), "array of objects"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damages(damage, tmp_path):
    make, says = DAMAGES[damage]
    make(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth' .*({says})") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_sound_file_written_by_hand_is_read(tmp_path):
    assert read_checkpoint(archive(tmp_path / "x.pth", one_tensor()))["w"].tolist() == [0] * 4


@pytest.mark.parametrize("keep", [10, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cut_files(keep, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    save(path, {"w": torch.ones(99)}) if suffix == ".pth" else save_file({"w": torch.ones(99)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(CheckpointError, match=r"x\.\w+' is truncated"):
        read_checkpoint(path)


def test_a_missing_file_is_two_errors_in_one(tmp_path):
    for kind in (MissingCheckpointError, FileNotFoundError, ValueError):
        with pytest.raises(kind, match=r"absent\.pth' does not exist"):
            read_checkpoint(tmp_path / "absent.pth")


def test_old_formats_are_named(tmp_path, pico):
    save(tmp_path / "x.pth", pico.state_dict(), _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6.*save the state dict again") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert "truncated" not in str(caught.value)


# ---- names

WRAPPERS = {
    "parallel": "module.",
    "compiled": "_orig_mod.",
    "parallel, compiled": "module._orig_mod.",
    "compiled, parallel": "_orig_mod.module.",
    "sharded": "_fsdp_wrapped_module.",
    "ours or Lightning": "model.",
    "parallel, ours": "module.model.",
}


@pytest.mark.parametrize(
    "key", ["", "model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema", "ema_model"]
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper, key, pico):
    own = pico.state_dict()
    weights = {WRAPPERS[wrapper] + name: value for name, value in own.items()}
    assert_same(unwrap_state_dict({key: weights, "epoch": 3} if key else weights), own)


def test_wrappers_of_parts_and_averages(pico):
    own = pico.state_dict()
    parts = {name.replace("blocks.0.", "blocks.0._orig_mod._checkpoint_wrapped_module."): v for name, v in own.items()}
    assert_same(unwrap_state_dict(parts), own)
    averaged = torch.optim.swa_utils.AveragedModel(pico).state_dict()
    assert "n_averaged" in averaged
    assert_same(unwrap_state_dict({"state_dict_ema": averaged}), own)


def test_averaged_weights_win_unless_told():
    both = {"model": {"w": torch.zeros(1)}, "model_ema": {"w": torch.ones(1)}}
    assert unwrap_state_dict(both)["w"] == 1 and unwrap_state_dict(both, averaged=False)["w"] == 0


def test_detectors_give_their_backbone_or_all():
    weights = {"backbone.stem.w": torch.ones(1), "neck.w": torch.ones(2)}
    assert list(unwrap_state_dict({"state_dict": weights})) == ["stem.w"]
    assert list(unwrap_state_dict({"state_dict": weights}, whole=True)) == list(weights)


def test_names_that_are_none():
    with pytest.raises(CheckpointError, match="not text: 7"):
        unwrap_state_dict({7: torch.ones(1), "w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="w twice"):
        unwrap_state_dict({"a._orig_mod.w": torch.ones(1), "a.w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="twice"):
        rename({"a": torch.ones(1), "b": torch.ones(1)}, [("b", "a")])
    with pytest.raises(CheckpointError, match="no weights; its keys are epoch"):
        unwrap_state_dict({"epoch": 1})
    nested: dict = {}
    nested["model"] = nested
    with pytest.raises(CheckpointError, match="holds itself"):
        unwrap_state_dict(nested)


@pytest.mark.parametrize("key", ["evil\x1b[2J\x07", "k" * 3_000_000, "new\nline"])
def test_keys_of_any_kind_make_a_sentence(key, pico):
    with pytest.raises(CheckpointError) as caught:
        check_fit({**pico.state_dict(), key: torch.ones(1)}, pico)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


# ---- fit


def test_only_sizes_of_one_come_and_go():
    own = {"w": torch.empty(3, 4), "split": torch.empty(2, 3, 4), "joined": torch.empty(6, 4)}
    given = {"w": torch.rand(3, 4, 1, 1), "split": torch.rand(6, 4), "joined": torch.rand(2, 3, 4)}
    weights = dict(given)
    reshape_like(weights, own)
    assert torch.equal(weights["w"], given["w"][..., 0, 0])
    assert weights["split"].shape == (6, 4) and weights["joined"].shape == (2, 3, 4)
    reshape_like(weights, own, stacked=("split", "joined"))
    assert torch.equal(weights["split"].flatten(0, 1), given["split"])
    assert torch.equal(weights["joined"], given["joined"].flatten(0, 1))
    for shape in ((4, 3), (12,), (2, 6), (4, 1, 3)):
        weights = {"w": torch.rand(shape)}
        reshape_like(weights, own, stacked=("w",) if len(shape) == 2 else ())
        assert weights["w"].shape == shape


def odd_tensors():
    whole = torch.rand(3, 2)

    class Kind(torch.Tensor):
        pass

    yield "meta", whole.to("meta")
    yield "sparse", whole.to_sparse()
    yield "quantised", torch.quantize_per_tensor(whole, 0.1, 0, torch.qint8)
    yield "class Kind", whole.as_subclass(Kind)
    yield "int64 instead of float32", whole.long()
    yield "bool instead of float32", whole.bool()
    yield "complex64 instead of float32", whole.to(torch.complex64)
    yield "NaN or infinite", whole * float("nan")
    yield "NaN or infinite", torch.full((3, 2), float("-inf"))
    yield "NaN or infinite", torch.full((3, 2), 1e300, dtype=torch.float64)
    yield "wrong shape weight", whole.t()


@pytest.mark.parametrize(("says", "value"), odd_tensors(), ids=lambda value: value if isinstance(value, str) else "")
def test_odd_tensors_leave_the_model_as_it_was(says, value):
    model = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=says):
        load_weights(model, {"bias": torch.ones(3), "weight": value})
    assert_same(model.state_dict(), before)


def test_what_may_differ_from_the_model():
    model = nn.BatchNorm1d(2)
    weights = {name: value.double() for name, value in model.state_dict().items()}
    load_weights(model, {**weights, "num_batches_tracked": torch.tensor(5.0)})
    assert model.num_batches_tracked == 5
    with pytest.raises(CheckpointError, match="num_batches_tracked"):
        load_weights(model, {**weights, "num_batches_tracked": torch.tensor(5.5)})
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    load_weights(model, model.state_dict())


def test_missing_unexpected_and_misshapen_are_named():
    with pytest.raises(CheckpointError, match=r"missing bias; unexpected other"):
        check_fit({"weight": torch.ones(3, 2), "other": torch.ones(1)}, nn.Linear(2, 3))
    with pytest.raises(CheckpointError, match=r"weight \(4, 2\) instead of \(3, 2\)"):
        check_fit({"weight": torch.ones(4, 2), "bias": torch.ones(3)}, nn.Linear(2, 3))
    with pytest.raises(CheckpointError, match=r"weight \(4, 5\) instead of \(3, 2\)"):
        check_fit({"weight": torch.ones(4, 5), "bias": torch.ones(3)}, nn.Linear(2, 3), free={"weight": 0})
    check_fit({"weight": torch.ones(4, 2), "bias": torch.ones(3)}, nn.Linear(2, 3), free={"weight": 0})


# ---- families


def test_a_family_needs_a_table_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 2, 1), nn.Linear(2, 5)
            self.pretrained_cfg = dict(first_conv="stem", classifier="head")

    filter_fn, net = build_filter(((r"^patch\.", "stem."), (r"^fc\.", "head."))), Net()
    official = {name.replace("stem.", "patch.").replace("head.", "fc."): v for name, v in net.state_dict().items()}
    assert_same(filter_fn({"model": official}, net), net.state_dict())
    assert_same(filter_fn(net.state_dict(), net), net.state_dict())
    other = official | {"fc.weight": torch.ones(9, 2), "fc.bias": torch.ones(9), "patch.weight": torch.ones(2, 1, 1, 1)}
    assert filter_fn(other, net)["head.weight"].shape == (9, 2)
    for wrong in ({"fc.weight": torch.ones(9, 3)}, {"patch.weight": torch.ones(4, 3, 1, 1)}):
        with pytest.raises(CheckpointError, match="wrong shape"):
            filter_fn(official | wrong, net)
    del official["patch.weight"]
    with pytest.raises(CheckpointError, match="missing stem.weight"):
        filter_fn(official, net)


def create(name, path, **options):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **options)


@pytest.mark.parametrize("name", PICOS)
def test_a_file_of_ten_classes_loads_with_its_classifier(name, tmp_path):
    torch.manual_seed(0)
    few = few_stages(name)
    source = timm.create_model(name, num_classes=10, **few)
    weights = {f"model.{k}": v for k, v in source.state_dict().items()}
    path = save(tmp_path / "x.pth", {"state_dict": weights, "meta": {}})
    assert_same(create(name, path, num_classes=10, **few).state_dict(), source.state_dict())
    assert_same(create(name, path, **few).state_dict(), source.state_dict())
    other = create(name, path, num_classes=3, **few)
    layers = other.pretrained_cfg["classifier"]
    fresh = tuple(f"{layer}." for layer in ([layers] if isinstance(layers, str) else layers))
    for key, value in other.state_dict().items():
        assert key.startswith(fresh) or torch.equal(value, source.state_dict()[key]), key
    with pytest.raises(CheckpointError, match="10 classes, not of 1000"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=1000), **few)
    with pytest.raises(StateDictError, match="other names.*load_checkpoint"):
        timm.create_model(name, num_classes=10, checkpoint_path=str(path), **few)
    with pytest.raises(StateDictError, match="of 10 classes.*num_classes=10"):
        timm.create_model(name, num_classes=3, checkpoint_path=str(path), **few)
    with pytest.raises(StateDictError):
        timm.create_model(name, num_classes=10, **few).load_state_dict(read_checkpoint(path), strict=False)


def test_images_of_other_channels(tmp_path):
    torch.manual_seed(0)
    grey = timm.create_model("vmamba_pico", in_chans=1, num_classes=4)
    path = save(tmp_path / "x.pth", grey.state_dict())
    assert_same(create("vmamba_pico", path, in_chans=1).state_dict(), grey.state_dict())
    for options in ({}, {"in_chans": 2}):
        with pytest.raises(CheckpointError, match="images of 1 channels"):
            create("vmamba_pico", path, **options)


@pytest.mark.parametrize("name", PICOS)
def test_a_transposed_matrix_never_loads(name):
    model = timm.create_model(name, num_classes=10)
    own = model.state_dict()
    filter_fn = sys.modules[type(model).__module__].checkpoint_filter_fn
    sides = {key: [n for n in value.shape if n != 1] for key, value in own.items()}
    keys = [key for key, shape in sides.items() if len(shape) == 2 and shape[0] != shape[1]]
    assert len(keys) > 10
    for key in keys:
        with pytest.raises(CheckpointError, match="wrong shape"):
            filter_fn({**own, key: own[key].squeeze().t().contiguous()}, model)


def test_load_checkpoint_is_all_or_nothing(tmp_path, pico):
    path = save(tmp_path / "x.pth", {"model": pico.state_dict()})
    other = timm.create_model("vmamba_pico", num_classes=3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"x\.pth' cannot be loaded: .*head\.fc\.weight"):
        load_checkpoint(other, path)
    assert_same(other.state_dict(), before)
    assert load_checkpoint(other, path, new_classifier=True) == ["head.fc.weight", "head.fc.bias"]
    loaded = other.state_dict()
    assert torch.equal(loaded["head.fc.weight"], before["head.fc.weight"])
    assert all(torch.equal(loaded[k], v) for k, v in pico.state_dict().items() if not k.startswith("head.fc."))


def test_class_layers_of_detectors_are_those_outside_of_the_backbone(pico):
    class Detector(nn.Module):
        def __init__(self, classes, backbone):
            super().__init__()
            self.backbone, self.head = backbone, nn.Linear(4, classes)

    weights = Detector(80, timm.create_model("vmamba_pico", num_classes=7)).state_dict()
    detector = Detector(2, pico)
    assert checkpoints.class_layers(detector, weights) == ["head.weight", "head.bias"]
    weights["backbone.norm.weight"] = torch.ones(3)
    assert checkpoints.class_layers(detector, weights) == ["head.weight", "head.bias"]


def test_buffers_are_read_as_files_are(tmp_path, pico):
    buffer = io.BytesIO()
    torch.save(pico.state_dict(), buffer)
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    assert_same(read_checkpoint(tmp_path / "x.pth"), pico.state_dict())
