"""Files that other people made: pipes, bombs, deep pixels and turned photographs."""

import os
import socket

import numpy as np
import pytest
from PIL import Image, ImageOps

from vssm import _inputs
from vssm._errors import DataError
from vssm._inputs import MOST_PIXELS, decode_image, list_files, picture_suffixes, read_rgb, require_file

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
        ("png", np.rint(RAMP / 255 * 1023).astype(np.uint16)),
        ("png", np.rint(RAMP / 255 * 4095).astype(np.uint16)),
        ("tiff", np.rint(RAMP / 255 * 16383).astype(np.uint16)),
        ("tiff", RAMP.astype(np.uint16)),
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
    for value, grey in ((20, 20), (1100, 68), (20000, 78)):
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / "x.png")
        assert np.unique(read_rgb(tmp_path / "x.png")).tolist() == [grey]
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


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89HDF\r\n\x1a\n", b"GRIB____\x01"]
)
def test_what_pillow_cannot_read_by_itself_is_no_picture(start, tmp_path):
    """PostScript would be run by another program, whatever the file's suffix."""
    (tmp_path / "x.png").write_bytes(start + bytes(200))
    with pytest.raises(DataError, match="x.png' cannot be read: cannot identify"):
        decode_image(tmp_path / "x.png")
    assert not {".eps", ".ps", ".h5", ".mpg", ".wmf"} & set(picture_suffixes())
    assert {".jpg", ".jfif", ".png", ".tif", ".bmp", ".webp", ".gif", ".ppm", ".jp2"} <= set(picture_suffixes())


def test_files_of_a_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_inputs, "_said", set())
    names = ("b.PNG", "sub/a.png", "sub/notes.txt", "._b.png", ".ipynb_checkpoints/a.png", "__MACOSX/b.png", "x.h5")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    for _ in range(2):
        found = list_files(tmp_path, (".png",), deep=True)
        assert found == [tmp_path / "b.PNG", tmp_path / "sub" / "a.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"'{tmp_path}': 2 files are used, 7 others are not (._b.png, a.png, b.png, ...)."
    ]
    assert list_files(tmp_path, (".png",)) == [tmp_path / "b.PNG"]
    with pytest.raises(DataError, match="none' does not exist"):
        list_files(tmp_path / "none", (".png",))
