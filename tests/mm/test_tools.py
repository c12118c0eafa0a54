"""Detectors and segmentors through the tools: train, resume, test, predict."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from vssm._errors import UserError
from vssm.engine import CheckpointError, load_config, read_checkpoint, run
from vssm.mm.results import CocoNumbers

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


def test_predict_needs_a_place_for_answers(dense_config, dense_data, tmp_path):
    words = [str(dense_config("detection")), "none.pth", str(dense_data / "images")]
    with pytest.raises(UserError, match="give --out DIR or --json FILE, no --csv"):
        run.predict(words)
    (tmp_path / "file").write_bytes(b"")
    for place in (dict(out=str(tmp_path / "file")), dict(json_file=str(tmp_path / "file" / "a.json"))):
        with pytest.raises(UserError, match="cannot be written"):
            run.predict(words, **place)


def weights_of(config, path):
    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    torch.save(MODELS.build(cfg.model).state_dict(), path)
    return str(path)


def test_a_detector_answers_in_cocos_result_form(dense_config, dense_data, tmp_path, capsys):
    """Readable by pycocotools against the set's own annotations; names that are not UTF-8 are no obstacle."""
    from pycocotools.coco import COCO

    annotations = json.loads((dense_data / "annotations.json").read_text())
    for category in annotations["categories"]:
        category["id"] += 6
    for annotation in annotations["annotations"]:
        annotation["category_id"] += 6
    for image in annotations["images"]:
        image["id"] += 100
    for annotation in annotations["annotations"]:
        annotation["image_id"] += 100
    (tmp_path / "own.json").write_text(json.dumps(annotations))
    more = f'test_dataloader["dataset"]["ann_file"] = "{tmp_path}/own.json"'
    config = str(dense_config("detection", more=more))
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b.png")
    shutil.copy(dense_data / "images" / "0.png", odd)
    words = [config, weights_of(config, tmp_path / "w.pth"), str(dense_data / "images" / "1.png"), odd]
    place = dict(out=str(tmp_path / "drawn"), json_file=str(tmp_path / "a.json"))
    assert run.predict(words, score_threshold=0.0, **place) == 0
    assert r"\udcff\x1b.png" in capsys.readouterr().out and len(list((tmp_path / "drawn").iterdir())) == 2
    results = json.loads((tmp_path / "a.json").read_text())
    assert {result["image_id"] for result in results} == {101, 104}
    assert {result["file_name"] for result in results} == {words[2], odd}
    assert {(result["category_id"], result["category_name"]) for result in results} <= {(7, "square"), (8, "bar")}
    (tmp_path / "known.json").write_text(json.dumps([result for result in results if result["image_id"] == 101]))
    truth = COCO(str(tmp_path / "own.json"))
    loaded = truth.loadRes(str(tmp_path / "known.json"))
    for result in loaded.anns.values():
        left, top, width, height = result["bbox"]
        assert 0 <= left <= left + width <= 80 and 0 <= top <= top + height <= 64
        assert loaded.annToMask(result).shape == (64, 80) and 0 <= result["score"] <= 1


def test_classes_are_numbered_as_coco_does():
    names = CocoDataset.METAINFO["classes"]
    numbers = CocoNumbers({}, names, names)
    given = dict(zip(names, numbers.categories, strict=True))
    assert (given["person"], given["stop sign"], given["toothbrush"]) == (1, 13, 90)
    assert CocoNumbers({"ann_file": "none.json"}, ("a", "b"), names).categories == [1, 2]
    assert [numbers.image_id(name) for name in ("x.png", "y.png", "x.png")] == [1, 2, 1]


@pytest.mark.parametrize("with_out", [True, False])
def test_a_segmentor_answers_with_label_maps(with_out, dense_config, dense_data, tmp_path, capsys):
    config = str(dense_config("segmentation"))
    broken = tmp_path / "1.png"
    broken.write_bytes(b"no image")
    shutil.copy(dense_data / "images" / "0.png", tmp_path / "0.png")
    words = [config, weights_of(config, tmp_path / "w.pth"), str(dense_data / "images" / "0.png"), str(broken)]
    words.append(str(tmp_path / "0.png"))  # of the same name
    out = str(tmp_path / "drawn") if with_out else None
    assert run.predict(words, out=out, json_file=str(tmp_path / "a.json")) == 1
    answers = json.loads((tmp_path / "a.json").read_text())
    assert answers["categories"] == [
        {"id": 0, "name": "ground", "color": [0, 0, 0]}, {"id": 1, "name": "thing", "color": [255, 0, 0]},
    ]  # fmt: skip
    first, failed, second = answers["images"]
    folder = tmp_path / "drawn" / "labels" if with_out else tmp_path / "a_labels"
    assert [first["label_map"], second["label_map"]] == [str(folder / "0.png"), str(folder / "0_2.png")]
    assert failed["file_name"] == str(broken) and "cannot be read" in failed["error"]
    with Image.open(first["label_map"]) as labels:
        assert labels.mode == "P" and labels.size == (first["width"], first["height"]) == (80, 64)
        assert labels.getpalette()[:6] == [0, 0, 0, 255, 0, 0]
        share = (np.asarray(labels) == 1).mean()
    assert first["shares"].get("thing", 0.0) == pytest.approx(share, abs=1e-6)
    assert (tmp_path / "drawn").exists() == with_out


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
