"""Data sets."""

import shutil

import pytest
import torch
from PIL import Image

from vssm import _inputs
from vssm.classify import Digits, ImageFolder
from vssm.engine import ConfigError, DataError


def test_digits_are_split_by_class_and_always_the_same():
    train, test = Digits("train"), Digits("test")
    assert len(train) == 1437 and len(test) == 360
    counts = torch.bincount(torch.tensor(test.labels))
    assert counts.min() >= 34 and counts.max() <= 37
    assert Digits("test").labels == test.labels
    assert Digits("test", seed=1).labels != test.labels
    sample = Digits("test", transform=dict(input_size=24))[0]
    assert sample["inputs"].shape == (3, 24, 24) and sample["inputs"].min() >= -1 and sample["inputs"].max() <= 1
    assert test.metainfo["classes"][3] == "3"


def test_digits_augmentation_follows_torchs_seed():
    data = Digits(transform=dict(degrees=10, translate=0.1, scale=(0.9, 1.1)))
    torch.manual_seed(0)
    first = data[0]["inputs"]
    assert not torch.equal(first, data[0]["inputs"])
    torch.manual_seed(0)
    assert torch.equal(first, data[0]["inputs"])


def test_digits_bad_options():
    with pytest.raises(ConfigError, match="'train' and 'test', not 'val'"):
        Digits("val")
    with pytest.raises(ConfigError, match="unknown option 'degree'.*'degrees'"):
        Digits(transform=dict(degree=3))


def test_folder(image_folder):
    data = ImageFolder(str(image_folder), "train", dict(input_size=32))
    assert len(data) == 24
    assert data.metainfo["classes"] == ("class_0", "class_1", "class_2")
    sample = data[23]
    assert sample["inputs"].shape == (3, 32, 32) and sample["labels"] == 2


def test_a_class_missing_from_val_keeps_the_numbers(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "class_0")
    data = ImageFolder(str(tmp_path / "data"), "val", dict(input_size=32))
    assert {label for _, label in data.reader.samples} == {1, 2}
    (tmp_path / "data" / "val" / "class_9").mkdir()
    with pytest.raises(DataError, match="'class_9', which .*train' lacks"):
        ImageFolder(str(tmp_path / "data"), "val")


def test_a_missing_folder_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("VSSM_IMAGENET", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data/imagenet/val' does not exist \(neither .*dataset.root.*VSSM_IMAGENET"):
        ImageFolder(split="val")
    monkeypatch.setenv("VSSM_IMAGENET", str(tmp_path / "elsewhere"))
    with pytest.raises(
        DataError, match=r"elsewhere/val' does not exist \(.*VSSM_IMAGENET is .*elsewhere.*dataset.root"
    ):
        ImageFolder(split="val")
    with pytest.raises(DataError, match=r"here/val' does not exist \(.*dataset.root is 'here'.*VSSM_IMAGENET"):
        ImageFolder("here", split="val")
    (tmp_path / "here" / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        ImageFolder("here", split="val")


def test_the_environment_variable_is_used(image_folder, monkeypatch):
    monkeypatch.setenv("VSSM_IMAGENET", str(image_folder))
    assert len(ImageFolder(split="val")) == 11


def test_an_unreadable_image_is_named_and_not_replaced(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    broken = tmp_path / "data" / "val" / "class_0" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    data = ImageFolder(str(tmp_path / "data"), "val", dict(input_size=32))
    with pytest.raises(DataError, match="class_0/0.png' cannot be read"):
        data[0]


def test_unknown_transform_option(image_folder):
    with pytest.raises(ConfigError, match="unknown option 'input_sise'.*'input_size'"):
        ImageFolder(str(image_folder), "val", dict(input_sise=32))


@pytest.fixture
def said(monkeypatch, caplog):
    """The records that are logged, as if there had been none before."""
    monkeypatch.setattr(_inputs, "_said", set())
    return lambda: [record.getMessage() for record in caplog.records]


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name, "JPEG" if name.endswith("jfif") else None)


def labels(data):
    return {str(path).split("/train/")[1]: label for path, label in data.reader.samples}


def test_training_reads_every_suffix_that_prediction_does(tmp_path, said):
    names = [f"train/{kind}/0.{suffix}" for kind in "ab" for suffix in ("png", "TIF", "bmp", "webp", "ppm", "jfif")]
    make(tmp_path, *names)
    data = ImageFolder(str(tmp_path), "train", dict(input_size=8))
    assert labels(data) == {name.removeprefix("train/"): int("/b/" in name) for name in names}
    assert said() == [] and data[0]["inputs"].shape == (3, 8, 8)
    assert data.filename(0) == "a/0.bmp"


def test_what_is_no_data_is_left_out_and_counted(tmp_path, said):
    make(tmp_path, "train/a/0.png", "train/b/0.png", "train/b/._0.png", "train/b/.ipynb_checkpoints/0.png")
    make(tmp_path, "train/.ipynb_checkpoints/0.png", "train/__MACOSX/0.png", "train/stray.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("")
    data = ImageFolder(str(tmp_path), "train", dict(input_size=8))
    assert data.metainfo["classes"] == ("a", "b") and labels(data) == {"a/0.png": 0, "b/0.png": 1}
    assert len(said()) == 1 and "2 files are used, 6 others are not (" in said()[0]


def test_images_in_deeper_folders_are_their_classs(tmp_path, said):
    make(tmp_path, "train/a/x/0.png", "train/a/a/1.png", "train/b/0.png")
    data = ImageFolder(str(tmp_path), "train", dict(input_size=8))
    assert labels(data) == {"a/x/0.png": 0, "a/a/1.png": 0, "b/0.png": 1}
    assert len(said()) == 1 and "2 images lie in folders inside of their class's folder" in said()[0]
    make(tmp_path, "train/a/x/b/2.png")
    with pytest.raises(DataError, match="b/2.png' lies in the folder of the class 'a' and in one .* class 'b'"):
        ImageFolder(str(tmp_path), "train")
    make(tmp_path / "nested", "train/all/a/0.png", "train/all/b/0.png")
    with pytest.raises(DataError, match="'all' as its only class folder"):
        ImageFolder(str(tmp_path / "nested"), "train")


def test_a_class_without_a_usable_image_is_refused(tmp_path, said):
    make(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/0.png")
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "0.h5").write_bytes(b"")
    with pytest.raises(DataError, match="class folder holds no images: '.*train/c' \\(only .h5\\)"):
        ImageFolder(str(tmp_path), "train")
    assert ImageFolder(str(tmp_path), "val").metainfo["classes"] == ("a", "b", "c")
    assert said() == [f"'{tmp_path}/val' has no folder of 2 of the 3 classes (b, c)."]
