"""A2Mamba: hierarchical backbones whose attention weights also fuse the states of a scan.

Paper: A2Mamba: Attention-augmented State Space Models for Visual Recognition, arXiv 2507.16624.
Official code: https://github.com/LMMMEng/A2Mamba (no licence). Written anew from the paper, the names and shapes of its
parameters and the numbers of the official model.

What differs from the official code:
- neighbourhood attention and scan are operators of this package, so there is nothing to compile, and the attention
  works without CUDA;
- images of any size; the official code takes 193 pixels and more. Where a map is smaller than the window, each pixel
  attends to the whole axis, and the dilation is 1;
- maps are channels-last, downsampling stands at the start of a stage, and each block holds the angles of its stage;
- names say what a thing is (`stem.conv1`, `pos_conv1`, `mixer.rpb`); `checkpoint_filter_fn` maps the official ones.

The dilation of half of the heads follows from the size of the image: a file that was exported for one size is wrong for
another. The table of the attention among all pixels in the last stage has an entry for each pair of 7 x 7 pixels. For
other maps it is resized as if it were a picture, as officially.

The official weight decay spares 1-D tensors and biases, so it decays A_logs and the weights of layer and residual
scales, which it stores with more dimensions. `no_weight_decay()` spares the former, and the latter are 1-D here.
"""

import math
import warnings
from typing import Any, Dict, Optional, Tuple, Union

import torch.nn as nn
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter
from ..layers import ConvFFN, ConvMixerBlock, ConvNorm, DeepConvStem, HiddenHead
from ..scans import AttentionFusionSS2D, Route
from ._backbone import Stage, drop_path_rates, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family
from ._windowed import WINDOWED_RENAMES, WindowedBackbone, spread_angles

__all__ = ["A2Mamba"]


class A2Mamba(WindowedBackbone):
    """A2Mamba (arXiv 2507.16624).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage; the last stage attends to all pixels, the others scan.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        num_heads: heads in each stage, even numbers.
        windows: side of the window in each stage, odd.
        mlp_ratios: hidden width of the MLP in each stage as a multiple of the width, rounded down.
        layer_scale: for each stage what the scales of the branches start with, None for no scales; or None.
        residual_scale: for each stage what the scales of what the branches are added to start with, likewise.
        rel_pos_bias: whether attention has learned biases.
        img_size: side of the images that the table of the last stage is made for. Others resize it.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0. The official training: 0 for nano,
            0.1 for tiny, 0.2 for small, 0.4 for base, 0.5 for large.

    Input (B, in_chans, H, W) of any size. `forward_features` gives (B, H / 32, W / 32, C), sizes rounded up.

    Raises:
        ValueError: lists that differ in length, or heads that do not fit a width.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (2, 2, 10, 2),
        dims: Union[int, Tuple[int, ...]] = (48, 96, 256, 448),
        num_heads: Tuple[int, ...] = (2, 4, 8, 16),
        windows: Tuple[int, ...] = (11, 9, 7, 7),
        mlp_ratios: Tuple[float, ...] = (4, 4, 3, 3),
        layer_scale: Optional[Tuple[Optional[float], ...]] = None,
        residual_scale: Optional[Tuple[Optional[float], ...]] = None,
        rel_pos_bias: bool = True,
        img_size: int = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = -1.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims = stage_dims(dims, depths)
        layer_scale = (None,) * len(depths) if layer_scale is None else layer_scale
        residual_scale = (None,) * len(depths) if residual_scale is None else residual_scale
        lists = dict(num_heads=num_heads, windows=windows, mlp_ratios=mlp_ratios)
        for name, given in dict(lists, layer_scale=layer_scale, residual_scale=residual_scale).items():
            if len(given) != len(depths):
                raise ValueError(f"A2Mamba: {name} needs one entry for each of the {len(depths)} stages, got {given}")
        super().__init__(in_chans, num_classes, drop_rate)

        self.stem = DeepConvStem(in_chans, dims[0], **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = ConvNorm(dims[i - 1], dims[i], stride=2, **dd) if i > 0 else nn.Identity()
            pixels = math.ceil(img_size / 2 ** (i + 2)) ** 2 if i == len(depths) - 1 else 0
            scales: Dict[str, Any] = dict(layer_scale=layer_scale[i], residual_scale=residual_scale[i])
            blocks = []
            for rate in rates:
                mixer = AttentionFusionSS2D(dims[i], num_heads[i], windows[i], rel_pos_bias, pixels, A_init, **dd)
                mlp = ConvFFN(dims[i], int(mlp_ratios[i] * dims[i]), act_first=True, **dd)
                blocks.append(ConvMixerBlock(dims[i], mixer, mlp=mlp, drop_path=rate, eps=1e-6, **scales, **dd))
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = stage_info(dims)
        self.num_features = dims[-1]
        self.norm = nn.Identity()
        self.head = HiddenHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.hidden_dim
        self.init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, H', W', C)."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, num_classes); to the hidden layer's features (B, 1024) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Official name -> ours, in order.
_RENAMES = (
    *WINDOWED_RENAMES,
    (r"\.mixer\.rpb\.1$", ".mixer.rpb"),
    (r"\.mixer\.rpb\.2$", ".mixer.global_rpb"),
    (r"\.mixer\.gate\.0\.", ".mixer.gate."),
    (r"\.mixer\.gate\.1\.", ".mixer.gate_norm."),
    (r"\.mixer\.proj\.0\.", ".mixer.out_norm."),
    (r"\.mixer\.proj\.1\.", ".mixer.proj."),
    (r"\.ssm\.conv2d\.", ".ssm.conv."),
    (r"\.ssm\.state_fusion\.", ".ssm.fusion."),
)


def _prepare(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Take the bias table once: officially one parameter under two names, of which the second is read last."""
    again = [name for name in weights if name.endswith(".token_mixer.rpb.0") and f"{name[:-1]}1" in weights]
    if any(not weights[name].equal(weights[f"{name[:-1]}1"]) for name in again):
        warnings.warn(
            "the checkpoint has other values under rpb.0 than under rpb.1, which are one parameter; rpb.1 is taken",
            stacklevel=2,
        )
    return spread_angles({name: value for name, value in weights.items() if name not in again}, model)


