"""Training reads images as prediction does, and label maps that are what they should be."""

import os
import shutil

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmengine.registry import TRANSFORMS  # noqa: E402
from mmseg.datasets.transforms import LoadAnnotations  # noqa: E402
from PIL import Image  # noqa: E402

import vssm.mm  # noqa: E402, F401
from vssm._errors import DataError  # noqa: E402
from vssm.engine import run  # noqa: E402
from vssm.engine.images import open_image  # noqa: E402

RAMP = np.tile(np.arange(256, dtype=np.uint8), (8, 1))


def load(path, **options):
    return TRANSFORMS.build(dict(type="LoadImageFromFile", **options))({"img_path": str(path)})


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("grey.png", RAMP),
        ("colour.png", np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)),
        ("16bit.png", RAMP.astype(np.uint16) * 257),
        ("float.tiff", RAMP.astype(np.float32) / 255),
        ("32bit.tiff", RAMP.astype(np.int32) * 257),
        ("picture.gif", RAMP),
    ],
)
def test_training_and_prediction_see_the_same_pixels(name, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / name)
    found = load(tmp_path / name)
    assert np.array_equal(found["img"][..., ::-1], open_image(tmp_path / name)) and found["img"].dtype == np.uint8
    assert found["img_shape"] == found["ori_shape"] == pixels.shape[:2]
    assert load(tmp_path / name, to_float32=True)["img"].dtype == np.float32


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_alike(orientation, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert load(tmp_path / "x.jpg")["img_shape"] == open_image(tmp_path / "x.jpg").size[::-1]
    for suffix in ("png", "tiff", "webp"):
        photo.save(tmp_path / f"x.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        image = load(tmp_path / f"x.{suffix}")["img"][..., ::-1]
        assert np.array_equal(image, open_image(tmp_path / f"x.{suffix}")), suffix


@pytest.mark.parametrize("options", [{}, dict(color_type="unchanged"), dict(backend_args=dict(backend="local"))])
def test_images_have_the_size_of_their_annotations(options, tmp_path):
    photo = Image.new("RGB", (12, 9))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "plain.jpg")
    photo.save(tmp_path / "turned.jpg", exif=exif)
    transform = TRANSFORMS.build(dict(type="LoadImageFromFile", **options))

    def read(name, width, height):
        return transform(dict(img_path=str(tmp_path / name), width=width, height=height))["img_shape"]

    assert read("plain.jpg", 12, 9) == (9, 12) and read("plain.jpg", 12.0, 9) == (9, 12)
    with pytest.raises(DataError, match=r"plain.jpg' is 12 x 9, but the annotations say 6 x 4"):
        read("plain.jpg", 6, 4)
    if "color_type" not in options:  # pixels as they are stored are not turned
        with pytest.raises(DataError, match=r"turned.jpg' \(turned as .*\) is 9 x 12, but the annotations say 12 x 9"):
            read("turned.jpg", 12, 9)


def test_every_scope_has_the_one_loader():
    for scope in ("mmdet", "mmseg", "mmengine"):
        with TRANSFORMS.switch_scope_and_registry(scope) as registry:
            assert registry.get("LoadImageFromFile") is vssm.mm.LoadImage


def test_ordinary_photographs_are_decoded_as_ever(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    expected = LoadImageFromFile().transform({"img_path": str(tmp_path / "x.jpg")})
    assert np.array_equal(load(tmp_path / "x.jpg")["img"], expected["img"])


def test_what_is_no_image_is_one_sentence(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, words in (("x.jpg", "cannot be read"), ("pipe.jpg", "named pipe"), ("none.jpg", "does not exist")):
        with pytest.raises(DataError, match=words):
            load(tmp_path / name)


LABELS = np.repeat(np.array([[0, 1, 2, 255]], dtype=np.uint8), 3, axis=0)


def load_labels(path, classes=3, zero=False, **more):
    loader = vssm.mm.LoadLabelMap(**more)
    loader.classes = classes
    return loader({"seg_map_path": str(path), "ori_shape": (3, 4), "reduce_zero_label": zero, "seg_fields": []})


@pytest.mark.parametrize(("classes", "zero"), [(3, False), (2, True), (None, True)])
def test_label_maps_are_read_as_ever(classes, zero, tmp_path):
    path = tmp_path / "x.png"
    for pixels in (LABELS, LABELS.astype(np.uint16)):
        Image.fromarray(pixels).save(path)
        results = {"seg_map_path": str(path), "reduce_zero_label": zero, "seg_fields": [], "label_map": {0: 1, 1: 0}}
        expected = LoadAnnotations()(dict(results, seg_fields=[]))["gt_seg_map"]
        found = vssm.mm.LoadLabelMap()(results)["gt_seg_map"]
        assert np.array_equal(found, expected) and found.dtype == np.uint8
        assert set(np.unique(load_labels(path, classes, zero)["gt_seg_map"])) == {*range(3 - zero), 255}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: labels.astype(np.uint16) + (labels == 2) * np.uint16(256), "holds 258; numbers of classes"),
        (lambda labels: np.where(labels == 2, 7, labels).astype(np.uint8), "holds 7, .* no class: there are 3"),
        (lambda labels: labels[:2], "is of 2 x 4 pixels, its image of 3 x 4"),
        (lambda labels: np.stack([labels] * 2, -1), "is no map of whole numbers in one channel"),
        (lambda labels: np.stack([labels] * 3, -1), "is no map of whole numbers in one channel"),
    ],
)
def test_what_is_no_label_map_of_the_image_is_one_sentence(change, said, tmp_path):
    Image.fromarray(change(LABELS)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=f"^The label map '.*x.png' {said}"):
        load_labels(tmp_path / "x.png")


def test_numbers_of_no_class_stop_training_and_tests(dense_config, dense_data, tmp_path):
    root = tmp_path / "own"
    shutil.copytree(dense_data, root)
    Image.fromarray(np.full((64, 80), 7, dtype=np.uint8)).save(root / "labels" / "3.png")
    config = str(dense_config("segmentation", length=4, root=root))
    with pytest.raises(DataError, match="3.png' holds 7, which is the number of no class: there are 2"):
        run.train(config, str(tmp_path / "run"))
    Image.fromarray(np.full((64, 80), 1, dtype=np.uint8)).save(root / "labels" / "3.png")
    run.train(str(dense_config("segmentation", root=root)), str(tmp_path / "run"))
    Image.fromarray(np.full((64, 80), 7, dtype=np.uint8)).save(root / "labels" / "3.png")
    with pytest.raises(DataError, match="3.png' holds 7"):
        run.test(str(dense_config("segmentation", root=root)), str(tmp_path / "run/iter_1.pth"), str(tmp_path / "run"))
