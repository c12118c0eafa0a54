"""Official checkpoints of classifiers, detectors and segmentors in our backbones."""

import runpy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from vssm._cli import run
from vssm._errors import UserError
from vssm.engine import CheckpointError
from vssm.mm import VSSMBackbone, convert_detector_checkpoint
from vssm.models.convert import convert_checkpoint

# VMamba's renaming the other way round, in order: ours -> official.
TO_OFFICIAL = (
    ("stem.conv1.", "patch_embed.0."),
    ("stem.norm1.", "patch_embed.2."),
    ("stem.conv2.", "patch_embed.5."),
    ("stem.norm2.", "patch_embed.7."),
    ("head.fc.", "classifier.head."),
    (".norm1.", ".norm."),
    (".mixer.conv.", ".mixer.conv2d."),
    (".mixer.x_proj.weight", ".mixer.x_proj_weight"),
    (".mixer.", ".op."),
    (".downsample.conv.", ".downsample.1."),
    (".downsample.norm.", ".downsample.3."),
)


def official_vmamba(weights):
    """A VMamba's weights under the names of the authors' code, whose stages end in the downsampling."""
    result = {}
    for name, value in weights.items():
        if name.startswith("norm."):
            name = "classifier." + name
        for ours, theirs in TO_OFFICIAL:
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if parts[0] == "stages":
            number = int(parts[1]) - (parts[2] == "downsample")
            name = ".".join(["layers", str(number), *parts[2:]])
        if name.endswith("x_proj_weight"):
            value = value.unflatten(0, (4, -1)) if value.dim() == 2 else value
        result[name] = value.clone()
    return result


class Detector(nn.Module):
    def __init__(self, **backbone):
        super().__init__()
        self.backbone = VSSMBackbone("vmamba_pico", **backbone)
        self.neck = nn.Conv2d(256, 4, 1)


def official_detector(detector):
    own = detector.state_dict()
    trunk = {
        k.removeprefix("backbone.model.model."): v for k, v in own.items() if k.startswith("backbone.model.model.")
    }
    weights = {"backbone." + name: value for name, value in official_vmamba(trunk).items()}
    rest = {name: value for name, value in own.items() if not name.startswith("backbone.model.")}
    return weights | {name: value.clone() for name, value in rest.items()}


@pytest.fixture
def trained():
    """A detector whose every tensor differs from what a new one has."""
    torch.manual_seed(0)
    detector = Detector()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.normal_()
    return detector


def assert_same(module, other):
    expected = other.state_dict()
    assert module.state_dict().keys() == expected.keys()
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_official_names_are_official(trained):
    names = official_detector(trained)
    assert {"backbone.patch_embed.0.weight", "backbone.layers.0.blocks.0.op.A_logs", "backbone.outnorm3.bias"} <= set(
        names
    )
    assert "backbone.layers.0.downsample.1.weight" in names and "backbone.layers.3.downsample.1.weight" not in names
    assert not any(name.startswith("backbone.model") for name in names)


@pytest.mark.parametrize("wrapped", [False, True])
def test_official_detector_into_ours(trained, wrapped):
    weights = official_detector(trained)
    checkpoint = {"state_dict": {"module." + k: v for k, v in weights.items()}, "meta": {}} if wrapped else weights
    detector = Detector()
    detector.load_state_dict(convert_detector_checkpoint(checkpoint, detector))
    assert_same(detector, trained)
    # The same on loading alone, and nothing changes for what has our names already.
    detector = Detector()
    detector.load_state_dict(weights)
    assert_same(detector, trained)
    detector = Detector()
    detector.load_state_dict(trained.state_dict())
    assert_same(detector, trained)


