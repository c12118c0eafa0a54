"""Cityscapes and COCO-Stuff: published label maps become those that a segmentor learns, and copies are checked."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmseg")
pytest.importorskip("skimage")

from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmseg import datasets  # noqa: E402
from mmseg.datasets.transforms import LoadAnnotations  # noqa: E402
from PIL import Image  # noqa: E402
from scipy.io import savemat  # noqa: E402
from torch import nn  # noqa: E402

from vssm._cli import run  # noqa: E402
from vssm._errors import DataError  # noqa: E402
from vssm.mm import check_label_maps  # noqa: E402
from vssm.mm.label_maps import LAYOUTS  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import prepare_data  # noqa: E402

# A published number and the class that it stands for, from the sets' own tables; None: nobody labelled it.
NUMBERS = {
    "cityscapes": {0: None, 7: "road", 10: None, 11: "building", 24: "person", 26: "car", 29: None, 33: "bicycle"},
    "coco-stuff164k": {0: "person", 12: "stop sign", 89: "toothbrush", 91: "banner", 181: "wood", 255: None},
    "coco-stuff10k": {0: None, 1: "person", 13: "stop sign", 90: "toothbrush", 92: "banner", 182: "wood"},
}
KINDS = {"cityscapes": "CityscapesDataset", "coco-stuff164k": "COCOStuffDataset", "coco-stuff10k": "COCOStuffDataset"}
PUBLISHED = {"cityscapes": "_gtFine_labelIds.png", "coco-stuff164k": ".png"}


def call(*words) -> int:
    return run(prepare_data.main, [str(word) for word in words])


def label_map(name) -> np.ndarray:
    return np.repeat(np.array(list(NUMBERS[name]), dtype=np.uint8)[None], 3, axis=0)


@pytest.fixture(params=NUMBERS)
def prepared(request, tmp_path):
    """The name of a set and a copy of it: two images to train on, one held out."""
    name, labels = request.param, label_map(request.param)
    photograph, root = Image.new("RGB", labels.shape[::-1]), tmp_path / "set"
    if name == "coco-stuff10k":
        source = tmp_path / "archive"
        for folder in ("images", "annotations", "imageLists"):
            (source / folder).mkdir(parents=True)
        for split, names in (("train", ["a", "b"]), ("test", ["c"])):
            (source / "imageLists" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
            for n in names:
                photograph.save(source / "images" / f"{n}.jpg")
                savemat(source / "annotations" / f"{n}.mat", {"S": labels.astype(np.uint16)})
        assert call(name, source, root) == 0
        return name, root
    layout = LAYOUTS[name]
    for (images, maps), count in zip(layout.splits.values(), (2, 1), strict=True):
        for number in range(count):
            city = "ulm" if layout.deep else ""
            for folder in (images, maps):
                (root / folder / city).mkdir(parents=True, exist_ok=True)
            photograph.save(root / images / city / f"{number}{layout.image_suffix}")
            Image.fromarray(labels).save(root / maps / city / f"{number}{PUBLISHED[name]}")
    assert call("check", name, root, "--counts", 2, 1) == 1
    assert call(name, root) == 0
    return name, root


def dataset_of(name, root, split=0):
    """mmseg's own, as its configs describe it."""
    images, maps = list(LAYOUTS[name].splits.values())[split]
    zero = name == "coco-stuff10k"
    return getattr(datasets, KINDS[name])(
        data_root=str(root),
        data_prefix=dict(img_path=images, seg_map_path=maps),
        reduce_zero_label=zero,
        # Classes, not names: where a name is looked up depends on the scope that the test before this one left.
        pipeline=[dict(type=LoadImageFromFile), dict(type=LoadAnnotations, reduce_zero_label=zero)],
    )


def test_mmseg_reads_the_classes(prepared, capsys):
    name, root = prepared
    assert call("check", name, root, "--counts", 2, 1) == 0
    assert "no problems found in 2 + 1 images" in capsys.readouterr().out
    for split, count in ((0, 2), (1, 1)):
        dataset = dataset_of(name, root, split)
        assert len(dataset) == count
        names = dataset.metainfo["classes"]
        for sample in dataset:
            found = sample["gt_seg_map"][0].tolist()
            assert [None if n == 255 else names[n] for n in found] == list(NUMBERS[name].values())


def test_maps_that_are_there_stay(prepared, capsys):
    name, root = prepared
    made = sorted(root.rglob("*_labelTrainIds.png"))
    Image.fromarray(np.full((3, 9), 1, dtype=np.uint8)).save(made[0])
    before = made[0].read_bytes()
    if name == "coco-stuff10k":
        assert call(name, root.parent / "archive", root) == 2
        assert "say --overwrite" in capsys.readouterr().err
        return
    assert call(name, root) == 0 and made[0].read_bytes() == before
    assert call(name, root, "--overwrite") == 0 and made[0].read_bytes() != before
    assert sorted(root.rglob("*_labelTrainIds.png")) == made


def test_what_is_missing_or_wrong_is_one_sentence(prepared, capsys):
    name, root = prepared
    dataset, made = dataset_of(name, root), sorted(root.rglob("*_labelTrainIds.png"))
    check_label_maps(nn.Identity(), dataset)
    for path in made:
        path.unlink()
    with pytest.raises(DataError, match=f"^The label map '.*' does not exist; `vssm prepare {name} .*` makes"):
        check_label_maps(nn.Identity(), dataset)
    capsys.readouterr()
    assert call("check", name, root, "--counts", 2, 1) == 1
    assert f"`vssm prepare {name}" in capsys.readouterr().out
    if name == "coco-stuff10k":
        (root.parent / "archive" / "annotations" / "a.mat").write_bytes(b"no MATLAB")
        assert call(name, root.parent / "archive", root, "--overwrite") == 2
        assert "a.mat' cannot be read" in capsys.readouterr().err and root.is_dir()
        assert call(name, root, root.parent / "new") == 2
        assert "train.txt' does not exist" in capsys.readouterr().err and not (root.parent / "new").exists()
        return
    source = next(path for path in root.rglob(f"*{PUBLISHED[name]}"))
    Image.fromarray(np.full((3, 3), 200, dtype=np.uint8)).save(source)
    assert call(name, root) == 2
    assert f"The label map '{source}' holds 200, which is the number of no class." in capsys.readouterr().err
    assert call(name, root / "nowhere") == 2
    assert "nowhere" in (said := capsys.readouterr().err) and "does not exist" in said
