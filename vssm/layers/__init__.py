"""Parts that several families share; timm.layers has the rest."""

from .classifier import POOLS, ClassifierHead, check_pool, next_pool, pool_tokens, pooled_width
from .conv_block import (
    CONV_BLOCK_NORMS,
    CONV_BLOCK_RENAMES,
    ChannelScale,
    ConvMixerBlock,
    InvertedDownsample,
    ResidualConvStem,
)
from .conv_ffn import ConvFFN
from .conv_norm import ConvNorm, ConvNormDownsample, ConvNormStem, LinearNorm, LinearNormMlp
from .conv_trunk import DeepConvStem, HiddenHead
from .deformable_attention import DeformableAttention, deformable_attention, raster_points
from .fused_head import FusedHead
from .high_resolution import (
    AddBranch,
    Bottleneck,
    FuseBranches,
    FuseTo,
    HighResolutionNeck,
    KeepBranch,
    KeepBranches,
    MultiScaleConv,
)
from .mixer_block import MixerBlock
from .mlp import DepthwiseMlp, add_mlp
from .odss import YOLO_NORM, GatedConvFFN, LocalBlock, ODSSBlock
from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem, channels_last, check_images
from .pieces import split_batch, split_rows
from .residual_unit import ChannelNorm, ResidualUnit
from .sparse import mask_at, sparse_form

__all__ = [
    "CONV_BLOCK_NORMS",
    "CONV_BLOCK_RENAMES",
    "POOLS",
    "YOLO_NORM",
    "AddBranch",
    "Bottleneck",
    "ChannelNorm",
    "ChannelScale",
    "ClassifierHead",
    "ConvDownsample",
    "ConvFFN",
    "ConvMixerBlock",
    "ConvNorm",
    "ConvNormDownsample",
    "ConvNormStem",
    "ConvStem",
    "DeepConvStem",
    "DeformableAttention",
    "DepthwiseMlp",
    "FuseBranches",
    "FuseTo",
    "FusedHead",
    "GatedConvFFN",
    "HiddenHead",
    "HighResolutionNeck",
    "InvertedDownsample",
    "KeepBranch",
    "KeepBranches",
    "LinearNorm",
    "LinearNormMlp",
    "LocalBlock",
    "MixerBlock",
    "MultiScaleConv",
    "ODSSBlock",
    "PatchMerging",
    "PatchStem",
    "ResidualConvStem",
    "ResidualUnit",
    "add_mlp",
    "channels_last",
    "check_images",
    "check_pool",
    "deformable_attention",
    "mask_at",
    "next_pool",
    "pool_tokens",
    "pooled_width",
    "raster_points",
    "sparse_form",
    "split_batch",
    "split_rows",
]
