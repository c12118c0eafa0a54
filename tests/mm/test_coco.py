"""COCO's annotations as small tools write them: filled in, or one sentence before anything is trained."""

import copy
import json
import logging

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmdet.datasets.transforms import LoadAnnotations  # noqa: E402
from mmdet.registry import DATASETS, METRICS  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from pycocotools import mask as rle  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import vssm.mm  # noqa: E402, F401
from vssm import _inputs  # noqa: E402
from vssm._errors import DataError, UserError  # noqa: E402
from vssm.engine import ConfigError, load_config  # noqa: E402
from vssm.engine.checks import check_run  # noqa: E402
from vssm.engine.run import train  # noqa: E402
from vssm.mm.check_data import check_coco  # noqa: E402
from vssm.mm.coco import check_heads  # noqa: E402

NAMES = ("square", "bar")


def triangle(x, y):
    return [[x, y, x + 20, y, x, y + 20]]


WHOLE = {
    "info": {},
    "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in (1, 2)],
    "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "bar"}],
    "annotations": [
        {
            "id": 2 * n + k, "image_id": n, "category_id": number, "bbox": [x, 10, 20, 20], "area": 200.0, "iscrowd": 0,
            "segmentation": triangle(x, 10),
        }
        for n in (1, 2)
        for k, (number, x) in enumerate(((7, 5), (3, 30)))
    ],
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Write annotations after changing a copy of them, and return the file."""

    def job(change=lambda data: None):
        data = copy.deepcopy(WHOLE)
        change(data)
        path = tmp_path / "a.json"
        path.write_text(json.dumps(data))
        return str(path)

    return job


def dataset(path, classes=NAMES, masks=False, **options):
    # A class, not a name: where a name is looked up depends on the scope that the test before left.
    pipeline = [dict(type=LoadAnnotations, with_bbox=True, with_mask=masks)]
    options = dict(metainfo=dict(classes=classes), pipeline=pipeline, serialize_data=False) | options
    return DATASETS.build(dict(type="mmdet.CocoDataset", ann_file=path, data_prefix=dict(img=""), **options))


def boxes(data):
    """(class, left edge) of every object."""
    names = data.metainfo["classes"]
    return [(names[i["bbox_label"]], i["bbox"][0]) for sample in data.data_list for i in sample["instances"]]


@pytest.mark.parametrize("classes", [NAMES, NAMES[::-1], ("bar",)])
def test_classes_are_the_configs_in_any_order(classes, write):
    expected = [pair for pair in [("square", 5), ("bar", 30)] * 2 if pair[0] in classes]
    assert boxes(dataset(write(), classes)) == expected


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("square", "rod"), "no category 'rod': its categories are 'square', 'bar'"),
        (("Square", "bar"), r"no category 'Square' \(did you mean 'square'\?\)"),
        (tuple("abcde"), "no category 'a', 'b', 'c' and 2 more"),
        ("square", r"text 'square', whose letters .* \('square',\)"),
    ],
)
def test_classes_that_the_file_lacks(classes, words, write):
    with pytest.raises(UserError, match=words):
        dataset(write(), classes)
    metric = METRICS.build(dict(type="mmdet.CocoMetric", ann_file=write()))
    with pytest.raises(UserError, match=words):
        metric.dataset_meta = dict(classes=classes)


def test_cocos_own_classes_left_in_place(write):
    with pytest.raises(DataError, match="no category 'person', 'bicycle', 'car' and 77 more"):
        dataset(write(), metainfo=None)


def test_unused_categories_are_said(write, monkeypatch, caplog):
    monkeypatch.setattr(_inputs, "_said", set())
    caplog.set_level(logging.WARNING, logger="vssm")
    for _ in range(2):
        dataset(write(), ("bar",))
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "the categories 'square' are not among metainfo.classes and not used."
    ]


def without(*keys):
    def change(data):
        for annotation in data["annotations"]:
            for key in keys:
                annotation.pop(key, None)
        for key in keys:
            data.pop(key, None)

    return change


def predictions(data):
    """The answer of a detector that finds every object."""
    for sample in data.data_list:
        whole = sample["instances"]
        shape = (sample["height"], sample["width"])
        found = dict(
            bboxes=torch.tensor([i["bbox"] for i in whole], dtype=torch.float32),
            labels=torch.tensor([i["bbox_label"] for i in whole]),
            scores=torch.linspace(0.9, 0.8, len(whole)),
        )
        if all("mask" in i for i in whole):
            found["masks"] = [rle.merge(rle.frPyObjects(i["mask"], *shape)) for i in whole]
        yield dict(img_id=sample["img_id"], ori_shape=shape, pred_instances=found)


def measure(path, data, **options):
    metric = METRICS.build(dict(type="mmdet.CocoMetric", ann_file=path, **options))
    metric.dataset_meta = data.metainfo
    metric.process({}, list(predictions(data)))
    return metric.evaluate(len(data.data_list))


@pytest.mark.parametrize("keys", [("area",), ("iscrowd",), ("info",), ("area", "iscrowd", "info"), ("bbox", "area")])
def test_optional_keys_are_filled_in(keys, write, monkeypatch, caplog):
    monkeypatch.setattr(_inputs, "_said", set())
    caplog.set_level(logging.WARNING, logger="vssm")
    expected = boxes(dataset(write()))
    path = write(without(*keys))
    data = dataset(path)
    assert boxes(data) == expected
    metrics = measure(path, data, metric=["bbox", "segm"])
    assert metrics["coco/bbox_mAP"] == metrics["coco/segm_mAP"] == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "filled in from boxes and segmentations" in said[0]
    assert all(key in said[0] for key in keys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            [dict(bbox=[5, 5, 0, 0]), dict(bbox=[500, 500, 9, 9])],
            "2 of 4 objects left out: 1 with a box of no area (id 2), 1 with a box outside of its image (id 3); "
            "metrics count them.",
        ),
        ([dict(area=0)] * 2, "2 of 4 objects left out: 2 with an area of 0 (id 2); metrics count them."),
        (
            [dict(bbox=[5, 5, 0.5, 9])],
            "1 of 4 objects left out: 1 with a box narrower than a pixel (id 2); metrics",
        ),
    ],
)
def test_unused_objects_are_said(changes, words, write, monkeypatch, caplog):
    def change(data):
        for annotation, new in zip(data["annotations"], changes, strict=False):
            annotation.update(new)

    monkeypatch.setattr(_inputs, "_said", set())
    caplog.set_level(logging.WARNING, logger="vssm")
    for _ in range(2):
        assert len(boxes(dataset(write(change)))) == 4 - len(changes)
    assert len(caplog.records) == 1 and words in caplog.records[0].getMessage()


@pytest.mark.parametrize("shape", [[[]], [[1, 2, 3, 4]], [[1, 2, 3, 4], []]])
def test_masks_without_a_shape_are_said(shape, write, monkeypatch, caplog):
    monkeypatch.setattr(_inputs, "_said", set())
    caplog.set_level(logging.WARNING, logger="vssm")
    data = dataset(write(lambda data: data["annotations"][1].update(segmentation=shape)), masks=True)
    found = data.pipeline(dict(data.data_list[0], ori_shape=(64, 64)))
    assert found["gt_ignore_flags"].tolist() == [False, True]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "1 of 4 objects left out where masks are loaded: their segmentation has no polygon of three points (id 3)."
    ]


def test_areas_are_the_masks_or_else_the_boxes(write):
    def areas(*keys):
        metric = METRICS.build(dict(type="mmdet.CocoMetric", ann_file=write(without(*keys))))
        return [annotation["area"] for annotation in metric._coco_api.dataset["annotations"]]

    assert np.allclose(areas("area"), 200, atol=15) and areas("area", "segmentation") == [400] * 4
    assert areas() == [200] * 4


def test_each_class_is_measured_as_itself(write):
    data = dataset(write(), NAMES[::-1])
    metric = METRICS.build(dict(type="mmdet.CocoMetric", ann_file=write(), classwise=True))
    metric.dataset_meta = data.metainfo
    answers = list(predictions(data))
    for answer in answers:  # bars are found somewhere else
        answer["pred_instances"]["bboxes"][answer["pred_instances"]["labels"] == 0] += 25
    for _ in range(2):
        metric.process({}, answers)
        metrics = metric.evaluate(2)
        assert (metrics["coco/square_precision"], metrics["coco/bar_precision"]) == (1, 0)


@pytest.mark.parametrize("numbers", [range(4), "abcd"])
def test_objects_may_have_any_ids(numbers, write):
    def change(data):
        for annotation, number in zip(data["annotations"], numbers, strict=True):
            annotation["id"] = number

    path = write(change)
    assert measure(path, dataset(path), metric="bbox")["coco/bbox_mAP"] == 1


def set_to(part, key, value):
    def change(data):
        data[part][1][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("bbox", "segmentation"), r"annotations\[0\] without a box of four numbers"),
        (set_to("annotations", "bbox", [1, 2, "3", 4]), r"annotations\[1\] without a box of four numbers"),
        (
            set_to("annotations", "bbox", [float("nan"), 2, 3, 4]),
            r"annotations\[1\] .* four numbers: it is \[nan, 2, 3, 4\]",
        ),
        (
            set_to("annotations", "bbox", [1, 2, float("inf"), 4]),
            r"annotations\[1\] .* four numbers: it is \[1, 2, inf, 4\]",
        ),
        (set_to("annotations", "area", float("nan")), r"annotations\[1\] with an area that is nan"),
        (set_to("annotations", "category_id", [1]), r"annotations\[1\], which has a category_id that is \[1\]"),
        (set_to("annotations", "id", 2), "gives the id 2 to two annotations"),
        (set_to("annotations", "category_id", "3"), r"annotations\[1\] of the category '3', the categories are 7, 3"),
        (set_to("annotations", "image_id", "1"), r"annotations\[1\] of the image '1', the images are 1, 2"),
        (set_to("annotations", "image_id", 9), r"annotations\[1\] of the image 9, the images are 1, 2"),
        (
            set_to("annotations", "segmentation", {"size": [32, 64], "counts": [0, 2048]}),
            r"annotations\[1\] with a mask of the size \[32, 64\] in an image of \[64, 64\]",
        ),
        (set_to("images", "width", "64"), r"images\[1\], which has a width that is '64'"),
        (set_to("images", "id", 1), "gives the id 1 to two images"),
        (set_to("categories", "name", "square"), "two categories with the name 'square'"),
        (lambda data: data["images"].append(3), r"images\[2\], which is 3, not an object"),
        (lambda data: data.update(annotations={}), "no.*|categories|annotations"),
        (lambda data: data.update(images={"a": 1}), "images that are {'a': 1}, not a list"),
        (lambda data: data["images"][0].pop("file_name"), r"images\[0\], which has no file_name"),
    ],
)
def test_broken_entries_are_one_sentence(change, words, write):
    if words.startswith("no.*"):
        assert boxes(dataset(write(change))) == []
        return
    with pytest.raises(DataError, match=words) as error:
        dataset(write(change), ("square",))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "{", "[" * 100_000, '"a"', "\xff", '{"images": 9e999}'])
def test_files_that_are_no_annotations(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match="cannot be read|holds no COCO|not a list") as error:
        dataset(str(tmp_path / "a.json"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_boxes_without_masks(write):
    for change in (without("segmentation"), lambda data: data["annotations"][1].update(segmentation=[])):
        path = write(change)
        with pytest.raises(DataError, match="objects without a segmentation, but the pipeline loads masks"):
            dataset(path, masks=True)
        assert len(dataset(path).data_list) == 2
        with pytest.raises(DataError, match="the metric 'segm' measures masks"):
            METRICS.build(dict(type="mmdet.CocoMetric", ann_file=path, metric=["bbox", "segm"]))
        METRICS.build(dict(type="mmdet.CocoMetric", ann_file=path, metric="bbox"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory, dense_data):
    from .conftest import COMMON, DETECTION

    path = tmp_path_factory.mktemp("detector") / "detector_of_coco_tests.py"
    path.write_text(DETECTION.format(common=COMMON, root=dense_data, length=1))
    init_default_scope("mmdet")
    return MODELS.build(load_config(str(path)).model)


def test_heads_have_the_datas_classes(detector, write):
    check_heads(detector, dataset(write()))
    with pytest.raises(
        ConfigError,
        match=r"data has 1 classes \('bar'\), but model.roi_head.bbox_head 2, model.roi_head.mask_head 2: say "
        r"--cfg-options model.roi_head.bbox_head.num_classes=1 model.roi_head.mask_head.num_classes=1",
    ):
        check_run(detector, DataLoader(dataset(write(), ("bar",))), "train_dataloader")
    with pytest.raises(DataError, match="without a segmentation, but the model has a mask head"):
        check_heads(detector, dataset(write(without("segmentation"))))
    check_heads(detector, dataset(write(without("segmentation")), test_mode=True))


def test_a_config_without_our_imports_is_checked(dense_config, tmp_path):
    """mmdet's own types, and a head of 80 classes."""
    more = "custom_imports = None\nmodel.update(backbone=dict(type='ResNet', depth=18, out_indices=(0, 1, 2, 3)))\n"
    more += "model['neck'].update(in_channels=[64, 128, 256, 512])\n"
    more += "model['roi_head']['bbox_head'].update(num_classes=80)\n"
    config = dense_config("detection", more=more)
    with pytest.raises(ConfigError, match="data has 2 classes .* but model.roi_head.bbox_head 80"):
        train(str(config), str(tmp_path / "wd"))


def test_segmentors_heads_have_the_datas_classes(dense_config, tmp_path):
    config = dense_config("segmentation", more="model['decode_head'].update(num_classes=150)\n")
    with pytest.raises(ConfigError, match=r"data has 2 classes \('ground', 'thing'\), but model.decode_head 150"):
        train(str(config), str(tmp_path / "wd"))


BROKEN = {
    "width is text": ("images", "width", "64"),
    "no height": ("images", "height", None),
    "a list for a name": ("images", "file_name", ["a"]),
    "a list for a category": ("annotations", "category_id", [1]),
    "an object for an image": ("annotations", "image_id", {}),
    "a width of 400 digits": ("images", "width", 10**400),
    "a box of 400 digits": ("annotations", "bbox", [10**400, 0.5, 1, 1]),
    "an area of 400 digits": ("annotations", "area", 10**400),
    "runs of text": ("annotations", "segmentation", dict(size=[64, 64], counts=["1", "2"])),
    "negative runs": ("annotations", "segmentation", dict(size=[64, 64], counts=[5000, -904])),
    "no runs": ("annotations", "segmentation", dict(size=[64, 64], counts="")),
    "polygons of text": ("annotations", "segmentation", [["a"] * 6]),
    "a list for a class": ("categories", "name", ["x"]),
    "a truth for an id": ("annotations", "id", True),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_check_of_copies_takes_any_json(case, tmp_path):
    from PIL import Image

    part, key, value = BROKEN[case]
    found = []
    for broken in (False, True):
        data = copy.deepcopy(WHOLE)
        for image in data["images"]:
            image["file_name"] = image["file_name"].replace("png", "jpg")
        if broken:
            data[part][1][key] = value
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for split in ("train", "val"):
            (tmp_path / f"{split}2017").mkdir(exist_ok=True)
            for n in (1, 2):
                Image.new("RGB", (64, 64)).save(tmp_path / f"{split}2017" / f"{n}.jpg")
            (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data))
        found.append(check_coco(tmp_path, (2, 2)))
    assert found[0] == [] and len(found[1]) >= 2 and all("\n" not in text for text in found[1])
