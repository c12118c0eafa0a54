"""Spatial-Mamba: hierarchical backbones of a state space whose states are fused with their neighbours'.

Paper: Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion, arXiv 2410.15091 (ICLR
2025).
Official code: https://github.com/EdwardChasel/Spatial-Mamba (Apache-2.0). Written anew from the paper, the shapes of
its checkpoints and the numbers of the official model.

What differs from the official code:
- the fusion is three dilated convolutions in training and in evaluation, and always in float32; nothing is cached. The
  official evaluation keeps the merged kernel of its first forward pass for good, whatever is trained or loaded later,
  and has no backward pass. `timm.utils.reparameterize_model` merges the kernels here, when asked to;
- maps are channels-last, and downsampling stands at the start of a stage;
- names say what a thing is (`stem.conv1`, `pos_conv1`, `mixer.x_proj`); `checkpoint_filter_fn` maps the official ones.

The official weight decay spares 1-D tensors and biases, so it decays A_logs; `no_weight_decay()` spares that as well.
Both decay the fusion kernels.
"""

from typing import Tuple, Union

import torch.nn as nn
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter
from ..layers import (
    CONV_BLOCK_NORMS,
    CONV_BLOCK_RENAMES,
    ClassifierHead,
    ConvMixerBlock,
    InvertedDownsample,
    ResidualConvStem,
)
from ..scans import Route, SpatialFusionSS2D
from ._backbone import Stage, StagedBackbone, drop_path_rates, renamed_arguments, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family

__all__ = ["SpatialMamba"]


@renamed_arguments(embed_dim="dims")
class SpatialMamba(StagedBackbone):
    """Spatial-Mamba (arXiv 2410.15091).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        ssm_ratio: inner width of the scan as a multiple of the width.
        mlp_ratio: hidden width of the MLP as a multiple of the width.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0. The official training: 0.2 for tiny,
            0.3 for small, 0.5 for base.

    Input (B, in_chans, H, W) of any size. `forward_features` gives (B, H / 32, W / 32, C), sizes rounded up.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (2, 4, 8, 4),
        dims: Union[int, Tuple[int, ...]] = 64,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)

        dims = stage_dims(dims, depths)
        self.stem = ResidualConvStem(in_chans, dims[0], **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = InvertedDownsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks = []
            for rate in rates:
                mixer = SpatialFusionSS2D(dims[i], ssm_ratio=ssm_ratio, A_init=A_init, **dd)
                blocks.append(ConvMixerBlock(dims[i], mixer, mlp_ratio=mlp_ratio, drop_path=rate, **dd))
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = stage_info(dims)
        self.num_features = self.head_hidden_size = dims[-1]
        self.norm = nn.LayerNorm(dims[-1], **dd)
        self.head = ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the normalised last map (B, H', W', C)."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, num_classes); to the pooled features (B, C) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Official name -> ours, in order.
_RENAMES = (
    *CONV_BLOCK_RENAMES,
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.", ".mixer."),
    (r"\.mixer\.conv2d\.", ".mixer.conv."),
    (r"\.mixer\.x_proj_weight$", ".mixer.x_proj.weight"),
    (r"\.state_fusion\.alpha$", ".fusion.alpha"),
    (r"\.state_fusion\.kernel_3$", ".fusion.kernel1"),
    (r"\.state_fusion\.kernel_3_1$", ".fusion.kernel3"),
    (r"\.state_fusion\.kernel_3_2$", ".fusion.kernel5"),
)


checkpoint_filter_fn = build_filter(_RENAMES)


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        url=url,
        first_conv="stem.conv1.conv",
        license="apache-2.0",
        origin_url="https://github.com/EdwardChasel/Spatial-Mamba",
        paper_ids="arXiv:2410.15091",
        paper_name="Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion",
        **kwargs,
    )


def _drive(file_id: str) -> dict:
    return _cfg(description=f"Not published as a direct download: https://drive.google.com/file/d/{file_id}/view.")


default_cfgs = generate_default_cfgs(
    {
        "spatialmamba_tiny.in1k": _drive("19kXoqGSTuKKs4AHbdUSrdKZTwTWenLIW"),
        "spatialmamba_small.in1k": _drive("1Wb3sYoWLpgmWrmHMYKwdgDwGPZaqM28O"),
        "spatialmamba_base.in1k": _drive("1k8dHp2QRCOqBSgAi36YkhZp_O8LqOPjM"),
        "spatialmamba_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="spatialmamba",
        title="Spatial-Mamba",
        models=(SpatialMamba,),
        scan_patterns={"one direction": (Route(),)},
        dense_maps=DenseMaps.NEW_NORMS,
        # The official recipes spare what has "norm" in its name there: the batch norms called `bn` here, too, but not
        # the norms of the blocks (ours is not the "norm1" in "outnorm1").
        dense_decay={"norm": 0.0, **dict.fromkeys(CONV_BLOCK_NORMS, 0.0), ".norm1": 1.0, ".norm2": 1.0},
        counted_in_training=True,
    )
)


def _create_spatialmamba(variant: str, pretrained: bool = False, **kwargs) -> SpatialMamba:
    return build_model(SpatialMamba, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def spatialmamba_tiny(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """Spatial-Mamba-T as published."""
    args = dict(dims=64, depths=(2, 4, 8, 4))
    return _create_spatialmamba("spatialmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def spatialmamba_small(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """Spatial-Mamba-S as published."""
    args = dict(dims=64, depths=(2, 4, 21, 5))
    return _create_spatialmamba("spatialmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def spatialmamba_base(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """Spatial-Mamba-B as published."""
    args = dict(dims=96, depths=(2, 4, 21, 5))
    return _create_spatialmamba("spatialmamba_base", pretrained, **dict(args, **kwargs))


@register_model
def spatialmamba_pico(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """A Spatial-Mamba of this package for demos and tests; no published weights."""
    args = dict(dims=16, depths=(1, 1, 2, 1))
    return _create_spatialmamba("spatialmamba_pico", pretrained, **dict(args, **kwargs))
