"""Models whose weights come from a checkpoint fetch nothing else."""

import pytest
import torch
from mmengine.registry import MODELS

from vssm.engine import CheckpointError, ConfigError
from vssm.engine.config import load_config
from vssm.engine.models import build_trained, without_pretrained

from .test_tools import call, predict_tool, sentence, test_tool, train_tool

PRETRAINED = 'dict(name="test_convnext", num_classes=3, pretrained=True)'


@pytest.fixture
def offline(monkeypatch):
    """Whoever asks for published weights fails, wherever the weights are."""

    def refuse(*args, **kwargs):
        raise RuntimeError("there is no network")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_url"):
        monkeypatch.setattr(f"timm.models._builder.{name}", refuse)


@pytest.fixture
def saved(make_config, tmp_path):
    """A checkpoint for configs with ``PRETRAINED``."""
    cfg = load_config(str(make_config(model=PRETRAINED)))
    torch.save({"state_dict": MODELS.build(without_pretrained(cfg.model)).state_dict()}, tmp_path / "all.pth")
    return tmp_path / "all.pth"


def test_what_fetches_goes_and_what_initialises_stays():
    teacher = {"name": "resnet18", "pretrained": True}
    normal = {"type": "Normal", "std": 0.01}
    model = {
        "type": "A",
        "pretrained": "open-mmlab://resnet50",
        "backbone": {"type": "B", "pretrained": True, "init_cfg": {"type": "Pretrained", "checkpoint": "http://x"}},
        "heads": [{"type": "C", "init_cfg": normal}, {"init_cfg": [normal, {"type": "Pretrained"}]}],
        "distillation": {"teacher": teacher},
    }
    assert without_pretrained(model) == {
        "type": "A",
        "backbone": {"type": "B"},
        "heads": [{"type": "C", "init_cfg": normal}, {}],
        "distillation": {"teacher": teacher},
    }
    assert model["backbone"]["pretrained"] is True


def test_tools_fetch_nothing_where_a_checkpoint_follows(offline, make_config, saved, image_folder, tmp_path, capsys):
    here = ["--work-dir", tmp_path / "wd"]
    assert "there is no network" in sentence(capsys, train_tool, make_config(model=PRETRAINED), *here)
    assert call(test_tool, make_config(model=PRETRAINED), saved, *here) == 0
    image = image_folder / "val" / "class_0" / "0.png"
    assert call(predict_tool, make_config(model=PRETRAINED), saved, image) == 0
    assert call(train_tool, make_config(model=PRETRAINED), *here, "--cfg-options", f"load_from={saved}") == 0
    dumped = make_config(model=PRETRAINED)
    assert call(train_tool, dumped, *here, "--resume") == 0
    assert "Resuming from" in capsys.readouterr().out
    # The config that is written beside the checkpoints is the one that was given.
    assert "pretrained=True" in (tmp_path / "wd" / dumped.name).read_text()


def test_a_missing_checkpoint_is_said_first(offline, make_config, image_folder, tmp_path, capsys):
    image = image_folder / "val" / "class_0" / "0.png"
    config, no = make_config(model=PRETRAINED), tmp_path / "no.pth"
    expected = f"error: Checkpoint '{no}' does not exist.\n"
    here = ["--work-dir", tmp_path / "wd"]
    assert sentence(capsys, predict_tool, config, no, image).endswith(expected)
    assert sentence(capsys, test_tool, config, no, *here).endswith(expected)
    assert sentence(capsys, train_tool, config, *here, "--cfg-options", f"load_from={no}").endswith(expected)
    assert not (tmp_path / "wd").exists()


def test_the_checkpoint_is_read_before_the_model_is_built(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="x.pth"):
        build_trained({"model": {"type": "Unknown"}}, tmp_path / "x.pth")
    torch.save({"state_dict": {"w": torch.ones(1)}}, tmp_path / "y.pth")
    with pytest.raises(ConfigError, match="Unknown is not in the mmengine::model registry"):
        build_trained({"model": {"type": "Unknown"}}, tmp_path / "y.pth")
