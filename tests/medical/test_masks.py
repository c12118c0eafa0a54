"""Masks of two classes in the many ways they are stored."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vssm._errors import DataError
from vssm.medical.data import ISIC
from vssm.medical.masks import read_mask

from .conftest import write_isic

SQUARE = np.zeros((24, 32), np.uint8)
SQUARE[6:18, 8:24] = 1
RED = np.array([128, 0, 0], np.uint8)


def palette(indices, colours):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


FORMS = {
    "0 and 1": Image.fromarray(SQUARE),
    "0 and 255": Image.fromarray(SQUARE * 255),
    "0 and 2": Image.fromarray(SQUARE * 2),
    "0 and 128": Image.fromarray(SQUARE * 128),
    "bits": Image.fromarray(SQUARE.astype(bool)),
    "16 bit, 0 and 1": Image.fromarray(SQUARE.astype(np.uint16)),
    "16 bit, 0 and 255": Image.fromarray(SQUARE.astype(np.uint16) * 255),
    "16 bit, 0 and 65535": Image.fromarray(SQUARE.astype(np.uint16) * 65535),
    "32 bit, 0 and 1": Image.fromarray(SQUARE.astype(np.int32)),
    "float, 0 and 1": Image.fromarray(SQUARE.astype(np.float32)),
    "float, 0 and 255": Image.fromarray(SQUARE.astype(np.float32) * 255),
    "palette, all black": palette(SQUARE, [0] * 6),
    "palette, red": palette(SQUARE, [0, 0, 0, *RED]),
    "palette, two blues": palette(SQUARE, [0, 0, 90, 0, 0, 200]),
    "palette, grey scale": palette(SQUARE * 255, [level for grey in range(256) for level in [grey] * 3]),
    "palette, index 15": palette(SQUARE * 15, [7] * 48),
    "RGB, 0 and 1": Image.fromarray(np.dstack([SQUARE] * 3)),
    "RGB, 0 and 255": Image.fromarray(np.dstack([SQUARE * 255] * 3)),
    "RGB, dark red": Image.fromarray(SQUARE[..., None] * RED),
    "RGBA, opaque": Image.fromarray(np.dstack([SQUARE * 255] * 3 + [np.full_like(SQUARE, 255)])),
    "RGBA, white on transparent white": Image.fromarray(np.dstack([np.full_like(SQUARE, 255)] * 3 + [SQUARE * 255])),
    "grey with alpha": Image.fromarray(np.dstack([SQUARE * 255] * 2), "LA"),
    "soft edges": Image.fromarray(SQUARE * 255).filter(ImageFilter.GaussianBlur(0.7)),
    "soft edges, 16 bit": Image.fromarray(
        np.asarray(Image.fromarray(SQUARE * 255).filter(ImageFilter.GaussianBlur(0.7))).astype(np.uint16) * 257
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_classes(form, tmp_path):
    path = tmp_path / ("mask.tiff" if "float" in form or "32" in form else "mask.png")
    FORMS[form].save(path)
    mask = read_mask(path)
    assert mask.dtype == np.uint8 and np.array_equal(mask >= 128, SQUARE == 1)


@pytest.mark.parametrize("level", [0, 1])
def test_masks_of_one_class(level, tmp_path):
    for number, scale in enumerate((1, 255)):
        Image.fromarray(np.full((8, 8), level * scale, np.uint8)).save(tmp_path / f"{number}.png")
        assert np.unique(read_mask(tmp_path / f"{number}.png")).tolist() == [level * 255]
    palette(np.full((8, 8), level), [0, 0, 0, *RED]).save(tmp_path / "p.png")
    assert np.unique(read_mask(tmp_path / "p.png")).tolist() == [level * 255]


def test_jpeg_masks_lose_nothing_but_edges(tmp_path):
    Image.fromarray(SQUARE * 255).save(tmp_path / "mask.jpg", quality=60)
    assert ((read_mask(tmp_path / "mask.jpg") >= 128) == (SQUARE == 1)).all()


LEVELS = np.repeat(np.arange(3, dtype=np.uint8), 8)[None].repeat(8, 0)
REFUSED = {
    "three labels": (Image.fromarray(LEVELS), "has the values 0, 1, 2, which are no two classes"),
    "three areas": (Image.fromarray(LEVELS * 127), "has the values 0, 127, 254, which"),
    "labels 1 and 2": (Image.fromarray(SQUARE + 1), "has the values 1, 2, which"),
    "many labels": (Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)), "0, 1, 2, 3, 4, 5, 6, 7, ..."),
    "one grey": (Image.fromarray(np.full((9, 9), 90, np.uint8)), "has the values 90, which"),
    "three indices": (palette(LEVELS, [9] * 9), "palette and its indices 0, 1, 2, which are no two classes"),
    "white background": (palette(SQUARE, [255] * 3 + [0] * 3), "index 0 is white and whose index 1 is black"),
    "three colours": (Image.fromarray(LEVELS[..., None] * (RED // 2)), "has 3 colours, not black and one"),
    "black on transparent": (
        Image.fromarray(np.dstack([np.zeros_like(SQUARE)] * 3 + [SQUARE * 255])),
        "is black and transparent",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_mask_of_two_classes_is_one_sentence(case, tmp_path):
    image, said = REFUSED[case]
    image.save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=said) as error:
        read_mask(tmp_path / "mask.png")
    assert "store it in grey" in str(error.value) and "\n" not in str(error.value)


def test_float_masks_without_numbers(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "m.tiff")
    with pytest.raises(DataError, match="NaN or infinite"):
        read_mask(tmp_path / "m.tiff")


def test_the_data_set_reads_masks_of_0_and_1(tmp_path):
    root = write_isic(tmp_path / "isic")
    expected = ISIC(str(root), "test", dict(size=32))[0]["label"]
    for path in (root / "val" / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    assert expected.any() and ISIC(str(root), "test", dict(size=32))[0]["label"].equal(expected)
