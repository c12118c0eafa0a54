"""Parts that several families share; timm.layers has the rest."""

from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem

__all__ = ["ConvDownsample", "ConvStem", "PatchMerging", "PatchStem"]
