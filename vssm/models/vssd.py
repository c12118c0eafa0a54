"""VSSD: hierarchical backbones of non-causal state-space duals, with softmax attention in the last stage.

Paper: VSSD: Vision Mamba with Non-Causal State Space Duality, arXiv 2407.18559 (ICCV 2025).
Official code: https://github.com/YuHengsss/VSSD (no licence). Written anew from the paper, the released checkpoints'
shapes and the numbers of the official model; none of the official code is in this file.

This is the 2024 version. The checkpoints that the authors call `iccv2025` belong to another architecture (rotary
positions, another norm in the mixer), which this package does not have.

What differs from the official code:
- images of any size: the official classifier refuses sides that are not multiples of 32, its detector does not;
- the heads share keys and queries, so one matrix product for all heads makes the state, and one reads it;
- under float16 these products are made in float32: the state is a plain sum over all tokens;
- maps are channels-last, and downsampling stands at the start of a stage;
- names say what a thing is (`stem.conv1`, `pos_conv1`, `mixer.in_proj`); `checkpoint_filter_fn` maps the official ones.

The official weight decay spares 1-D tensors and biases, hence A_log, D and dt_bias, which `no_weight_decay()` names.
The published GFLOPs count the two products of an SSD for one of its heads: fvcore does not see
that the others share the keys and queries. All heads together: 2.41, 4.69, 7.76, 16.72.
Tags: `in1k`, and `mesa_in1k` for training with MESA, a sharpness-aware loss on an averaged teacher.
"""

from functools import partial
from typing import Any, Dict, Tuple, Union

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Attention
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checkpoint import build_filter
from ..layers import (
    CONV_BLOCK_NORMS,
    CONV_BLOCK_RENAMES,
    ClassifierHead,
    ConvMixerBlock,
    InvertedDownsample,
    ResidualConvStem,
)
from ..scans import NonCausalSSD2D
from ._backbone import Stage, StagedBackbone, drop_path_rates, renamed_arguments, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family

__all__ = ["VSSD"]


class MapAttention(nn.Module):
    """Softmax attention among the tokens of a channels-last map: (B, H, W, C) to the same."""

    def __init__(self, dim: int, num_heads: int, device=None, dtype=None):
        super().__init__()
        self.attn = Attention(dim, num_heads, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and forward_ad._current_level >= 0:
            # The fused attention of PyTorch has no forward-mode derivative.
            with sdpa_kernel(SDPBackend.MATH):
                return self.attn(x.flatten(1, 2)).view(x.shape)
        return self.attn(x.flatten(1, 2)).view(x.shape)


@renamed_arguments(embed_dim="dims")
class VSSD(StagedBackbone):
    """VSSD (arXiv 2407.18559), the version of 2024.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage; the last stage mixes by softmax attention, the others by non-causal SSD.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        num_heads: heads in each stage.
        d_state: states of the SSD.
        ssm_ratio: inner width of the SSD as a multiple of the width.
        mlp_ratio: hidden width of the MLP as a multiple of the width.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0. The official training: 0.2 for micro
            and tiny, 0.4 for small, 0.6 for base.

    Input (B, in_chans, H, W) of any size. `forward_features` gives (B, H / 32, W / 32, C), sizes rounded up.

    Raises:
        ValueError: `depths` and `num_heads` differ in length, or heads do not divide a width.
    """

    state_space_parameters = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (2, 4, 8, 4),
        dims: Union[int, Tuple[int, ...]] = 64,
        num_heads: Tuple[int, ...] = (2, 4, 8, 16),
        d_state: int = 64,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = "uniform",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if len(num_heads) != len(depths):
            raise ValueError(f"VSSD: num_heads needs one number for each of the {len(depths)} stages, got {num_heads}")
        dims = stage_dims(dims, depths)
        if dims[-1] % num_heads[-1]:
            raise ValueError(f"VSSD: the last stage's width {dims[-1]} is not divisible by {num_heads[-1]} heads")
        super().__init__(in_chans, num_classes, drop_rate)

        self.stem = ResidualConvStem(in_chans, dims[0], **dd)
        states: Dict[str, Any] = dict(d_state=d_state, ssm_ratio=ssm_ratio, A_init=A_init)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = InvertedDownsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks = []
            for rate in rates:
                mixer: nn.Module
                if i == len(depths) - 1:
                    mixer = MapAttention(dims[i], num_heads[i], **dd)
                else:
                    mixer = NonCausalSSD2D(dims[i], num_heads[i], **states, **dd)
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
    (r"\.attn\.to_qkv\.", ".mixer.attn.qkv."),
    (r"\.attn\.to_out\.", ".mixer.attn.proj."),
    (r"(blocks\.\d+)\.attn\.norm\.", r"\1.mixer.out_norm."),
    (r"(blocks\.\d+)\.attn\.conv2d\.", r"\1.mixer.conv."),
    (r"(blocks\.\d+)\.attn\.", r"\1.mixer."),
)


