"""Detectors and segmentors through the tools: train, resume, test, predict."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from vssm._errors import UserError
from vssm.engine import CheckpointError, load_config, read_checkpoint, run

METRICS = {"detection": ("coco/bbox_mAP", "coco/segm_mAP"), "segmentation": ("mIoU", "mAcc")}
FILES = {"detection": "epoch_{}.pth", "segmentation": "iter_{}.pth"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_train_resume_test_predict(task, dense_config, dense_data, tmp_path, capsys):
    work_dir = tmp_path / "run"
    metrics = run.train(str(dense_config(task, 2)), str(work_dir))
    assert set(METRICS[task]) <= set(metrics)
    first, second, third = (work_dir / FILES[task].format(number) for number in (1, 2, 3))
    assert not list(work_dir.glob(".*.part*"))
    assert "AtomicCheckpointHook" in next(work_dir.glob("*/*.log")).read_text()

    # Half a file: the one before it is taken, and said so.
    second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(second)
    run.train(str(dense_config(task, 3)), str(work_dir), resume="auto")
    assert read_checkpoint(third)["meta"]["iter"] == (6 if task == "detection" else 3)
    log = "".join(path.read_text() for path in work_dir.glob("*/*.log"))
    assert "Skipping it" in log and f"Resuming from {first}" in log

    config = str(dense_config(task))
    capsys.readouterr()
    tested = run.test(config, str(third), str(work_dir), out=str(tmp_path / "metrics.json"))
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx(tested, nan_ok=True)
    assert METRICS[task][0] in capsys.readouterr().out

    broken = tmp_path / "broken.png"
    broken.write_bytes((dense_data / "images" / "0.png").read_bytes()[:200])
    words = [config, str(third), str(dense_data / "images"), str(broken)]
    assert run.predict(words, out=str(tmp_path / "drawn"), score_threshold=0.0) == 1
    said = capsys.readouterr()
    assert f"Image '{broken}' cannot be read" in said.err
    assert len(said.out.splitlines()) == 4
    drawings = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawings] == [f"{number}.png" for number in range(4)]
    drawn, original = (
        np.asarray(Image.open(folder / "0.png")) for folder in (drawings[0].parent, dense_data / "images")
    )
    assert drawn.shape == original.shape and (drawn != original).any()


@pytest.mark.parametrize(
    ("task", "own", "classes"),
    [
        ("detection", 'test_dataloader["dataset"].pop("metainfo")', {"person", "bicycle"}),
        ("detection", "", {"square", "bar"}),
        ("segmentation", "", {"ground", "thing"}),
    ],
)
def test_weights_alone_have_the_names_of_the_data_set(task, own, classes, dense_config, dense_data, tmp_path, capsys):
    """Those that the config gives it, else those that it has by itself."""
    config = str(dense_config(task, more=own))
    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / "weights.pth")
    words = [config, str(tmp_path / "weights.pth"), str(dense_data / "images" / "0.png")]
    assert run.predict(words, out=str(tmp_path / "drawn"), score_threshold=0.0) == 0
    found = capsys.readouterr().out.partition(".png: ")[2]
    assert found and {word.rpartition(" ")[0] for word in found.strip().split(", ")} <= classes


def test_predict_needs_a_folder(dense_config, dense_data):
    with pytest.raises(UserError, match="give --out DIR"):
        run.predict([str(dense_config("detection")), "none.pth", str(dense_data / "images")])


def test_missing_data_is_one_sentence(dense_config, tmp_path):
    with pytest.raises(UserError, match="which does not exist"):
        run.train(str(dense_config("detection", root=tmp_path / "nowhere")), str(tmp_path / "run"))


def test_weights_of_another_model_are_refused(dense_config, tmp_path):
    torch.save({"state_dict": {"backbone.x": torch.zeros(1)}, "meta": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        run.test(str(dense_config("segmentation")), str(tmp_path / "other.pth"), str(tmp_path / "run"))


@pytest.mark.parametrize("names", [("ground", "crack"), ("crack",)])
def test_a_binary_segmentor_names_what_it_finds(names, dense_config, dense_data, tmp_path, capsys):
    """One output channel: 1 is the class, 0 the background."""
    head = f"dict(num_classes={len(names)}, out_channels=1, threshold=0.5, loss_decode=dict(type='CrossEntropyLoss', "
    head += "use_sigmoid=True, loss_weight=1.0))"
    more = f"model['decode_head'].update({head})\nmodel['auxiliary_head'].update({head})\n"
    palette = [(0, 0, 0), (255, 0, 0)][-len(names) :]
    more += f"test_dataloader['dataset']['metainfo'] = dict(classes={names}, palette={palette})\n"
    config = str(dense_config("segmentation", more=more))
    init_default_scope("mmseg")
    model = MODELS.build(load_config(config).model)
    found = {}
    for logit, name in ((-9.0, "background" if len(names) == 1 else "ground"), (9.0, "crack")):
        torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
        torch.nn.init.constant_(model.decode_head.conv_seg.bias, logit)
        torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
        words = [config, str(tmp_path / "w.pth"), str(dense_data / "images" / "0.png")]
        assert run.predict(words, out=str(tmp_path / "drawn")) == 0
        assert capsys.readouterr().out.strip().endswith(f": {name} 100.0%")
        found[name] = np.asarray(Image.open(tmp_path / "drawn" / "0.png")).astype(int)
    background, crack = found.values()
    assert crack[..., 0].mean() > background[..., 0].mean() + 50  # drawn in its own red
