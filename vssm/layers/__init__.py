"""Parts that several families share; timm.layers has the rest."""

from .conv_ffn import ConvFFN
from .mlp import DepthwiseMlp
from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem

__all__ = ["ConvDownsample", "ConvFFN", "ConvStem", "DepthwiseMlp", "PatchMerging", "PatchStem"]
