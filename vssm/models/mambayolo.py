"""Mamba YOLO: the backbone of a one-stage detector, of cross-scans between small convolutions.

Paper: Mamba YOLO: A Simple Baseline for Object Detection with State Space Model, arXiv 2406.05835 (AAAI 2025).
Official code: https://github.com/HZAI-ZJNU/Mamba-YOLO (AGPL-3.0). Nothing of it is in here: written anew from the
paper, from a description of its layers and from the numbers that they give.

The models are the layers 0 to 8 of the official detectors; neck and head are in `vssm.mm`. The authors trained no
classifier, so there is none by default.

What differs from the official code:
- images of any size: where the grid of a map is odd, it is padded with zeros at the right and the bottom before it is
  halved. The official code takes multiples of 32 alone;
- maps are channels-last, and downsampling stands at the start of a stage;
- names say what a thing is (`mixer`, `local`, `mlp`); `checkpoint_filter_fn` maps the official ones, and passes over
  what a file holds of the neck and the head.
"""

import re
from typing import Any, Mapping, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter
from ..layers import YOLO_NORM, ClassifierHead, ConvNorm, LinearNorm, ODSSBlock, channels_last, check_images
from ..scans import CROSS, SS2D, init_state_matrix
from ._backbone import Stage, StagedBackbone, drop_path_rates, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family

__all__ = ["BLOCK_RENAMES", "MambaYOLO", "PoolPyramid", "YOLOSS2D"]


class YOLOSS2D(SS2D):
    """VMamba's first SS2D with a GELU for its SiLU, and a start of its own: (B, H, W, dim) to the same.

    Args:
        dim: Width.
        d_state: States per channel.
        ssm_ratio: Inner width as a multiple of the width.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        A_init: Union[str, float] = -1.0,
        device=None,
        dtype=None,
    ):
        super().__init__(
            dim,
            d_state=d_state,
            ssm_ratio=ssm_ratio,
            conv_bias=True,
            act_layer=nn.GELU,
            gate=True,
            scan_float32=True,
            A_init=A_init,
            device=device,
            dtype=dtype,
        )
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start as the official code: A = -1 unless `A_init` says otherwise, steps normal before the softplus."""
        layers: list[Any] = [self.in_proj, self.x_proj, self.out_proj]
        for layer in layers:
            layer.reset_parameters()
        nn.init.normal_(self.dt_projs_weight)
        nn.init.normal_(self.dt_projs_bias)
        init_state_matrix(self.A_logs, self.A_init)
        nn.init.ones_(self.Ds)


class YOLOStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2 with BatchNorm, a GELU and a SiLU.

    (B, in_chans, H, W) to (B, ceil(H / 4), ceil(W / 4), dim).
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd: dict[str, Any] = {**YOLO_NORM, "device": device, "dtype": dtype}
        super().__init__()
        self.in_chans = in_chans
        self.conv1 = ConvNorm(in_chans, dim // 2, stride=2, act=True, act_layer=nn.GELU, **dd)
        self.conv2 = ConvNorm(dim // 2, dim, stride=2, act=True, act_layer=nn.SiLU, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_chans, H, W)."""
        check_images(x, self.in_chans)
        return self.conv2(self.conv1(channels_last(x)))


class ClueMerge(nn.Module):
    """The four phases of a 2 x 2 grid side by side, Linear, BatchNorm, SiLU; the paper's Vision Clue Merge.

    (B, H, W, dim) to (B, ceil(H / 2), ceil(W / 2), dim_out). Odd sizes are padded with zeros.
    """

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None):
        super().__init__()
        self.proj = LinearNorm(
            4 * dim, dim_out, act=True, act_layer=nn.SiLU, bias=True, **YOLO_NORM, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """Downsample (B, H, W, dim)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        phases = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.proj(torch.cat(phases, dim=-1))


class PoolPyramid(nn.Module):
    """YOLO's SPPF: a map beside what one, two and three max-pools of 5 x 5 make of it, between two projections.

    (B, H, W, dim) to the same.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        dd: dict[str, Any] = {**YOLO_NORM, "device": device, "dtype": dtype}
        super().__init__()
        self.reduce = LinearNorm(dim, dim // 2, act=True, act_layer=nn.SiLU, **dd)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.expand = LinearNorm(2 * dim, dim, act=True, act_layer=nn.SiLU, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, dim)."""
        y = self.reduce(x).permute(0, 3, 1, 2)
        once = self.pool(y)
        twice = self.pool(once)
        return self.expand(torch.cat([y, once, twice, self.pool(twice)], dim=1).permute(0, 2, 3, 1))


class MambaYOLO(StagedBackbone):
    """Mamba YOLO's backbone (arXiv 2406.05835).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of a classifier, which starts afresh; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        d_state: states per channel of the scan.
        ssm_ratio: inner width of the scan as a multiple of the width.
        mlp_ratio: hidden width of the MLP as a multiple of the width, before a third is taken off for its gate.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Input (B, in_chans, H, W) of any size. `forward_features` gives (B, H / 32, W / 32, C), sizes rounded up: the last
    stage's map behind `norm`, which is a pyramid of pools here, and which detectors put behind that map too.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (1, 1, 3, 1),
        dims: Union[int, Tuple[int, ...]] = 32,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = -1.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)
        dims = stage_dims(dims, depths)
        self.stem = YOLOStem(in_chans, dims[0], **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = ClueMerge(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks = []
            for rate in rates:
                mixer = YOLOSS2D(dims[i], d_state=d_state, ssm_ratio=ssm_ratio, A_init=A_init, **dd)
                blocks.append(ODSSBlock(dims[i], dims[i], mixer, mlp_ratio=mlp_ratio, drop_path=rate, **dd))
            stages.append(Stage(down, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = stage_info(dims)
        self.num_features = self.head_hidden_size = dims[-1]
        # Where other families have their last norm: behind the last map, before the head.
        self.norm = PoolPyramid(dims[-1], **dd)
        self.head = ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map behind the pools (B, H', W', C)."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, num_classes), or to the pooled features (B, C) without classes."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Official name -> ours, within a block; the neck of a detector has such blocks too.
BLOCK_RENAMES = (
    (r"\.norm\.norm\.", ".norm1."),
    (r"\.norm2\.norm\.", ".norm2."),
    (r"\.lsblock\.fc1\.", ".local.conv."),
    (r"\.lsblock\.norm\.", ".local.norm."),
    (r"\.lsblock\.fc2\.", ".local.fc1."),
    (r"\.lsblock\.fc3\.", ".local.fc2."),
    (r"\.mlp\.dwconv\.", ".mlp.conv."),
    (r"\.mixer(\.\d+)?\.conv2d\.", r".mixer\1.conv."),
    (r"\.mixer(\.\d+)?\.x_proj_weight$", r".mixer\1.x_proj.weight"),
)
# Layers with blocks and layers between them, by number: a stage of one block has no number for it.
_RENAMES = (
    (r"^0\.conv\.0\.", "stem.conv1.conv."),
    (r"^0\.conv\.1\.", "stem.conv1.norm."),
    (r"^0\.conv\.3\.", "stem.conv2.conv."),
    (r"^0\.conv\.4\.", "stem.conv2.norm."),
    (r"^[1357]\.(?!\d)", lambda layer: f"{layer[0]}0."),
    (r"^([1357])\.(\d+)\.", lambda layer: f"stages.{int(layer[1]) // 2}.blocks.{layer[2]}."),
    (r"^([246])\.pw_linear\.0\.", lambda layer: f"stages.{int(layer[1]) // 2}.downsample.proj.linear."),
    (r"^([246])\.pw_linear\.1\.", lambda layer: f"stages.{int(layer[1]) // 2}.downsample.proj.norm."),
    (r"^8\.cv1\.conv\.", "norm.reduce.linear."),
    (r"^8\.cv1\.bn\.", "norm.reduce.norm."),
    (r"^8\.cv2\.conv\.", "norm.expand.linear."),
    (r"^8\.cv2\.bn\.", "norm.expand.norm."),
    (r"\.proj_conv\.0\.", ".proj.linear."),
    (r"\.proj_conv\.1\.", ".proj.norm."),
    (r"\.op\.", ".mixer."),
    *BLOCK_RENAMES,
)
# Blocks, convolutions and the head behind the backbone.
_BEHIND = re.compile(r"(11|14|15|17|18|20|21)\.")


def _without_detector(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not _BEHIND.match(name)}


# In the official code apart for each route.
checkpoint_filter_fn = build_filter(_RENAMES, prepare=_without_detector, stacked=(".x_proj.weight",))


def _cfg(**kwargs) -> dict:
    common = dict(
        num_classes=0,
        input_size=(3, 640, 640),
        pool_size=(20, 20),
        crop_pct=1.0,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        first_conv="stem.conv1.conv",
        license="agpl-3.0",
        origin_url="https://github.com/HZAI-ZJNU/Mamba-YOLO",
        paper_ids="arXiv:2406.05835",
        paper_name="Mamba YOLO: A Simple Baseline for Object Detection with State Space Model",
    )
    return imagenet_cfg(**common | kwargs)


default_cfgs = generate_default_cfgs(
    {
        "mambayolo_tiny.untrained": _cfg(),
        "mambayolo_base.untrained": _cfg(),
        "mambayolo_large.untrained": _cfg(),
        "mambayolo_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="mambayolo",
        title="Mamba YOLO",
        models=(MambaYOLO,),
        scan_patterns={"cross": CROSS},
        # The pools stand where others have a norm.
        dense_maps=DenseMaps.OWN_NORM,
        # Officially biases, those of the steps too, and the weights of norms.
        dense_decay={"bias": 0.0, "norm": 0.0, "norm.reduce.linear.weight": 1.0, "norm.expand.linear.weight": 1.0},
    )
)


def _create_mambayolo(variant: str, pretrained: bool = False, **kwargs) -> MambaYOLO:
    return build_model(MambaYOLO, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def mambayolo_tiny(pretrained: bool = False, **kwargs) -> MambaYOLO:
    """The backbone of Mamba YOLO-T."""
    args = dict(dims=32, depths=(1, 1, 3, 1))
    return _create_mambayolo("mambayolo_tiny", pretrained, **dict(args, **kwargs))


@register_model
def mambayolo_base(pretrained: bool = False, **kwargs) -> MambaYOLO:
    """The backbone of Mamba YOLO-B."""
    args = dict(dims=64, depths=(1, 1, 3, 1))
    return _create_mambayolo("mambayolo_base", pretrained, **dict(args, **kwargs))


@register_model
def mambayolo_large(pretrained: bool = False, **kwargs) -> MambaYOLO:
    """The backbone of Mamba YOLO-L, whose last stage is no wider than 576 channels."""
    args = dict(dims=(96, 192, 384, 576), depths=(2, 2, 6, 2))
    return _create_mambayolo("mambayolo_large", pretrained, **dict(args, **kwargs))


@register_model
def mambayolo_pico(pretrained: bool = False, **kwargs) -> MambaYOLO:
    """A Mamba YOLO of this package for demos and tests; no published weights."""
    args = dict(dims=16, depths=(1, 1, 2, 1))
    return _create_mambayolo("mambayolo_pico", pretrained, **dict(args, **kwargs))
