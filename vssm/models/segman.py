"""SegMAN: hierarchical backbones of attention in windows with a cross-scan of what it gives.

Paper: SegMAN: Omni-scale Context Modeling with State Space Models and Local Attention for Semantic Segmentation, arXiv
2412.11890 (CVPR 2025).
Official code: https://github.com/yunxiangfu2001/SegMAN (Apache-2.0). Written anew from the paper, the shapes of its
checkpoints and the numbers of the official encoder and classifier.

What differs from the official code:
- neighbourhood attention and scan are operators of this package, so there is nothing to compile, and the attention
  works without CUDA;
- images of any size. The official classifier takes the size that it was built for, the official encoder 193 pixels and
  more; where a map is smaller than the window, each pixel attends to the whole axis here;
- maps are channels-last, downsampling stands at the start of a stage, and each block holds the angles of its stage;
- names say what a thing is (`stem.conv1`, `pos_conv1`, `mixer.rpb`); `checkpoint_filter_fn` maps the official ones.

The table of the attention among all pixels in the last stage has an entry for each pair of 7 x 7 pixels. For other maps
it is resized as if it were a picture, as officially.

The official weight decay spares 1-D tensors and biases, so it decays A_logs, dt_projs_bias and the weights of layer
scales, which it stores with more dimensions. `no_weight_decay()` spares the former, and the latter are 1-D here.
"""

import math
from typing import Optional, Tuple, Union

import torch.nn as nn
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter
from ..layers import ConvFFN, ConvMixerBlock, ConvNorm, DeepConvStem, HiddenHead
from ..scans import CROSS, LocalAttentionSS2D
from ._backbone import Stage, drop_path_rates, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family
from ._windowed import WINDOWED_RENAMES, WindowedBackbone, spread_angles

__all__ = ["SegMAN"]


