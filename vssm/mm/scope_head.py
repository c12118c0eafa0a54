"""SegMAN's decoder MMSCopE as a head of mmseg (arXiv 2412.11890, section 3.2), for any backbone."""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import rename, reshape_like
from ..engine.config import ConfigError
from ..layers import ConvFFN, ConvMixerBlock
from ..scans import CrossScan

__all__ = ["MMSCopEHead"]

# Official name -> ours, in order. None of ours is changed by them.
_RENAMES = (
    (r"^linear_c2\.proj\.", "linears.0."),
    (r"^linear_c3\.proj\.", "linears.1."),
    (r"^linear_c4\.proj\.", "linears.2."),
    (r"^linear_fuse\.", "fuse."),
    (r"^conv_downsample_([24])\.", r"downsample\1."),
    (r"^reduce_channels\.0\.", "reduce4."),
    (r"^reduce_channels\.1\.", "reduce2."),
    (r"^reduce_channels\.2\.", "reduce1."),
    (r"^short_path\.", "local."),
    (r"^image_pool\.1\.", "pooled."),
    (r"^proj_out\.", "context."),
    (r"^cat\.", "merge."),
    (r"^vssm\.cpe([12])\.", r"block.pos_conv\1."),
    (r"^vssm\.mlp\.dwconv\.", "block.mlp.conv."),
    (r"^vssm\.token_mixer\.x_proj_weight$", "block.mixer.x_proj.weight"),
    (r"^vssm\.token_mixer\.", "block.mixer."),
    (r"^vssm\.", "block."),
)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


@MODELS.register_module()
class MMSCopEHead(BaseDecodeHead):
    """Scan one map that holds the pixels of three scales, and add what it finds to the backbone's maps.

    With x, the three maps at the finest one's size fused into one: x, a convolution of stride 2 and one of stride 4 of
    it, each folded to the coarsest grid with its pixels as channels, are scanned together by one block; the result
    returns to the size of x, and is merged with x, its average, and the maps themselves. The logits have the size of
    the finest of the three maps, a pixel for 8 x 8 of the image.

    Images of any size: x is padded with zeros at the right and the bottom to a multiple of 4, which is one of 32 pixels
    of the image, and what was added is cut off behind the block. The official decoder takes multiples of 32 alone.

    It is in mmengine's root registry. Official weights are renamed while they are loaded. Letters: B batch, E and F the
    widths below.

    Args:
        in_channels: Widths of three maps, each half as large as the one before it, of strides 8, 16 and 32.
        channels: E, the width of x and of what is classified.
        map_channels: F, to which the backbone's maps are projected; `feat_proj_dim` in the official configs.
        in_index: Which of the backbone's maps they are; by default the last three.
        norm_cfg: Of the convolutions, see mmcv.
        **kwargs: Further arguments of mmseg's `BaseDecodeHead`, such as `num_classes` and `dropout_ratio`.

    Raises:
        ConfigError: There are not three maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        map_channels: int,
        in_index: Sequence[int] = (-3, -2, -1),
        norm_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if not all(isinstance(given, Sequence) and len(given) == 3 for given in (in_channels, in_index)):
            raise ConfigError(
                f"MMSCopEHead reads three maps, so in_index and in_channels have three numbers each, not {in_index} "
                f"and {in_channels}."
            )
        super().__init__(
            in_channels,
            channels,
            in_index=in_index,
            input_transform="multiple_select",
            norm_cfg=norm_cfg or dict(type="BN"),
            **kwargs,
        )
        wide = 3 * channels
        self.linears = nn.ModuleList([nn.Linear(width, map_channels) for width in in_channels])
        self.fuse = self._conv(3 * map_channels, channels)
        self.downsample2 = self._conv(channels, 2 * channels, 3, stride=2, padding=1)
        self.downsample4 = self._conv(channels, 4 * channels, 5, stride=4, padding=1)
        self.reduce1 = self._conv(16 * channels, channels)
        self.reduce2 = self._conv(8 * channels, channels)
        self.reduce4 = self._conv(4 * channels, channels)
        self.block = ConvMixerBlock(wide, CrossScan(wide), mlp=ConvFFN(wide, 4 * wide, act_first=True), eps=1e-6)
        self.context = self._conv(wide, map_channels)
        self.local = self._conv(channels, channels)
        self.pooled = self._conv(channels, channels)
        self.merge = self._conv(5 * channels + 3 * map_channels, channels)
        self._register_load_state_dict_pre_hook(self.convert_on_load)

    def _conv(self, width: int, width_out: int, kernel: int = 1, **kwargs: Any) -> ConvModule:
        return ConvModule(width, width_out, kernel, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg, **kwargs)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W) of the backbone to logits (B, classes, H, W) at the size of the finest that is read."""
        maps = self._transform_inputs(inputs)
        maps = [linear(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for linear, y in zip(self.linears, maps, strict=True)]
        finest = maps[0]
        maps = [finest, *(_resize(y, finest) for y in maps[1:])]
        x = self.fuse(torch.cat(maps[::-1], dim=1))
        context = self.scan_scales(x)
        projected = self.context(context)
        parts = [self.local(x), self.pool(x), context, *(y + projected for y in maps)]
        return self.cls_seg(self.merge(torch.cat(parts, dim=1)))

    def scan_scales(self, x: Tensor) -> Tensor:
        """Scan three scales of (B, E, H, W) together: (B, 3 E, H, W)."""
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % 4, 0, -height % 4))
        scales = [
            self.reduce1(F.pixel_unshuffle(padded, 4)),
            self.reduce2(F.pixel_unshuffle(self.downsample2(padded), 2)),
            self.reduce4(self.downsample4(padded)),
        ]
        y = self.block(torch.cat(scales, dim=1).permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        return _resize(y, padded)[:, :, :height, :width]

    def pool(self, x: Tensor) -> Tensor:
        """Average (B, E, H, W) over the map, and put the result at every pixel of it.

        Raises:
            ConfigError: Statistics of a batch of one are asked for, which has a single value a channel.
        """
        norm = self.pooled.norm
        single = isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, nn.SyncBatchNorm)
        if single and norm.training and len(x) == 1:
            raise ConfigError(
                "MMSCopEHead normalises the average of a map, which takes more than one image a batch in training: "
                "raise train_dataloader.batch_size, or set norm_cfg of the head to dict(type='GN', num_groups=8)."
            )
        return self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])

    def convert_on_load(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Rename, in place, the official weights of this head in those of whatever holds it; ours stay as they are.

        Args:
            state_dict: All weights.
            prefix: Of this head's names in them.
        """
        given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        for name in given:
            del state_dict[prefix + name]
        weights = rename(given, _RENAMES)
        reshape_like(weights, self.state_dict())
        state_dict.update({prefix + name: value for name, value in weights.items()})
