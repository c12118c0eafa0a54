"""`tools/visualize.py` and what it draws of models, images and logs."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vssm._cli import run
from vssm._errors import UserError
from vssm.engine import TimmClassifier, create_model, load_config
from vssm.viz import (
    class_activation,
    curves,
    feature_maps,
    patterns_of,
    plot_activations,
    plot_learning_curves,
    read_log,
)
from vssm.viz.subject import Subject, sample_photographs
from vssm_kernels import Route

REPO = Path(__file__).parents[2]
DIGITS = REPO / "configs/classification/vmamba-pico_digits.py"
SEGMENTOR = REPO / "configs/segmentation/upernet_vmamba-pico_digits-ade.py"
MEDICAL = REPO / "configs/medical/unet-vmamba-pico_mni152.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("visualize", REPO / "tools" / "visualize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *words: run(module.main, [str(word) for word in words])


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """An image of 60 rows and 90 columns."""
    path = tmp_path_factory.mktemp("photo") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory) -> Path:
    """A checkpoint as a run of the demo's config writes it."""
    torch.manual_seed(0)
    model = TimmClassifier(dict(name="vmamba_pico", num_classes=10))
    path = tmp_path_factory.mktemp("run") / "epoch_1.pth"
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": names}}}, path)
    return path


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


# Routes


def test_routes(tool, tmp_path, capsys):
    assert tool("routes", "spatialmamba", "--size", 2, 3, "--out", tmp_path / "new" / "one.GIF") == 0
    with Image.open(tmp_path / "new" / "one.GIF") as picture:
        assert picture.n_frames == 6 and picture.is_animated
        frames = []
        for number in range(6):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")).astype(int))
    # The walk grows: what is drawn stays, and the picture gets darker with every frame.
    assert all(later.sum() < earlier.sum() for earlier, later in zip(frames, frames[1:], strict=False))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["one.GIF"]
    assert tool("routes", "efficientvmamba_pico", "--out", tmp_path / "two.png") == 0
    assert size(tmp_path / "two.png")[0] > 500
    capsys.readouterr()
    assert tool("routes", "vmambaa", "--out", tmp_path / "x.png") == 2
    assert "'vmambaa' is no family (vmamba, " in (error := capsys.readouterr().err) and "did you mean 'vmamba'" in error
    assert tool("routes", "--size", 56, "--out", tmp_path / "x.gif") == 2
    assert "An animation of 9408 frames is too long" in capsys.readouterr().err
    assert tool("routes", "--out", tmp_path / "x.doc") == 2
    assert "'{}' has no suffix of a picture; there are eps, ".format(tmp_path / "x.doc") in capsys.readouterr().err


def test_patterns_of_models():
    assert list(patterns_of(["vmamba", "groupmamba"])) == ["VMamba, GroupMamba, Mamba YOLO, HRVMamba: cross"]
    (pattern,) = patterns_of(["msvmamba_pico"]).values()
    assert [len(sequence) for sequence in pattern] == [1, 3]
    (pattern,) = patterns_of(["efficientvmamba_pico"]).values()
    assert {route.offset for (route,) in pattern} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert patterns_of(["spatialmamba_pico"]) == {"spatialmamba_pico: SpatialFusionSS2D": ((Route(),),)}
    assert [len(pattern) for pattern in patterns_of(["volumes"]).values()] == [6, 3]
    with pytest.raises(UserError, match="'vssd_pico' scans along no routes"):
        patterns_of(["vssd_pico"])


# Models and images