class SegMAN(WindowedBackbone):
    """SegMAN's encoder and classifier (arXiv 2412.11890).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage; the last stage attends to all pixels, the others scan.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        num_heads: heads in each stage.
        windows: side of the window in each stage, odd.
        mlp_ratios: hidden width of the MLP in each stage as a multiple of the width, rounded down.
        layer_scale: what the scales of the branches start with; None for no scales.
        img_size: side of the images that the table of the last stage is made for. Others resize it.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0. The official training: 0 for tiny,
            0.15 for small, 0.3 for base.

    Input (B, in_chans, H, W) of any size. `forward_features` gives (B, H / 32, W / 32, C), sizes rounded up.

    Raises:
        ValueError: lists that differ in length, or heads that do not fit a width.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (2, 2, 4, 2),
        dims: Union[int, Tuple[int, ...]] = (32, 64, 144, 192),
        num_heads: Tuple[int, ...] = (1, 2, 4, 8),
        windows: Tuple[int, ...] = (11, 9, 9, 7),
        mlp_ratios: Tuple[float, ...] = (4, 4, 3, 3),
        layer_scale: Optional[float] = None,
        img_size: int = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = -1.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims = stage_dims(dims, depths)
        for name, given in (("num_heads", num_heads), ("windows", windows), ("mlp_ratios", mlp_ratios)):
            if len(given) != len(depths):
                raise ValueError(f"SegMAN: {name} needs one number for each of the {len(depths)} stages, got {given}")
        super().__init__(in_chans, num_classes, drop_rate)

        self.stem = DeepConvStem(in_chans, dims[0], **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = ConvNorm(dims[i - 1], dims[i], stride=2, **dd) if i > 0 else nn.Identity()
            pixels = math.ceil(img_size / 2 ** (i + 2)) ** 2 if i == len(depths) - 1 else 0
            blocks = []
            for rate in rates:
                mixer = LocalAttentionSS2D(dims[i], num_heads[i], windows[i], pixels=pixels, A_init=A_init, **dd)
                mlp = ConvFFN(dims[i], int(mlp_ratios[i] * dims[i]), act_first=True, **dd)
                blocks.append(
                    ConvMixerBlock(dims[i], mixer, mlp=mlp, drop_path=rate, eps=1e-6, layer_scale=layer_scale, **dd)
                )
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
    (r"\.mixer\.rpb\.0$", ".mixer.rpb"),
    (r"\.mixer\.rpb\.1$", ".mixer.global_rpb"),
    (r"\.mixer\.dwconv\.0\.", ".mixer.conv.conv."),
    (r"\.mixer\.dwconv\.1\.", ".mixer.conv.bn."),
)

checkpoint_filter_fn = build_filter(_RENAMES, prepare=spread_angles)


def _cfg(**kwargs) -> dict:
    common = dict(
        first_conv="stem.conv1.conv",
        license="apache-2.0",
        origin_url="https://github.com/yunxiangfu2001/SegMAN",
        paper_ids="arXiv:2412.11890",
        paper_name="SegMAN: Omni-scale Context Modeling with State Space Models and Local Attention for Semantic "
        "Segmentation",
    )
    return imagenet_cfg(**common | kwargs)


def _drive(letter: str, crop_pct: float) -> dict:
    folder = "https://drive.google.com/drive/folders/1QYU7nhpe0ddH7bPxI7VH4drc__07uEHs"
    where = f"Not published as a direct download: SegMAN_Encoder_{letter}.pth.tar in {folder}"
    return _cfg(description=where, crop_pct=crop_pct)


default_cfgs = generate_default_cfgs(
    {
        "segman_tiny.in1k": _drive("t", 0.9),
        "segman_small.in1k": _drive("s", 0.9),
        "segman_base.in1k": _drive("b", 0.95),
        "segman_large.in1k": _drive("l", 0.95),
        "segman_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="segman",
        title="SegMAN",
        models=(SegMAN,),
        scan_patterns={"four directions": CROSS},
        dense_maps=DenseMaps.AS_THEY_ARE,
        # Officially all that has "norm" in its name, which the batch norms of stem and downsampling have here alone.
        dense_decay={"norm": 0.0, "stem.conv": 1.0, "downsample.norm": 1.0},
    )
)


def _create_segman(variant: str, pretrained: bool = False, **kwargs) -> SegMAN:
    return build_model(SegMAN, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def segman_tiny(pretrained: bool = False, **kwargs) -> SegMAN:
    """SegMAN-T as published."""
    args = dict(dims=(32, 64, 144, 192), depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), windows=(11, 9, 9, 7))
    return _create_segman("segman_tiny", pretrained, **dict(args, **kwargs))


@register_model
def segman_small(pretrained: bool = False, **kwargs) -> SegMAN:
    """SegMAN-S as published."""
    args = dict(
        dims=(64, 144, 288, 512),
        depths=(2, 2, 10, 4),
        num_heads=(2, 4, 8, 16),
        windows=(11, 9, 7, 7),
        mlp_ratios=(4, 4, 3.4, 3.4),
    )
    return _create_segman("segman_small", pretrained, **dict(args, **kwargs))


@register_model
def segman_base(pretrained: bool = False, **kwargs) -> SegMAN:
    """SegMAN-B as published."""
    args = dict(
        dims=(96, 160, 364, 560),
        depths=(4, 4, 18, 4),
        num_heads=(4, 8, 13, 20),
        windows=(11, 9, 7, 7),
        layer_scale=1e-6,
    )
    return _create_segman("segman_base", pretrained, **dict(args, **kwargs))


@register_model
def segman_large(pretrained: bool = False, **kwargs) -> SegMAN:
    """SegMAN-L as published."""
    args = dict(
        dims=(96, 192, 432, 640),
        depths=(4, 4, 28, 4),
        num_heads=(4, 8, 12, 20),
        windows=(11, 9, 7, 7),
        layer_scale=1e-6,
    )
    return _create_segman("segman_large", pretrained, **dict(args, **kwargs))


@register_model
def segman_pico(pretrained: bool = False, **kwargs) -> SegMAN:
    """A SegMAN of this package for demos and tests; no published weights."""
    args = dict(dims=(16, 32, 48, 64), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4), windows=(5, 3, 3, 3))
    return _create_segman("segman_pico", pretrained, **dict(args, **kwargs))