checkpoint_filter_fn = build_filter(
    _RENAMES,
    note="; only checkpoints of the 2024 version fit, those called iccv2025 are of another architecture",
)


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        url=url,
        first_conv="stem.conv1.conv",
        license="unspecified (the official repository grants none)",
        origin_url="https://github.com/YuHengsss/VSSD",
        paper_ids="arXiv:2407.18559",
        paper_name="VSSD: Vision Mamba with Non-Causal State Space Duality",
        **kwargs,
    )


_RELEASE = "https://huggingface.co/YuhengSSS/VSSD/resolve/main/"

default_cfgs = generate_default_cfgs(
    {
        "vssd_micro.in1k": _cfg(_RELEASE + "vssd_micro_best.pth"),
        "vssd_tiny.in1k": _cfg(_RELEASE + "vssd_tiny_best_ema.pth"),
        "vssd_tiny.mesa_in1k": _cfg(_RELEASE + "vssd_tiny_e300_with_mesa.pth"),
        "vssd_small.in1k": _cfg(_RELEASE + "vssd_small_best_ema.pth"),
        "vssd_small.mesa_in1k": _cfg(_RELEASE + "vssd_small_e300_with_mesa.pth"),
        "vssd_base.in1k": _cfg(_RELEASE + "vssd_base_best_ema.pth"),
        "vssd_base.mesa_in1k": _cfg(_RELEASE + "vssd_base_e300_with_mesa.pth"),
        "vssd_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="vssd",
        title="VSSD",
        models=(VSSD,),
        dense_maps=DenseMaps.NEW_NORMS,
        # The official recipes spare what has "norm" in its name there: the batch norms called `bn` here, too.
        dense_decay={"norm": 0.0, **dict.fromkeys(CONV_BLOCK_NORMS, 0.0)},
    )
)


def _create_vssd(variant: str, pretrained: bool = False, averaged: bool = True, **kwargs) -> VSSD:
    filter_fn = partial(checkpoint_filter_fn, averaged=averaged)
    return build_model(VSSD, variant, pretrained, pretrained_filter_fn=filter_fn, **kwargs)


@register_model
def vssd_micro(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-M as published."""
    args = dict(dims=48, depths=(2, 2, 8, 4), num_heads=(2, 4, 8, 16), d_state=48)
    # Its file is the only one that is not called "ema": the raw weights were the best.
    return _create_vssd("vssd_micro", pretrained, averaged=False, **dict(args, **kwargs))


@register_model
def vssd_tiny(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-T as published."""
    args = dict(dims=64, depths=(2, 4, 8, 4), num_heads=(2, 4, 8, 16), d_state=64)
    return _create_vssd("vssd_tiny", pretrained, **dict(args, **kwargs))


@register_model
def vssd_small(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-S as published."""
    args = dict(dims=64, depths=(3, 4, 21, 5), num_heads=(2, 4, 8, 16), d_state=64)
    return _create_vssd("vssd_small", pretrained, **dict(args, **kwargs))


@register_model
def vssd_base(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-B as published."""
    args = dict(dims=96, depths=(3, 4, 21, 5), num_heads=(3, 6, 12, 24), d_state=64)
    return _create_vssd("vssd_base", pretrained, **dict(args, **kwargs))


@register_model
def vssd_pico(pretrained: bool = False, **kwargs) -> VSSD:
    """A VSSD of this package for demos and tests; no published weights."""
    args = dict(dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), d_state=16)
    return _create_vssd("vssd_pico", pretrained, **dict(args, **kwargs))