def test_subjects(digits_run, photo):
    named = Subject.from_name("vmamba_pico", checkpoint=digits_run)
    cfg = load_config(str(DIGITS))
    of_run = Subject.from_config(cfg, digits_run)
    assert named.network.num_classes == 10 and of_run.class_name(3) == "three" and named.class_name(3) == "3"
    for mine, theirs in zip(named.network.parameters(), of_run.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (named.side, of_run.side) == (224, 32)
    view = of_run.view(photo)
    assert view.inputs.shape == (1, 3, 32, 64) and view.picture.size == (64, 32) and view.size == (60, 90)
    # Digits are normalised with mean and deviation of a half each.
    pixels = torch.from_numpy(np.array(view.picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close(view.inputs[0], (pixels - 0.5) / 0.5)
    assert of_run.view(photo, (40, 50)).inputs.shape == (1, 3, 40, 50)
    with pytest.raises(UserError, match="epoch_1.pth' cannot be loaded: the checkpoint does not fit"):
        Subject.from_name("vssd_pico", checkpoint=digits_run)
    with pytest.raises(UserError, match="nothing.pth' does not exist"):
        Subject.from_name("vmamba_pico", checkpoint="nothing.pth")


def test_subject_of_a_segmentor(photo):
    pytest.importorskip("mmseg")
    import vssm.mm  # noqa: F401

    subject = Subject.from_config(load_config(str(SEGMENTOR)))
    view = subject.view(photo, (64, 64))
    pixels = torch.from_numpy(np.array(view.picture)).permute(2, 0, 1).double()
    mean, std = (torch.tensor(v)[:, None, None] for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    torch.testing.assert_close(view.inputs[0].double(), (pixels - mean) / std, atol=1e-4, rtol=1e-4)
    assert [m.shape[-1] for m in feature_maps(subject.network, view.inputs)] == [16, 8, 4, 2]


def test_subject_of_a_unet(photo):
    pytest.importorskip("nibabel")
    import vssm.medical.training  # noqa: F401

    subject = Subject.from_config(load_config(str(MEDICAL)))
    view = subject.view(photo, (64, 96))
    grey = torch.from_numpy(np.array(view.picture.convert("L"))).float() / 255
    torch.testing.assert_close(view.inputs[0, 0], (grey - 0.25) / 0.25)
    maps = feature_maps(subject.network, view.inputs)
    assert len(maps) > 4 and maps[0].shape[2:] == (16, 24)


def test_sample_photographs():
    assert [size(path) for path in sample_photographs()] == [(640, 427), (640, 427)]


# Attention


def test_attention(tool, digits_run, photo, tmp_path, capsys):
    words = ["attention", photo, "--config", DIGITS, "--checkpoint", digits_run, "--img-size", 64, "--out", tmp_path]
    assert tool(*words, "--pixel", 0, 89, "--rollout", "--module", "stages.1", "stages.2", "--format", "jpg") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "noise.jpg")
    assert size(tmp_path / "noise.jpg")[0] > 800
    assert tool(*words, "--pixel", 60, 0) == 2
    assert "(row 60, column 0) is outside of the image" in (error := capsys.readouterr().err)
    assert "which has 60 rows and 90 columns." in error
    assert tool(*words, "--module", "stages.7") == 2
    assert "There is no scan 'stages.7'" in capsys.readouterr().err
    assert tool("attention", photo, "--model", "test_convnext", "--img-size", 64, "--out", tmp_path) == 2
    assert "ConvNeXt has no scan of vssm.scans" in capsys.readouterr().err


def test_unreadable_images_are_named_and_passed_over(tool, photo, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:200])
    out = tmp_path / "out"
    words = ["--model", "vmamba_pico", "--img-size", 32, "--module", "stages.0", "--out", out]
    assert tool("attention", broken, photo, photo, *words) == 1
    printed = capsys.readouterr()
    assert f"Image '{broken}' cannot be read" in printed.err and "Warning: random weights" in printed.err
    assert sorted(file.name for file in out.iterdir()) == ["noise.png", "noise_2.png"]
    assert tool("attention", tmp_path / "none.png", *words) == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert tool("attention", tmp_path / "empty", *words) == 2
    assert "holds no images" in capsys.readouterr().err


# Activations


class Detector(torch.nn.Module):
    """Two classes; the logit of each is the mean of its channel of the only stage."""

    num_classes = 2
    feature_info = [{"module": "stage", "num_chs": 2}]

    def __init__(self, channels_last):
        super().__init__()
        self.stage, self.channels_last = torch.nn.Identity(), channels_last

    def forward(self, x):
        x = self.stage(x[:, :2].permute(0, 2, 3, 1) if self.channels_last else x[:, :2])
        return x.mean((1, 2)) if self.channels_last else x.mean((2, 3))

    def forward_intermediates(self, x, **_):
        return [x[:, :2]]


@pytest.mark.parametrize("channels_last", [False, True])
def test_class_activation_is_grad_cam(channels_last):
    image = torch.randn(1, 3, 4, 5).requires_grad_(True)
    heat, label, probability = class_activation(Detector(channels_last), image)
    logits = image[0, :2].mean((1, 2))
    assert label == int(logits.argmax()) and math.isclose(probability, logits.softmax(0).max().item(), rel_tol=1e-5)
    torch.testing.assert_close(heat, image[0, label].relu() / 20)
    heat, label, _ = class_activation(Detector(channels_last), image, label=1)
    torch.testing.assert_close(heat, image[0, 1].relu() / 20)
    with pytest.raises(UserError, match="classes 0 to 1, not 2"):
        class_activation(Detector(channels_last), image, label=2)
    with pytest.raises(UserError, match="stages 0 to 0, not 1"):
        class_activation(Detector(channels_last), image, stage=1)


@pytest.mark.parametrize("name", ["vmamba_pico", "vssm_efficientvim_pico", "vim_pico", "test_convnext"])
def test_activations_of_models(name, tmp_path):
    model = create_model(name, num_classes=5).eval()
    image = torch.randn(1, 3, 128, 128)
    maps = feature_maps(model, image)
    heat, label, _ = class_activation(model, image)
    assert heat.shape == maps[-1].shape[2:] and heat.min() >= 0 and 0 <= label < 5
    plot_activations(Image.new("RGB", (128, 128)), maps, tmp_path / "a.png", heat, "for it")
    assert size(tmp_path / "a.png")[0] > 1000
    with pytest.raises(UserError, match="is no classifier"):
        class_activation(create_model(name, num_classes=0), image)


def test_activations(tool, digits_run, photo, tmp_path, capsys):
    words = ["activations", photo, "--config", DIGITS, "--checkpoint", digits_run, "--out", tmp_path]
    assert tool(*words, "--label", "seven") == 0 and tool(*words, "--label", 9, "--stage", 0) == 0
    assert size(tmp_path / "noise.png")[0] > 1000
    capsys.readouterr()
    assert tool(*words, "--label", "sevn") == 2
    assert "has no class 'sevn' (did you mean 'seven'?)" in capsys.readouterr().err


# Receptive fields


def test_receptive_fields(tool, digits_run, photo, tmp_path, capsys):
    words = ["erf", photo, "--img-size", 32, "--out", tmp_path / "f.png"]
    assert tool(*words, "--model", "vmamba_pico", "test_convnext") == 0
    two = size(tmp_path / "f.png")
    run_words = ["--config", DIGITS, "--checkpoint", digits_run]
    assert tool(*words, *run_words, "--with-untrained") == 0
    assert size(tmp_path / "f.png") == two
    capsys.readouterr()
    assert tool(*words, "--config", DIGITS, "--with-untrained") == 2
    assert "give --checkpoint or --pretrained" in capsys.readouterr().err
    assert tool(*words, "--model", "vmamba_pico", *run_words) == 2
    assert "There are 2 models and 1 checkpoints" in capsys.readouterr().err
    assert tool(*words) == 2
    assert "Name a model with --model" in capsys.readouterr().err
    assert tool(*words, "--model", "vmamba_pic") == 2
    assert "did you mean 'vmamba_pico'" in capsys.readouterr().err
    assert tool(*words, "--model", "vmamba_pico", "--stage", 9) == 2
    assert "vmamba_pico cannot be drawn with images of 32 x 32 pixels: " in capsys.readouterr().err
    assert tool(*words, "--model", "vmamba_pico", "--device", "gpu7") == 2
    assert "--device gpu7 cannot be used" in capsys.readouterr().err


# Overlays


def test_overlay_of_classes(tool, digits_run, photo, tmp_path, capsys):
    assert tool("overlay", photo, photo, "--config", DIGITS, "--checkpoint", digits_run, "--out", tmp_path) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "classes.png")
    assert size(tmp_path / "classes.png")[0] > 700
    assert tool("overlay", photo, "--config", DIGITS, "--out", tmp_path) == 2
    assert "give --checkpoint FILE" in capsys.readouterr().err
    assert tool("overlay", photo, "--out", tmp_path) == 2
    assert "Name one model with --model" in capsys.readouterr().err


def test_overlay_of_segments(tool, photo, tmp_path):
    pytest.importorskip("mmseg")
    from mmengine.registry import MODELS, init_default_scope

    import vssm.mm  # noqa: F401

    cfg = load_config(str(SEGMENTOR))
    init_default_scope("mmseg")
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, tmp_path / "s.pth")
    out = tmp_path / "out"
    assert tool("overlay", photo, "--config", SEGMENTOR, "--checkpoint", tmp_path / "s.pth", "--out", out) == 0
    assert size(out / "noise.png") == (90, 60)


