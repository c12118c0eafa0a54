"""Files that other people made: pipes, bombs, deep pixels and turned photographs."""

import os
import socket

import numpy as np
import pytest
from PIL import Image, ImageOps

from vssm._errors import DataError
from vssm._inputs import MOST_PIXELS, decode_image, read_rgb, require_file

RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))


def test_only_ordinary_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        for name, kind in (("pipe.png", "a named pipe"), ("s.png", "a socket"), (".", "a folder")):
            with pytest.raises(DataError, match=f"is {kind}, not an ordinary file"):
                require_file(tmp_path / name)
    with pytest.raises(DataError, match="Mask '/dev/zero' is a device"):
        decode_image("/dev/zero", "Mask")
    for name in ("none.png", "x" * 300, "a\0b"):
        with pytest.raises(DataError, match="does not exist|cannot be read"):
            read_rgb(tmp_path / name)
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to("file.png")
    assert require_file(tmp_path / "link.png") == tmp_path / "link.png"
    with pytest.raises(DataError, match="does not exist"):
        require_file(tmp_path / "file.png" / "below")


def test_pictures_are_bounded(tmp_path):
    side = int(MOST_PIXELS**0.5) + 2
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(DataError, match="more than 178,956,970 pixels"):
        decode_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("suffix", "array"),
    [
        ("png", RAMP),
        ("png", RAMP.astype(np.uint16) * 257),
        ("tiff", RAMP.astype(np.uint16) * 257),
        ("tiff", RAMP.astype(np.int32)),
        ("tiff", RAMP.astype(np.int32) * 257),
        ("tiff", RAMP.astype(np.int32) * 1_000_000),
        ("tiff", RAMP.astype(np.float32) / 255),
        ("tiff", RAMP.astype(np.float32)),
        ("tiff", RAMP.astype(np.float32) * 20 - 1000),
    ],
)
def test_deep_pixels_are_scaled(suffix, array, tmp_path):
    Image.fromarray(array).save(tmp_path / f"x.{suffix}")
    got = np.asarray(read_rgb(tmp_path / f"x.{suffix}"))
    assert got.shape == (4, 256, 3) and np.array_equal(got[..., 1], RAMP)


def test_a_dark_deep_picture_stays_dark(tmp_path):
    Image.fromarray(np.full((4, 4), 514, np.uint16)).save(tmp_path / "x.png")
    assert np.unique(read_rgb(tmp_path / "x.png")).tolist() == [2]
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match="NaN or infinite"):
        read_rgb(tmp_path / "x.tiff")


def test_photographs_are_turned(tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 10, 3), dtype=np.uint8))
    for orientation in range(1, 9):
        exif = photo.getexif()
        exif[0x0112] = orientation
        photo.save(tmp_path / "x.png", exif=exif)
        turned = ImageOps.exif_transpose(Image.open(tmp_path / "x.png"))
        assert np.array_equal(read_rgb(tmp_path / "x.png"), turned)
