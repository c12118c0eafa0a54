"""Splits from seeds and from lists."""

from collections import Counter

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from vssm._errors import DataError, UserError
from vssm.classify import ImageFolder
from vssm.engine.config import ConfigError
from vssm.fewshot import SessionClasses, draw_shots, make_split
from vssm.fewshot.data import labels_of


class Labelled(Dataset):
    def __init__(self, labels):
        self.labels = labels

    def __getitem__(self, index):
        return {"inputs": torch.tensor(float(index)), "labels": self.labels[index]}


LABELS = Labelled([0, 1, 2, 3, 4] * 6)


@pytest.fixture
def folder(tmp_path):
    """Four classes of three images each, and their lists: base a and c, then d, then b."""
    for name in "abcd":
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / f"{number}.png")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "session_1.txt").write_text("any/train/a/0.png\nany/train/a/2.png\n\nany/train/c/1.png\n")
    (lists / "session_2.txt").write_text("9\n11\n")
    (lists / "session_3.txt").write_text("train/b/1.png\n")
    return tmp_path


def test_a_seed_shuffles_the_classes_and_draws_the_shots():
    split = make_split(LABELS, base=2, ways=1, sessions=3, shots=4, seed=1)
    assert sorted(split.order) == [0, 1, 2, 3, 4] and split.order != (0, 1, 2, 3, 4)
    assert split == make_split(LABELS, base=2, ways=1, sessions=3, shots=4, seed=1)
    assert [split.seen(i) for i in range(4)] == [2, 3, 4, 5]
    in_order = make_split(LABELS, base=1, ways=2, sessions=2, shots=4)
    assert in_order.order == (0, 1, 2, 3, 4)
    shots = draw_shots(in_order, LABELS.labels, 2, seed=0)
    assert Counter(LABELS.labels[i] for i in shots) == {3: 4, 4: 4}
    assert shots == draw_shots(in_order, LABELS.labels, 2, seed=0) != draw_shots(in_order, LABELS.labels, 2, seed=1)


def test_lists_say_classes_and_images(folder):
    options = dict(type="ImageFolder", root=str(folder), transform=dict(input_size=8))
    split = dict(lists=str(folder / "lists"))
    dataset = SessionClasses(options, split)
    assert dataset.split.order == (0, 2, 3, 1) and dataset.split.sizes == (2, 1, 1)
    assert dataset.metainfo["classes"] == ("a", "c")
    assert dataset.indices == [0, 2, 7] and dataset.labels == [0, 0, 1]
    assert dataset[2]["labels"] == 1 and dataset[2]["inputs"].shape == (3, 8, 8)
    assert draw_shots(dataset.split, labels_of(dataset.source), 1, seed=5) == [9, 11]
    # Lists are of training images; of a test set all images of the known classes are there.
    tests = SessionClasses(options, split, session=1, of=options)
    assert tests.metainfo["classes"] == ("a", "c", "d") and len(tests) == 9
    assert SessionClasses.transform_from({"dataset": options})(Image.new("RGB", (9, 9))).shape == (3, 8, 8)


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("session_2.txt", "train/b/9.png", "lists 'train/b/9.png', which the training images lack"),
        ("session_2.txt", "12", "lists '12'"),
        ("session_2.txt", "0", "images of the class 0, which an earlier session has"),
        ("session_2.txt", "", "lists no images"),
        ("session_5.txt", "1", "without gaps"),
    ],
)
def test_wrong_lists_are_named(folder, file, text, words):
    (folder / "lists" / file).write_text(text)
    dataset = ImageFolder(str(folder), transform=dict(input_size=8))
    with pytest.raises(DataError, match=words):
        make_split(dataset, lists=str(folder / "lists"))


def test_wrong_numbers_are_named(folder):
    with pytest.raises(ConfigError, match="the data have 5 classes"):
        make_split(LABELS, base=3, ways=2, sessions=2)
    with pytest.raises(ConfigError, match="leave out base"):
        make_split(LABELS, base=3, lists=str(folder / "lists"))
    with pytest.raises(DataError, match="6 images, but 7 are to be shown"):
        draw_shots(make_split(LABELS, base=1, ways=1, sessions=1, shots=7), LABELS.labels, 1)
    with pytest.raises(UserError, match="does not say which classes"):
        labels_of(object())
    options = dict(type="ImageFolder", root=str(folder), transform=dict(input_size=8))
    with pytest.raises(ConfigError, match="0 to 2, not 3"):
        SessionClasses(options, dict(lists=str(folder / "lists")), session=3)
    with pytest.raises(ConfigError, match="unknown option 'way'"):
        SessionClasses(options, dict(base=2, way=1))
