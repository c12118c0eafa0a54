"""Everything that the configs under ``configs/medical`` name; importing this module registers it with mmengine.

A config says ``custom_imports = dict(imports=["vssm.medical.training"])``.
"""

from .. import engine  # noqa: F401
from .._optional import require

for _module in ("scipy", "nibabel", "h5py"):
    require(_module, "medical")

from .data import ACDC, ISIC, MedicalDataset, NiftiFolder, Synapse  # noqa: E402
from .hooks import EncoderFileHook, FreezeEncoderHook, OrganTableHook, OverlayHook, TrainLossHook  # noqa: E402
from .inference import VolumeTestLoop, VolumeValLoop, predict_volume  # noqa: E402
from .losses import BCEDiceLoss, CEDiceLoss  # noqa: E402
from .masked import MaskedPretraining  # noqa: E402
from .metrics import PooledMetric, VolumeMetric  # noqa: E402
from .patches import VolumePatches  # noqa: E402
from .segmentor import UNetSegmentor  # noqa: E402
from .windows import WindowTestLoop, WindowValLoop, predict_windows  # noqa: E402

__all__ = [
    "ACDC",
    "ISIC",
    "BCEDiceLoss",
    "CEDiceLoss",
    "EncoderFileHook",
    "FreezeEncoderHook",
    "MaskedPretraining",
    "MedicalDataset",
    "NiftiFolder",
    "OrganTableHook",
    "OverlayHook",
    "PooledMetric",
    "Synapse",
    "TrainLossHook",
    "UNetSegmentor",
    "VolumeMetric",
    "VolumePatches",
    "VolumeTestLoop",
    "VolumeValLoop",
    "WindowTestLoop",
    "WindowValLoop",
    "predict_volume",
    "predict_windows",
]