# Learning curves


def write_log(folder, records):
    path = folder / "20260101_000000" / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, records)))
    return folder


def steps(by_epoch=True):
    for number in range(1, 5):
        epoch = {"epoch": (number + 1) // 2} if by_epoch else {}
        yield {"loss": 4.0 / number, "lr": 1e-3, "time": 0.1, "iter": number, "step": number, **epoch}


def evaluation(step, **metrics):
    return {**metrics, "data_time": 0.1, "time": 0.2, "step": step}


@pytest.fixture
def logs(tmp_path):
    boxes = [evaluation(e, **{"coco/bbox_mAP": 0.2 * e, "coco/bbox_mAP_l": -1.0, "coco/segm_mAP": 0.1}) for e in (1, 2)]
    records = {
        "detection": [*steps(), *boxes],
        "segmentation": [*steps(by_epoch=False), evaluation(2, mIoU=3.0), evaluation(4, mIoU=9.0)],
        "medical": [*steps(), evaluation(2, **{"dice/mean": 70.0, "dice/liver": 90.0})],
        "skin": [*steps(), evaluation(1, iou=math.nan), evaluation(2, iou=50.0)],
        "own": [*steps(), evaluation(2, **{"my/score": 1.0})],
    }
    return {kind: write_log(tmp_path / kind, lines) for kind, lines in records.items()}


def test_logs_of_all_kinds(logs):
    train, evaluations = read_log(logs["detection"])
    assert len(train) == 4 and [record["epoch"] for record in evaluations] == [1, 2]
    train, evaluations = read_log(logs["segmentation"])
    assert [(record["iter"], record["mIoU"]) for record in evaluations] == [(2, 3.0), (4, 9.0)]


def test_curves(tool, logs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "c.png"
    panels, save = [], curves.save_figure
    monkeypatch.setattr(
        curves, "save_figure", lambda figure, path: (panels.append(len(figure.axes)), save(figure, path))[1]
    )
    for log in logs.values():
        assert tool("curves", log, "--out", out) == 0
    # The loss and one metric; boxes and masks have a panel each.
    assert dict(zip(logs, panels, strict=True)) == {kind: 3 if kind == "detection" else 2 for kind in logs}
    assert tool("curves", *logs.values(), "--metrics", "mIoU", "dice/liver", "--out", out) == 0
    assert panels[-1] == 3 and size(out)[0] == 1050
    capsys.readouterr()
    assert tool("curves", logs["medical"], "--metrics", "dice/lver", "--out", out) == 2
    error = capsys.readouterr().err
    assert "No run logged 'dice/lver' (did you mean 'dice/liver'" in error
    assert "there are dice/mean, dice/liver." in error
    assert tool("curves", tmp_path, "--out", out) == 2
    assert "holds no log" in capsys.readouterr().err


def test_curves_have_the_logged_values(logs, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("vssm.viz.curves.save_figure", lambda figure, path: drawn.setdefault("figure", figure))
    plot_learning_curves([logs["segmentation"]], tmp_path / "c.png")
    loss, score = drawn["figure"].axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 4.0], [2, 2.0], [3, 4 / 3], [4, 1.0]]
    assert score.lines[0].get_xydata().tolist() == [[2, 3.0], [4, 9.0]]
    assert score.get_title(loc="left") == "Held-out mIoU (%)" and score.get_xlabel() == "iteration"
