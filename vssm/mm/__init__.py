"""Detection and segmentation: backbones for mmdet and mmseg, and further types for their configs.

A config needs ``custom_imports = dict(imports=["vssm.mm"])``. mmdet and mmseg are imported and registered here, without
the notices that they print about parts of theirs that nobody asked for.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from vssm_kernels.install import how_to_install

from .._optional import require


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Drop what imports print, warn of and log below an error; exceptions pass."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


with _without_notices():
    for _module in ("mmengine.runner", "mmcv", "mmdet.utils", "mmseg.utils"):
        require(_module, "mm")
    from mmdet.utils import register_all_modules as _register_mmdet
    from mmseg.utils import register_all_modules as _register_mmseg

    try:
        _register_mmdet(init_default_scope=False)
        _register_mmseg(init_default_scope=False)
    except ImportError as _error:
        from .._errors import MissingExtraError

        raise MissingExtraError(f"mmdet and mmseg cannot be imported ({_error}): {how_to_install('mm')}") from _error

# mmseg warns of a default at every loss that is built; its own configs leave it as it is.
warnings.filterwarnings("ignore", message="Default ``avg_non_ignore`` is False")

from .. import engine as _engine  # noqa: E402, F401  (registers the hooks and constructors that configs name)
from .backbone import VSSMBackbone, convert_detector_checkpoint  # noqa: E402
from .coco import CheckedCocoDataset, CheckedCocoMetric  # noqa: E402
from .decay import FamilyDecayConstructor  # noqa: E402
from .flops import paper_flops  # noqa: E402
from .label_maps import check_label_maps  # noqa: E402
from .loading import LoadImage, LoadLabelMap  # noqa: E402
from .neck import FinerFPN, SimpleFeaturePyramid  # noqa: E402
from .predict import DensePredictor  # noqa: E402
from .scope_head import MMSCopEHead  # noqa: E402
from .widths import fill_widths  # noqa: E402
from .yolo import ODSSPAFPN, BoxesAndScores, MambaYOLODetector  # noqa: E402
from .yolo_head import MambaYOLOHead  # noqa: E402
from .yolo_train import CentredAffine, GainJitter, MosaicOffHook, YOLOWarmupHook  # noqa: E402

__all__ = [
    "BoxesAndScores",
    "CentredAffine",
    "CheckedCocoDataset",
    "CheckedCocoMetric",
    "DensePredictor",
    "FamilyDecayConstructor",
    "FinerFPN",
    "GainJitter",
    "LoadImage",
    "LoadLabelMap",
    "MMSCopEHead",
    "MambaYOLODetector",
    "MambaYOLOHead",
    "MosaicOffHook",
    "ODSSPAFPN",
    "SimpleFeaturePyramid",
    "VSSMBackbone",
    "YOLOWarmupHook",
    "check_label_maps",
    "convert_detector_checkpoint",
    "fill_widths",
    "paper_flops",
]
