"""Read images for detectors and segmentors as prediction reads them."""

from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS
from PIL import Image

from .._errors import DataError
from .._inputs import read_rgb, require_file

_ORIENTATION = 0x0112


@TRANSFORMS.register_module(name="LoadImageFromFile", force=True)
class LoadImage(LoadImageFromFile):
    """mmcv's transform under its name, see there for the arguments.

    mmcv's own decoder clips pixels deeper than 8 bits, does not know all formats, and turns photographs of few formats
    alone. Where it is asked for colours of a local file, :func:`~vssm._inputs.read_rgb`, which prediction uses, reads
    such files; all others are read as ever.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Read ``results["img_path"]`` into ``img`` (H, W, 3), blue first.

        Raises:
            DataError: The file is missing, no ordinary file, or no image; or annotations gave it another size.
        """
        given = results.get("width"), results.get("height")
        results = self._read(results)
        if results is not None and None not in given:
            size = results["img"].shape[1::-1]
            if size != given:
                turned = " (turned as its EXIF data say)" if _is_on_its_side(results["img_path"]) else ""
                raise DataError(
                    f"Image '{results['img_path']}'{turned} is {size[0]} x {size[1]}, but the annotations say "
                    f"{given[0]} x {given[1]}: their boxes would be elsewhere."
                )
        return results

    def _read(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results["img_path"]
        elsewhere = self.file_client_args is not None or self.backend_args is not None or "://" in str(path)
        if elsewhere or self.ignore_empty or self.color_type != "color":
            return super().transform(results)
        require_file(path, "Image")
        if not _is_beyond_opencv(path):
            try:
                return super().transform(results)
            except Exception:
                # OpenCV's failures are its own; what Pillow reads is an image, and else its sentence is said.
                pass
        image = np.ascontiguousarray(np.asarray(read_rgb(path))[..., ::-1])
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


def _is_beyond_opencv(path: str) -> bool:
    """Whether an image is deep, or to be turned as its EXIF data say in a format in which OpenCV does not look."""
    try:
        with Image.open(path) as image:
            looks = image.format in ("JPEG", "MPO", "PNG", "TIFF")
            return image.mode[0] in "IF" or (not looks and image.getexif().get(_ORIENTATION, 1) != 1)
    except Exception:
        # Whatever Pillow does not know may be OpenCV's.
        return False


def _is_on_its_side(path: str) -> bool:
    """Whether a photograph's EXIF data exchange its width and height."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:
        # Of what lies elsewhere, or is OpenCV's alone, nothing is known.
        return False