@pytest.mark.parametrize("kind", ["official detector", "our detector", "official classifier", "our classifier"])
def test_pretrained_path(trained, kind, tmp_path):
    path = tmp_path / "weights.pth"
    classifier = timm.create_model("vmamba_pico", num_classes=7)
    if "classifier" in kind:
        own = classifier.state_dict()
        torch.save({"model": official_vmamba(own)} if "official" in kind else {"state_dict": own, "meta": {}}, path)
        expected = classifier
    else:
        torch.save({"state_dict": official_detector(trained) if "official" in kind else trained.state_dict()}, path)
        expected = trained.backbone.model.model
    backbone = VSSMBackbone("vmamba_pico", pretrained=str(path))
    same = VSSMBackbone("vmamba_pico", init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    assert_same(backbone, same)
    for name, value in backbone.model.model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    if "detector" in kind:
        assert torch.equal(backbone.outnorm2.weight, trained.backbone.outnorm2.weight)
    else:
        assert torch.equal(backbone.outnorm2.weight, torch.ones(128))


def test_pretrained_with_other_channels_and_fewer_stages(tmp_path):
    classifier = timm.create_model("vmamba_pico")
    torch.save({"model": official_vmamba(classifier.state_dict())}, tmp_path / "weights.pth")
    backbone = VSSMBackbone("vmamba_pico", str(tmp_path / "weights.pth"), out_indices=(0, 1), in_chans=1)
    summed = classifier.stem.conv1.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(backbone.model.model.stem.conv1.weight, summed)
    assert len(backbone.model.model.stages) == 2


@pytest.mark.parametrize("name", ["groupmamba_pico", "vssd_pico", "vssm_efficientvim_pico", "resnet10t"])
def test_classifiers_of_other_families(name, tmp_path):
    classifier = timm.create_model(name)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "weights.pth")
    indices = tuple(range(min(len(classifier.feature_info), 4)))
    backbone = VSSMBackbone(name, str(tmp_path / "weights.pth"), out_indices=indices)
    expected = classifier.state_dict()
    loaded = backbone.model.model.state_dict()
    assert len(loaded) > 40
    for key, value in loaded.items():
        if not key.startswith("head"):
            assert torch.equal(value, expected[key]), key
    assert ("norm.weight" in loaded) == (name == "groupmamba_pico")


def test_what_does_not_fit_is_refused(trained, tmp_path):
    path = tmp_path / "weights.pth"
    weights = official_detector(trained)

    def refused(changed, text):
        torch.save({"state_dict": changed}, path)
        with pytest.raises(CheckpointError, match=text):
            VSSMBackbone("vmamba_pico", pretrained=str(path))

    refused({k: v for k, v in weights.items() if "A_logs" not in k}, "missing .*A_logs")
    refused(weights | {"backbone.layers.0.extra": torch.ones(1)}, "unexpected .*extra")
    refused(weights | {"backbone.outnorm1.weight": torch.ones(3)}, "wrong shape .*outnorm1.weight")
    refused({k: v for k, v in weights.items() if "outnorm1" not in k}, "lacks outnorm1|missing .*outnorm1")
    refused({"backbone.stage1.conv.weight": torch.ones(1)}, "does not fit")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        VSSMBackbone("vmamba_pico", pretrained=str(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert_classifier(suffix, tmp_path):
    classifier = timm.create_model("vmamba_pico", num_classes=7)
    official = official_vmamba(classifier.state_dict())
    torch.save({"model": official, "optimizer": {"state": {}}, "config": Path("x")}, tmp_path / "in.pth")
    out = tmp_path / f"out{suffix}"
    assert "a classifier" in convert_checkpoint(tmp_path / "in.pth", out, "vmamba_pico")
    loaded = timm.create_model("vmamba_pico", num_classes=7, checkpoint_path=str(out))
    assert_same(loaded, classifier)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.pth", out.name])


def test_convert_detector(trained, tmp_path):
    torch.save({"state_dict": official_detector(trained), "meta": {"epoch": 12}}, tmp_path / "in.pth")
    assert "a detector" in convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.safetensors", "vmamba_pico")
    detector = Detector()
    detector.load_state_dict(load_file(tmp_path / "out.safetensors"))
    assert_same(detector, trained)


@pytest.mark.parametrize(
    ("source", "target", "model", "text"),
    [
        ("nowhere.pth", "out.pth", "vmamba_pico", "does not exist"),
        ("in.pth", "out.onnx", "vmamba_pico", "must end in"),
        ("in.pth", "out.pth", "vmamba_picco", "did you mean"),
        ("in.pth", "out.pth", "vssd_pico", "does not fit"),
    ],
)
def test_conversion_mistakes_write_nothing(source, target, model, text, tmp_path):
    torch.save({"model": official_vmamba(timm.create_model("vmamba_pico").state_dict())}, tmp_path / "in.pth")
    with pytest.raises(UserError, match=text):
        convert_checkpoint(tmp_path / source, tmp_path / target, model)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_conversion_tool(tmp_path, capsys):
    torch.save(official_vmamba(timm.create_model("vmamba_pico").state_dict()), tmp_path / "in.pth")
    main = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"))["main"]
    words = [str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--model", "vmamba_pico"]
    assert run(main, words) == 0
    assert "tensors of a classifier with vmamba_pico" in capsys.readouterr().out
    assert run(main, [words[0], "out.onnx", *words[2:]]) == 2
    assert "must end in" in capsys.readouterr().err
