"""Read images for detectors and segmentors as prediction reads them, and label maps that are what they should be."""

from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS as MMSEG_TRANSFORMS
from PIL import Image

from .._errors import DataError
from .._inputs import decode_image, read_rgb, require_file

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


@MMSEG_TRANSFORMS.register_module(name="LoadAnnotations", force=True)
class LoadLabelMap(LoadAnnotations):
    """mmseg's transform under its name, see there for the arguments.

    mmseg's own keeps the last 8 bits of deeper numbers, and leaves maps of other sizes, with further channels or with
    numbers of no class to whatever comes after it.

    Attributes:
        classes: How many classes the data set has; None: numbers are not compared. See
            :func:`~vssm.mm.label_maps.check_label_maps`, which sets it.
        ignored: The numbers that losses and metrics pass over.
    """

    classes: int | None = None
    ignored: tuple[int, ...] = (255,)

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Read ``results["seg_map_path"]`` into ``gt_seg_map`` (H, W), uint8.

        Raises:
            DataError: The file is missing or damaged, or no label map of the image and the data set.
        """
        path = results["seg_map_path"]
        published = self._read(path)
        if published.ndim != 2 or not np.issubdtype(published.dtype, np.integer):
            raise DataError(f"The label map '{path}' is no map of whole numbers in one channel.")
        size = results.get("ori_shape")
        if size is not None and published.shape != tuple(size[:2]):
            (height, width), (rows, columns) = published.shape, size[:2]
            raise DataError(f"The label map '{path}' is of {height} x {width} pixels, its image of {rows} x {columns}.")
        deep = published.dtype != np.uint8 and (published < 0) | (published > 255)
        if np.any(deep):
            raise DataError(
                f"The label map '{path}' holds {published[deep][0]}; numbers of classes are 0 to 254, 255 is ignored."
            )
        labels = published.astype(np.uint8)
        zero = results["reduce_zero_label"]
        if self.reduce_zero_label not in (None, zero):
            raise DataError(
                f"reduce_zero_label is {zero} of the data set and {self.reduce_zero_label} of its LoadAnnotations."
            )
        if zero:
            labels[labels == 0] = 255
            labels[labels != 255] -= 1
        if results.get("label_map") is not None:
            table = np.arange(256, dtype=np.uint8)
            for old, new in results["label_map"].items():
                table[old] = new
            labels = table[labels]
        if self.classes is not None:
            wrong = self._unknown()[labels]
            if wrong.any():
                raise DataError(
                    f"The label map '{path}' holds {published[wrong][0]}, which is the number of no class: there are "
                    f"{self.classes}, numbered from {int(zero)}, and {max(self.ignored)} is ignored."
                )
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")

    def _unknown(self) -> np.ndarray:
        """Of each number whether it is one of no class, (256,)."""
        unknown = np.arange(256) >= self.classes
        unknown[[number for number in self.ignored if 0 <= number < 256]] = False
        return unknown

    def _read(self, path: str) -> np.ndarray:
        """The pixels as they are stored."""
        elsewhere = self.backend_args is not None or "://" in str(path)
        if self.imdecode_backend != "pillow":
            data = fileio.get(path, backend_args=self.backend_args)
            pixels = mmcv.imfrombytes(data, flag="unchanged", backend=self.imdecode_backend)
            if pixels is None:
                raise DataError(f"The label map '{path}' cannot be read.")
        else:
            data = fileio.get(path, backend_args=self.backend_args) if elsewhere else None
            pixels = np.asarray(decode_image(path, "Label map", turn=False, data=data))
        pixels = pixels.squeeze() if pixels.ndim > 2 else pixels
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
