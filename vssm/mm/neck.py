"""Feature pyramids for backbones that start at a coarse stride, and for plain ones."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.necks import FPN
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


@MODELS.register_module()
class FinerFPN(FPN):
    """mmdet's FPN over normalised maps, with finer levels than the backbone has.

    EfficientViM's detectors use it, whose maps start at stride 16 (arXiv 2411.15241; the neck comes from EfficientViT,
    arXiv 2305.07027): each finer level is a transposed convolution (2 x 2, stride 2) of the one below it, starting from
    the finest lateral map, and goes through a 3 x 3 convolution like every other level.

    Args:
        in_channels: Widths of the backbone's maps.
        out_channels: Width of all levels.
        num_outs: Levels, the finer ones included.
        num_finer: Finer levels.
        **kwargs: Further arguments of mmdet's FPN. Coarser levels come from max-pooling, or, with
            ``add_extra_convs="on_input"``, from the backbone's last map, normalised.

    Raises:
        ValueError: Coarser levels from elsewhere than the input, which no detector here has.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, num_finer: int = 0, **kwargs: Any):
        super().__init__(list(in_channels), out_channels, num_outs - num_finer, **kwargs)
        if self.add_extra_convs not in (False, "on_input"):
            raise ValueError(f"FinerFPN: add_extra_convs must be False or 'on_input', got {self.add_extra_convs!r}")
        self.norms = nn.ModuleList([LayerNorm2d(width) for width in in_channels])
        self.finer = nn.ModuleList(
            [nn.ConvTranspose2d(out_channels, out_channels, 2, stride=2) for _ in range(num_finer)]
        )
        self.finer_convs = nn.ModuleList(
            [ConvModule(out_channels, out_channels, 3, padding=1, inplace=False) for _ in range(num_finer)]
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C, H, W) of the backbone, the finest first, to ``num_outs`` levels, the finest first."""
        used = slice(self.start_level, self.backbone_end_level)
        inputs = [norm(x) for norm, x in zip(self.norms, inputs, strict=True)]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs[used], strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=size, **self.upsample_cfg)
        levels = [self.fpn_convs[i](x) for i, x in enumerate(laterals)]
        coarser = inputs[used][-1]
        for i in range(len(levels), self.num_outs):
            if self.add_extra_convs:
                coarser = self.fpn_convs[i](coarser)
            else:
                coarser = F.max_pool2d(levels[-1], 1, stride=2)
            levels.append(coarser)
        x = laterals[0]
        for transposed, conv in zip(self.finer, self.finer_convs, strict=True):
            x = transposed(x)
            levels.insert(0, conv(x))
        return tuple(levels)


# In a norm_cfg: dict(type="LayerNorm2d", eps=1e-6). mmcv's "LN" takes the last axis for the channels.
MODELS.register_module(name="LayerNorm2d", module=LayerNorm2d)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """ViTDet's pyramid (arXiv 2203.16527): every level is made from a plain net's last map alone.

    The strides 4 and 8 come from transposed convolutions (2 x 2, stride 2) that halve the width each, 32 from a
    max-pool, and each goes through a 1 x 1 and a 3 x 3 convolution, both with a LayerNorm. Stride 64 is every second
    position of 32.

    Args:
        in_channels: Width of the map, alone in a list.
        out_channels: Width of all levels.
        init_cfg: As in mmengine.

    Raises:
        ValueError: Not one map.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, init_cfg: Any = None):
        super().__init__(init_cfg)
        if len(in_channels) != 1:
            raise ValueError(f"SimpleFeaturePyramid takes one map, got widths {list(in_channels)}: set out_indices")
        self.in_channels = list(in_channels)
        (dim,) = in_channels
        half, quarter = dim // 2, dim // 4
        up_twice = [nn.ConvTranspose2d(dim, half, 2, stride=2), LayerNorm2d(half), nn.GELU()]
        starts = [
            (nn.Sequential(*up_twice, nn.ConvTranspose2d(half, quarter, 2, stride=2)), quarter),
            (nn.ConvTranspose2d(dim, half, 2, stride=2), half),
            (nn.Identity(), dim),
            (nn.MaxPool2d(2, stride=2, ceil_mode=True), dim),
        ]
        options = dict(norm_cfg=dict(type="LayerNorm2d", eps=1e-6), act_cfg=None)
        self.levels = nn.ModuleList(
            nn.Sequential(
                start,
                ConvModule(width, out_channels, 1, **options),
                ConvModule(out_channels, out_channels, 3, padding=1, **options),
            )
            for start, width in starts
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map (B, C, H, W) to five levels (B, out_channels, ...) of 4, 2, 1, 1/2 and 1/4 its size, rounded up."""
        (x,) = inputs
        levels = [level(x) for level in self.levels]
        return (*levels, F.max_pool2d(levels[-1], 1, stride=2))
