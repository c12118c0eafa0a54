"""Image files: found, and read or refused."""

import pytest
from PIL import Image

from vssm.engine import DataError, find_images
from vssm.engine.images import open_image


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_open_image_refuses(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match="x.png' cannot be read"):
        open_image(tmp_path / "x.png")
    with pytest.raises(DataError, match="y.png' does not exist"):
        open_image(tmp_path / "y.png")


def test_open_image_refuses_bombs(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="x.png' cannot be read"):
        open_image(tmp_path / "x.png")


def test_find_images(image_folder, tmp_path):
    assert len(find_images([image_folder / "val"])) == 11
    assert find_images(["a.png", "b.txt"]) == ["a.png", "b.txt"]
    with pytest.raises(DataError, match="holds no images"):
        find_images([tmp_path])
