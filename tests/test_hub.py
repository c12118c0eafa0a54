"""A checkpoint as a folder for the hub: what timm and transformers make of it is what the checkpoint holds."""

import json
import os
import pickle
import re

import pytest
import timm
import torch
import yaml
from safetensors import safe_open

from tests.models.tester import Official, assert_same
from vssm._errors import UserError
from vssm.checkpoint import CheckpointError
from vssm.commands import main
from vssm.hub import write_hub_folder
from vssm.models import families
from vssm.models.create import ModelError, create_model
from vssm.published import COLLECTIONS, PUBLISHED

OFFICIAL = Official("vmamba", "vmamba_tiny_s1l8")
# Of its one block a stage. Plain values, so they travel in config.json.
OPTIONS = dict(depths=[1, 1, 1, 1])
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint in the official layout."""
    path = tmp_path_factory.mktemp("official") / "vssm1_tiny.pth"
    torch.save({"model": OFFICIAL.weights()}, path)
    return path


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "vmamba_tiny_s1l8"
    write_hub_folder(source, out, OFFICIAL.name, **OPTIONS)
    return out


@pytest.fixture(scope="module")
def expected():
    """The official weights in a model, by the family's own filter."""
    model = timm.create_model(OFFICIAL.name, **OPTIONS).eval()
    model.load_state_dict(OFFICIAL.convert(OFFICIAL.weights()))
    return model


def card_of(folder):
    """The metadata and the text of a model card."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_timm_loads_the_folder(folder, expected):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert_same(model.state_dict(), expected.state_dict())
    with torch.no_grad():
        assert torch.equal(model(IMAGE), expected(IMAGE))
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)
    assert torch.equal(other.stem.conv1.weight, expected.stem.conv1.weight) and other.head.fc.out_features == 5


def test_transformers_loads_the_folder(folder, expected):
    transformers = pytest.importorskip("transformers", reason="transformers is in none of the extras")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert_same(model.timm_model.state_dict(), expected.state_dict())
    with torch.no_grad():  # weights that lie elsewhere in memory round otherwise
        torch.testing.assert_close(model(IMAGE).logits, expected(IMAGE))


def test_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert {k: v for k, v in config.items() if k != "pretrained_cfg"} == {
        "architecture": "vmamba_tiny_s1l8",
        "num_classes": 1000,
        "num_features": 768,
        "model_args": {"depths": [1, 1, 1, 1]},
    }
    cfg = config["pretrained_cfg"]
    assert cfg["input_size"] == [3, 224, 224] and cfg["tag"] == "in1k" and cfg["first_conv"] == "stem.conv1"
    assert not {"url", "file", "hf_hub_id", "state_dict", "architecture"} & cfg.keys()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_model_card(folder):
    head, text = card_of(folder)
    known, collection = PUBLISHED["vmamba_tiny_s1l8.in1k"], COLLECTIONS["VMamba"]
    assert head["license"] == collection.license
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == float(known.top1)
    assert f"| {known.params} | {known.gflops} | {known.top1} |" in text
    for said in ("Published by the authors", "not measured on this file", collection.paper, "eprint = {2401.10166}"):
        assert said in text
    assert re.search(r"`vssm1_tiny.pth` \(SHA-256 `[0-9a-f]{64}`\)", text)


def test_a_model_of_ones_own_shows_no_published_figure(tmp_path):
    torch.save(timm.create_model("vmamba_pico", num_classes=3).state_dict(), tmp_path / "own.pth")
    write_hub_folder(tmp_path / "own.pth", tmp_path / "out", "vmamba_pico")
    head, text = card_of(tmp_path / "out")
    assert "model-index" not in head and "Published by the authors" not in text and "with 3 classes" in text
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.num_classes == 3


# That a family has its data file is for tests/test_zoo.py to say.
FAMILIES = {name: f for f in families() if f.title in COLLECTIONS for name in f.variants if name.endswith("_pico")}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_makes_the_round_trip(name, tmp_path, monkeypatch):
    """And back in a model they compute the same."""
    family, model = FAMILIES[name], timm.create_model(name, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    monkeypatch.chdir(tmp_path)
    said = write_hub_folder("own.pth", "out", name)
    back = timm.create_model("local-dir:out", pretrained=True).eval()
    assert_same(back.state_dict(), model.state_dict())
    with torch.no_grad():
        assert torch.equal(back(IMAGE), model(IMAGE))
    granted = not COLLECTIONS[family.title].license.startswith("unspecified")
    assert ("grant no licence" in said) == (not granted)


def test_an_existing_folder_stays(folder, source):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match="is not empty, and is not replaced"):
        write_hub_folder(source, folder, OFFICIAL.name, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vmamba", {}, "is a family; name one of its models: .*vmamba_tiny_s1l8"),
        ("resnet18", {}, "is a model of timm"),
        ("vmamba_tinny", {}, "did you mean"),
        ("vmamba_pico", {}, "does not fit"),
        (OFFICIAL.name, {"ssm_act_layer": torch.nn.ReLU}, "plain values"),
    ],
)
def test_refusals_leave_nothing(source, tmp_path, name, options, message):
    with pytest.raises(UserError, match=message):
        write_hub_folder(source, tmp_path / "out", name, **options)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, capsys):
    torch.save(timm.create_model("vmamba_pico", num_classes=2).state_dict(), tmp_path / "own.pth")
    assert not main(["convert", str(tmp_path / "own.pth"), "--hub", str(tmp_path / "out"), "--model", "vmamba_pico"])
    assert "a model card" in capsys.readouterr().out and (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("more", [[], ["out.pth", "--hub", "out"]], ids=["neither", "both"])
def test_command_wants_a_file_or_a_folder(more, capsys):
    with pytest.raises(SystemExit):
        main(["convert", "in.pth", *more, "--model", "vmamba_pico"])
    assert "either a file to write or, with --hub, a folder" in capsys.readouterr().err


class _Command:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_a_folder_is_read_by_our_rules(tmp_path, monkeypatch):
    """Also with versions of timm that unpickle what they find: code stays inert, and no file is chosen by chance."""
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("vmamba_pico").state_dict(), "own.pth")
    write_hub_folder("own.pth", "out", "vmamba_pico")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"out should hold model.safetensors .* no .safetensors"):
        timm.create_model("local-dir:out", pretrained=True)
    (tmp_path / "out" / "a.pth").write_bytes(pickle.dumps({"model": _Command()}))
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        timm.create_model("local-dir:out", pretrained=True)
    assert not (tmp_path / "was_run").exists()
    (tmp_path / "out" / "b.pth").touch()
    with pytest.raises(CheckpointError, match=r"it has a\.pth, b\.pth"):
        timm.create_model("local-dir:out", pretrained=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_args": {"pretrained_cfg_overlay": {"file": "x"}}}, "has pretrained_cfg_overlay among its model_args"),
        ({"model_args": [1]}, "gives model_args as .1., which is no table"),
        ({"pretrained_cfg": {"first_conv": 5}}, "gives first_conv as 5; it is a layer's name"),
        (None, "holds no table of a model's settings"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(change, said, tmp_path):
    settings = [1] if change is None else {"architecture": "vmamba_pico", "num_classes": 3, **change}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=f"config.json' {said}"):
        create_model(f"local-dir:{tmp_path}", pretrained=True)