checkpoint_filter_fn = build_filter(_RENAMES, prepare=_prepare)


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        url=url,
        first_conv="stem.conv1.conv",
        license="unspecified (the official repository grants none)",
        origin_url="https://github.com/LMMMEng/A2Mamba",
        paper_ids="arXiv:2507.16624",
        paper_name="A2Mamba: Attention-augmented State Space Models for Visual Recognition",
        **kwargs,
    )


def _weights(size: str, crop_pct: float) -> dict:
    folder = "https://huggingface.co/LMMM2025/A2Mamba/resolve/main/a2mamba_pretrained_weights"
    return _cfg(f"{folder}/a2mamba_{size}.pth", crop_pct=crop_pct)


default_cfgs = generate_default_cfgs(
    {
        "a2mamba_nano.in1k": _weights("nano", 0.9),
        "a2mamba_tiny.in1k": _weights("tiny", 0.9),
        "a2mamba_small.in1k": _weights("small", 0.9),
        "a2mamba_base.in1k": _weights("base", 0.95),
        "a2mamba_large.in1k": _weights("large", 0.975),
        "a2mamba_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="a2mamba",
        title="A2Mamba",
        models=(A2Mamba,),
        scan_patterns={"one direction": (Route(),)},
        dense_maps=DenseMaps.NEW_NORMS,
        dense_decay={"norm": 0.0},
    )
)


def _create_a2mamba(variant: str, pretrained: bool = False, **kwargs) -> A2Mamba:
    return build_model(A2Mamba, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def a2mamba_nano(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-N as published."""
    args = dict(dims=(32, 64, 128, 192), depths=(2, 2, 8, 2), num_heads=(2, 2, 4, 8))
    return _create_a2mamba("a2mamba_nano", pretrained, **dict(args, **kwargs))


@register_model
def a2mamba_tiny(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-T as published."""
    args = dict(dims=(48, 96, 256, 448), depths=(2, 2, 10, 2), num_heads=(2, 4, 8, 16))
    return _create_a2mamba("a2mamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def a2mamba_small(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-S as published."""
    args = dict(
        dims=(64, 128, 320, 512),
        depths=(2, 4, 12, 4),
        num_heads=(2, 4, 10, 16),
        residual_scale=(None, None, 1.0, 1.0),
    )
    return _create_a2mamba("a2mamba_small", pretrained, **dict(args, **kwargs))


@register_model
def a2mamba_base(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-B as published."""
    args = dict(
        dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(4, 8, 12, 16),
        mlp_ratios=(4, 4, 3.75, 3.75),
        layer_scale=(1.0, 1.0, 1e-6, 1e-6),
    )
    return _create_a2mamba("a2mamba_base", pretrained, **dict(args, **kwargs))


@register_model
def a2mamba_large(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-L as published."""
    args = dict(
        dims=(96, 192, 448, 672),
        depths=(4, 6, 18, 6),
        num_heads=(4, 8, 16, 24),
        mlp_ratios=(4, 4, 4, 4),
        layer_scale=(1.0, 1.0, 1e-6, 1e-6),
    )
    return _create_a2mamba("a2mamba_large", pretrained, **dict(args, **kwargs))


@register_model
def a2mamba_pico(pretrained: bool = False, **kwargs) -> A2Mamba:
    """An A2Mamba of this package for demos and tests; no published weights."""
    args = dict(dims=(16, 32, 48, 64), depths=(1, 1, 2, 1), num_heads=(2, 4, 6, 8), windows=(5, 3, 3, 3))
    return _create_a2mamba("a2mamba_pico", pretrained, **dict(args, **kwargs))
