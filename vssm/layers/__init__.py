"""Parts that several families share; timm.layers has the rest."""

from .conv_block import CONV_BLOCK_NORMS, ConvMixerBlock, InvertedDownsample, ResidualConvStem
from .conv_ffn import ConvFFN
from .conv_norm import ConvNorm, LinearNorm
from .mixer_block import MixerBlock
from .mlp import DepthwiseMlp
from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem

__all__ = [
    "CONV_BLOCK_NORMS",
    "ConvDownsample",
    "ConvFFN",
    "ConvMixerBlock",
    "ConvNorm",
    "ConvStem",
    "DepthwiseMlp",
    "InvertedDownsample",
    "LinearNorm",
    "MixerBlock",
    "PatchMerging",
    "PatchStem",
    "ResidualConvStem",
]
