"""Training reads images as prediction does."""

import os

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmengine.registry import TRANSFORMS  # noqa: E402
from PIL import Image  # noqa: E402

import vssm.mm  # noqa: E402, F401
from vssm._errors import DataError  # noqa: E402
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
