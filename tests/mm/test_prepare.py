"""Data sets of digits on photographs, in the layouts of COCO and ADE20K, and the check of local copies."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from PIL import Image  # noqa: E402

from vssm._cli import run  # noqa: E402
from vssm._errors import UserError  # noqa: E402
from vssm._files import RECORD, whole_folder  # noqa: E402
from vssm.engine.digit_scenes import PHOTOGRAPHS, Scenes, load_scans  # noqa: E402
from vssm.mm.prepare import run_lengths  # noqa: E402
from vssm_kernels.install import install_command  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import prepare_data  # noqa: E402

SMALL = ["--train", "24", "--val", "12", "--size", "80", "--digit-size", "16", "30"]


def call(*words) -> int:
    return run(prepare_data.main, [str(word) for word in words])


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "coco"
    assert call("digits-coco", out, *SMALL) == 0
    return out


@pytest.fixture(scope="module")
def ade(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "ade"
    assert call("digits-ade", out, *SMALL) == 0
    return out


@pytest.fixture
def copy(tmp_path):
    """A copy of a data set to be damaged."""

    def make(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return make


def annotations(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}2017.json").read_text())


def test_layout_of_coco(coco):
    from pycocotools.coco import COCO

    assert sorted(path.name for path in coco.iterdir()) == [
        "annotations",
        "prepared.json",
        "train2017",
        "val2017",
    ]
    kinds = set()
    for split, count in (("train", 24), ("val", 12)):
        data = COCO(str(coco / "annotations" / f"instances_{split}2017.json"))
        assert len(data.imgs) == count == len(list((coco / f"{split}2017").glob("*.jpg")))
        assert [kind["name"] for kind in data.cats.values()] == list("0123456789")
        for annotation in data.anns.values():
            mask = data.annToMask(annotation).astype(bool)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            # Polygons are rounded to pixels by whoever reads them; run lengths are exact.
            exact = isinstance(annotation["segmentation"], dict)
            assert np.abs(np.subtract(box, annotation["bbox"])).max() <= (0 if exact else 1)
            assert abs(mask.sum() - annotation["area"]) <= (0 if exact else 0.1 * annotation["area"])
            kinds.add((exact, annotation["iscrowd"]))
    assert {(False, 0), (True, 0)} <= kinds


def test_a_polygon_has_no_hole_and_covers_its_digit(coco):
    from pycocotools.coco import COCO

    data = COCO(str(coco / "annotations" / "instances_train2017.json"))
    images = {image["id"]: image["file_name"] for image in data.dataset["images"]}
    scenes = Scenes("train", 24, 80, (16, 30), heaps=0.05)
    compared = 0
    for number, name in images.items():
        scene = scenes[int(name.split(".")[0]) - 1]
        digits = [digit for digit in scene.digits if not digit.crowd]
        own = [a for a in data.imgToAnns[number] if not a["iscrowd"]]
        for digit, annotation in zip(digits, own, strict=True):
            assert annotation["category_id"] == digit.label + 1 and annotation["scans"] == [digit.scan]
            truth = np.zeros((80, 80), dtype=np.float32)
            digit.paste(truth)
            mask = data.annToMask(annotation).astype(bool)
            overlap = (mask & (truth >= 0.5)).sum() / (mask | (truth >= 0.5)).sum()
            assert overlap > 0.9, (name, digit.label)
            compared += isinstance(annotation["segmentation"], list)
    assert compared > 20


def test_a_heap_is_a_crowd():
    from vssm.mm.prepare import coco_annotations

    scene = Scenes("train", 1, heaps=1.0)[0]
    *others, crowd = coco_annotations(scene)
    assert crowd["iscrowd"] == 1 and len(crowd["scans"]) == 8 and sum(crowd["segmentation"]["counts"]) == 128 * 128
    assert others and all(annotation["iscrowd"] == 0 for annotation in others)


def test_run_lengths_are_pycocotools():
    from pycocotools import mask as tools

    random = np.random.default_rng(0)
    for mask in (random.random((7, 5)) > 0.5, np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        encoded = run_lengths(mask)
        decoded = tools.decode(tools.frPyObjects(encoded, *mask.shape))
        assert np.array_equal(decoded.astype(bool), mask)


def test_layout_of_ade(ade):
    from mmcv.transforms import LoadImageFromFile
    from mmseg.datasets import ADE20KDataset
    from mmseg.datasets.transforms import LoadAnnotations

    data = ADE20KDataset(
        data_root=str(ade),
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        # Classes, not names: where a name is looked up depends on the scope that the test before this one left.
        pipeline=[dict(type=LoadImageFromFile), dict(type=LoadAnnotations)],
    )
    assert len(data) == 24
    seen = set()
    for sample in data:
        assert sample["img"].shape == (80, 80, 3)
        seen |= set(np.unique(sample["gt_seg_map"]).tolist())
    # The unlabelled rim becomes the ignored label, the photograph 0 and the digits 1 to 10.
    assert seen == {*range(11), 255}


def test_classes_are_balanced():
    scenes = Scenes("train", 100)
    found = np.bincount([digit.label for scene in scenes for digit in scene.digits], minlength=10)
    assert found.sum() > 300 and found.min() > 0.75 * found.max()


def test_digits_do_not_touch_and_have_the_asked_size():
    for scene in Scenes("val", 20, 96, (24, 40)):
        assert 1 <= len(scene.digits) <= 6 and scene.image.shape == (96, 96, 3)
        covered = np.zeros((96, 96))
        for digit in scene.digits:
            assert 14 <= max(digit.coverage.shape) <= 40
            part = np.zeros((96, 96), dtype=np.float32)
            digit.paste(part)
            covered += part > 0
        assert covered.max() == 1


def test_the_same_seed_gives_the_same_bytes(coco, ade, tmp_path):
    for name, folder in (("digits-coco", coco), ("digits-ade", ade)):
        assert call(name, tmp_path / "again", *SMALL, "--overwrite") == 0
        assert contents(tmp_path / "again") == contents(folder)
        assert call(name, tmp_path / "other", *SMALL, "--seed", 1, "--overwrite") == 0
        ours, theirs = contents(folder), contents(tmp_path / "other")
        assert set(ours) == set(theirs)
        images = [file for file in ours if file.endswith(".jpg")]
        assert all(ours[file] != theirs[file] for file in images)


def test_training_and_validation_share_nothing(coco):
    train, val = annotations(coco, "train"), annotations(coco, "val")
    scans = [{scan for a in part["annotations"] for scan in a["scans"]} for part in (train, val)]
    photographs = [{image["photograph"] for image in part["images"]} for part in (train, val)]
    assert all(scans) and not scans[0] & scans[1]
    assert all(photographs) and not photographs[0] & photographs[1]
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])
    numbers = [load_scans(split)[2] for split in ("train", "val")]
    assert not set(numbers[0]) & set(numbers[1]) and len(numbers[0]) + len(numbers[1]) == 1797
    assert scans[1] <= set(numbers[1].tolist())


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert call("digits-ade", tmp_path / "out", "--train", 2, "--val", 2) == 0


def test_an_existing_folder_is_kept(coco, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert call("digits-coco", tmp_path, *SMALL) == 2
    assert "is not empty" in capsys.readouterr().err
    assert call("digits-coco", tmp_path, *SMALL, "--overwrite") == 2
    assert f"has no {RECORD}" in capsys.readouterr().err
    assert call("digits-coco", tmp_path / "mine.txt", *SMALL) == 2
    assert "is a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--train", "0"], "at least one image"),
        (["--size", "40"], "have no room for digits of 44 pixels"),
        (["--digit-size", "4", "60"], "a smallest of at least 8"),
        (["--seed", "-1"], "The seed is 0 or more"),
    ],
)
def test_numbers_out_of_range(words, sentence, tmp_path, capsys):
    assert call("digits-ade", tmp_path / "out", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out", {}) as folder:
        (folder / "half").write_text("written")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "out", {"made": "so"}):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", RECORD]


def test_missing_scikit_image_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError, match=re.escape(install_command("data"))):
        Scenes("train", 1)


def test_sound_copies(coco, ade, capsys):
    assert call("check", "coco", coco, "--counts", 24, 12) == 0
    assert call("check", "ade20k", ade, "--counts", 24, 12) == 0
    assert capsys.readouterr().out.count("no problems found in 24 + 12 images") == 2


def test_the_real_counts_are_the_default(coco, ade, capsys):
    assert call("check", "coco", coco) == 1
    out = capsys.readouterr().out
    assert "holds 24 .jpg files, 118287 are expected" in out and "holds 12 .jpg files, 5000 are expected" in out
    assert "COCO has 80 categories, not 10." in out
    assert call("check", "ade20k", ade) == 1
    out = capsys.readouterr().out
    assert "holds 24 .png files, 20210 are expected" in out and "holds 12 .jpg files, 2000 are expected" in out


def test_all_of_coco_s_problems_at_once(coco, copy, capsys):
    root = copy(coco)
    file = root / "annotations" / "instances_train2017.json"
    data = json.loads(file.read_text())
    notes = data["annotations"]
    notes[0]["category_id"] = 99
    notes[1]["image_id"] = 99999
    notes[2]["bbox"] = [70, 0, 30, 10]
    notes[3]["segmentation"] = [[1, 2, 3]]
    notes[4]["iscrowd"] = 2
    notes[5]["id"] = notes[6]["id"]
    notes[7]["segmentation"] = dict(counts=[5], size=[80, 80])
    notes[8]["area"] = -1
    notes[9]["bbox"] = None
    file.write_text(json.dumps(data))
    names = [image["file_name"] for image in data["images"]]
    (root / "train2017" / names[0]).unlink()
    (root / "train2017" / names[1]).write_bytes(b"no image")
    whole = (root / "train2017" / names[2]).read_bytes()
    (root / "train2017" / names[2]).write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (79, 80)).save(root / "train2017" / names[3])
    (root / "annotations" / "instances_val2017.json").write_text('{"images": []')
    assert call("check", "coco", root, "--counts", 24, 12) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    for words in (
        "of a category that it does not list (1)",
        "of an image that it does not list (1)",
        "whose box does not lie in the image (1)",
        "neither polygons nor a run-length encoding of the image's size (2)",
        "whose iscrowd is neither 0 nor 1 (1)",
        "gives the same annotation id twice (1)",
        "whose area is none, or larger than the image (1)",
        "without a box of four numbers (1)",
        f"do not have the size that '{file}' gives (1): {names[3]}",
        f"lists images that '{root / 'train2017'}' lacks (1): {names[0]}",
        f"cannot be read (2): {names[1]}, {names[2]}",
        "instances_val2017.json' cannot be read: ",
        "holds 23 .jpg files, 24 are expected",
    ):
        assert words in out, words
    assert len(out.strip().splitlines()) == 13


def test_all_of_ade_s_problems_at_once(ade, copy, capsys):
    root = copy(ade)
    images, maps = root / "images" / "training", root / "annotations" / "training"
    (images / "ADE_train_00000001.jpg").unlink()
    (maps / "ADE_train_00000002.png").unlink()
    (maps / "ADE_train_00000003.png").write_bytes(b"no image")
    Image.new("L", (80, 80), 151).save(maps / "ADE_train_00000004.png")
    Image.new("L", (80, 79), 1).save(maps / "ADE_train_00000005.png")
    Image.new("RGB", (80, 80)).save(maps / "ADE_train_00000006.png")
    (images / "ADE_train_00000007.jpg").write_bytes(b"no image")
    shutil.rmtree(root / "images" / "validation")
    for path in maps.iterdir():
        if int(path.stem[-8:]) > 7:
            Image.new("L", (80, 80)).save(path)
    assert call("check", "ade20k", root, "--counts", 24, 12) == 1
    out = capsys.readouterr().out
    for words in (
        f"Images in '{images}' have no label map in '{maps}' (1): ADE_train_00000002.jpg",
        f"Label maps in '{maps}' have no image in '{images}' (1): ADE_train_00000001.png",
        f"Label maps in '{maps}' cannot be read (1): ADE_train_00000003.png",
        "have values above 150 (1): 151 in ADE_train_00000004.png",
        "are not as large as their images (1): ADE_train_00000005.png",
        "no single-channel images of whole numbers (1): ADE_train_00000006.png",
        f"Images in '{images}' cannot be read (1): ADE_train_00000007.jpg",
        f"The folder '{root / 'images' / 'validation'}' does not exist.",
        "holds 23 .jpg files, 24 are expected",
        "holds 23 .png files, 24 are expected",
    ):
        assert words in out, words
    assert len(out.strip().splitlines()) == 10


def test_a_copy_that_is_not_there(tmp_path, capsys):
    assert call("check", "coco", tmp_path) == 1
    assert "does not exist" in capsys.readouterr().out
