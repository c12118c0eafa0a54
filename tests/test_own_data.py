"""The recipes for data of one's own, as their page shows them: files, configs and commands are taken from it."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")

from PIL import Image  # noqa: E402

from vssm import _cli  # noqa: E402
from vssm.commands import main  # noqa: E402

PAGE = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
IN_PROCESS = [f"{loader}.{option}" for loader in LOADERS for option in ("num_workers=0", "persistent_workers=False")]
DETECTOR = [
    "model.backbone.model_name=vmamba_pico",
    "model.backbone.pretrained=False",
    *[f"{loader}.dataset.pipeline.{i}.scale=(64,64)" for loader, i in zip(LOADERS, (2, 1, 1), strict=True)],
    *("model.train_cfg.rpn_proposal.max_per_img=8", "model.train_cfg.rcnn.sampler.num=8"),
    *("model.test_cfg.rpn.max_per_img=8", "model.test_cfg.rcnn.max_per_img=4"),
    "train_cfg.max_epochs=1",
]
# What makes each run small.
SMALL = {
    "Classification": [
        *("model.model.name=vmamba_pico", "model.model.pretrained=False", "train_dataloader.batch_size=4"),
        *[f"{loader}.dataset.transform.input_size=32" for loader in LOADERS],
        "train_cfg.max_epochs=1",
    ],
    "Detection": DETECTOR,
    "Segmentation": [
        *("model.backbone.model_name=vmamba_pico", "model.backbone.pretrained=False"),
        *("model.decode_head.channels=8", "model.auxiliary_head.channels=8", "model.data_preprocessor.size=(32,32)"),
        *("train_dataloader.batch_size=2", "train_dataloader.dataset.pipeline.3.crop_size=(32,32)"),
        *("train_cfg.max_iters=1", "train_cfg.val_interval=1", "default_hooks.checkpoint.interval=1"),
        *("param_scheduler.0.end=1", "param_scheduler.1.begin=1", "param_scheduler.1.end=2"),
    ],
    "Volumes": [
        *("model.network.encoder=vmamba_pico", "model.network.pretrained=False", "train_dataloader.batch_size=2"),
        *("train_dataloader.dataset.transform.size=32", "val_cfg.size=32", "test_cfg.size=32"),
        *("train_cfg.max_epochs=1", "train_cfg.val_interval=1"),
    ],
}
NEEDS = {"Detection": "mmdet", "Segmentation": "mmseg", "Volumes": "monai"}


def blocks(section, language):
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(section):
    lines = [line for block in blocks(section, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("vssm ")]


def write(section, rng):
    """The files of the section's picture, with content of its kind."""
    paths = [Path(word) for word in blocks(section, "text")[0].split() if Path(word).suffix]
    classes = ["daisy", "rose", "tulip"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            colour = 80 * classes.index(path.parent.name) if path.parent.name in classes else 100
            pixels = np.clip(colour + rng.normal(0, 30, (48, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            Image.fromarray(pixels).save(path.with_stem(path.stem + "b"))  # two of each
        elif path.suffix == ".png":
            labels = np.repeat(np.repeat(rng.integers(0, 3, (3, 4)), 16, 0), 16, 1).astype(np.uint8)
            labels[0] = 255
            for stem in (path.stem, path.stem + "b"):
                Image.fromarray(labels).save(path.with_stem(stem))
        elif path.suffix == ".gz":
            write_volume(path, rng)
        else:
            write_annotations(path)


def write_annotations(path):
    """The file that the page shows, for images as small as these, and with every class."""
    shown = json.loads(blocks("Detection", "json")[0])
    image, annotation = shown["images"][0], shown["annotations"][0]
    images = [
        {**image, "id": number, "file_name": name, "width": 64, "height": 48}
        for number, name in enumerate(("0001.jpg", "0001b.jpg"), 1)
    ]
    box, outline = [10, 8, 20, 15], [[10, 8, 30, 8, 30, 23, 10, 23]]
    annotations = [
        {**annotation, "id": number, "image_id": 1 + number % 2, "category_id": 1 + number % 3}
        | {"bbox": box, "segmentation": outline}
        for number in range(6)
    ]
    path.write_text(json.dumps({**shown, "images": images, "annotations": annotations}))


def write_volume(path, rng):
    nibabel = pytest.importorskip("nibabel")
    shape = (40, 36, 3)
    data = rng.integers(0, 3, shape) if path.parent.name == "labels" else rng.normal(50, 80, shape)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.int16), np.eye(4)), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(section, base, capsys, options, configs):
    """Copy the base, write the configs, check, and train."""
    for name in ("train", "check"):
        assert [name, configs[-1][0]] == next(words for words in commands(section) if words[0] == name)[:2]
    assert base in commands(section)
    assert _cli.run(main, base) == 0
    for name, text in configs:
        Path(name).write_text(text)
    name = configs[-1][0]
    capsys.readouterr()
    assert _cli.run(main, ["check", name, "--cfg-options", *options]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert _cli.run(main, ["train", name, "--work-dir", "run", "--cfg-options", *options]) == 0, capsys.readouterr()
    return said


@pytest.mark.parametrize("section", SMALL)
def test_the_recipe_works_as_shown(section, folder, capsys):
    if section in NEEDS:
        pytest.importorskip(NEEDS[section])
    write(section, np.random.default_rng(0))
    (text,) = [block for block in blocks(section, "python") if block.startswith("# my-")]
    name = text.split("\n")[0].removeprefix("# ")
    base = next(words for words in commands(section) if words[0] == "config")
    said = follow(section, base, capsys, [*IN_PROCESS, *SMALL[section]], [(name, text)])
    assert "train_dataloader: " in said and ", 3 classes; " in said
    assert list(Path("run").glob("*_1.pth"))


def test_boxes_alone_take_another_base(folder, capsys):
    pytest.importorskip("mmdet")
    write("Detection", np.random.default_rng(0))
    for path in Path("data/pets").glob("*.json"):
        data = json.loads(path.read_text())
        for annotation in data["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(data))
    (text,) = [block for block in blocks("Detection", "python") if block.startswith("# my-")]
    (lines,) = [block for block in blocks("Detection", "python") if block.startswith("# these two lines")]
    model, rest = text.index("model = "), text.index("dataset = ")
    text = (text[:model] + lines + text[rest:]).replace("detector_base.py", "boxes_base.py")
    text = re.sub(r"\nval_evaluator = dict\(ann_file=root \+ \"val.json\"\)", "", text)
    Path("my-detector.py").write_text(text)
    assert _cli.run(main, [words for words in commands("Detection") if words[0] == "config"][1]) == 0
    small = ["model.backbone.model_name=vmamba_pico", "model.backbone.pretrained=False"]
    assert _cli.run(main, ["check", "my-detector.py", "--cfg-options", *IN_PROCESS, *small]) == 0
    said = capsys.readouterr().out
    assert "cat 2, dog 2, bird 2" in said


def test_the_check_names_what_is_wrong_with_label_maps(folder, capsys):
    pytest.importorskip("mmseg")
    write("Segmentation", np.random.default_rng(0))
    (text,) = [block for block in blocks("Segmentation", "python") if block.startswith("# my-")]
    Path("my-segmentor.py").write_text(text)
    assert _cli.run(main, next(words for words in commands("Segmentation") if words[0] == "config")) == 0
    words = ["check", "my-segmentor.py", "--cfg-options", *IN_PROCESS, *SMALL["Segmentation"]]
    for path in Path("data/road/labels").rglob("*.png"):
        Image.new("L", (64, 48), 7).save(path)
    assert _cli.run(main, words) == 2
    assert "holds 7, which is the number of no class: there are 3" in capsys.readouterr().err
    for path in Path("data/road/labels").rglob("*.png"):
        Image.new("L", (64, 48), 0).save(path)
    assert _cli.run(main, words) == 0
    assert "none of the samples read has road, car" in capsys.readouterr().err
