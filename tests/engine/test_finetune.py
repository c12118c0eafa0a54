"""The recipe for a folder of images, on a tiny one."""

import pytest

from vssm._cli import run

from .conftest import REPO
from .test_tools import predict_tool, sentence, train_tool

CONFIG = REPO / "configs/classification/vmamba-tiny-s1l8_finetune-folder.py"
# No network, no time: a small model from scratch, at a small size, for an epoch.
SMALL = [
    "model.model.name=vmamba_pico",
    "model.model.pretrained=False",
    "train_dataloader.batch_size=8",
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
    "train_dataloader.dataset.transform.input_size=48",
    "val_dataloader.dataset.transform.input_size=48",
    "test_dataloader.dataset.transform.input_size=48",
    "train_cfg.max_epochs=1",
]


@pytest.fixture(autouse=True)
def data(image_folder, monkeypatch):
    monkeypatch.setenv("VSSM_DATA", str(image_folder))


def test_it_trains_and_predicts(image_folder, tmp_path, capsys):
    options = ["--cfg-options", *SMALL, "model.model.num_classes=3"]
    assert run(train_tool.main, [str(CONFIG), "--work-dir", str(tmp_path), *options]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("held-out top-1: ")
    image = image_folder / "val" / "class_0" / "0.png"
    words = [str(CONFIG), str(tmp_path / "epoch_1.pth"), str(image), *options]
    assert run(predict_tool.main, words) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]} == {"class_0", "class_1", "class_2"}


def test_another_number_of_classes_says_what_to_set(tmp_path, capsys):
    said = sentence(capsys, train_tool, CONFIG, "--work-dir", tmp_path, "--cfg-options", *SMALL)
    assert "3 classes (class_0, class_1, class_2), but the model 10" in said
    assert "--cfg-options model.model.num_classes=3" in said
