"""Parts that several families share; timm.layers has the rest."""

from .mlp import DepthwiseMlp
from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem

__all__ = ["ConvDownsample", "ConvStem", "DepthwiseMlp", "PatchMerging", "PatchStem"]
