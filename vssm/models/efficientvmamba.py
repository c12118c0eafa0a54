"""EfficientVMamba: atrous selective scans next to convolutions at high resolution, inverted residuals below it.

Paper: EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba, arXiv 2403.09977 (AAAI 2025).
Official code: https://github.com/TerryPei/EfficientVMamba (its README names Apache-2.0, but the licence file that it
links to is not there, so no licence is granted). Written anew from the paper and the shapes of its checkpoints.

What differs from the official code:
- every map is channels-last, and the projections of the scan are computed once on the map, not once a route; the
  numbers agree to float32 rounding;
- downsampling stands at the start of a stage, so that a stage's output is the feature map of its stride;
- names say what a thing is: `gate` is what the paper calls the SE of the first two stages (`se` is the classic one of
  the last two), `conv` and `pw_conv` the convolution branch; `checkpoint_filter_fn` maps the official layout.

The released small model is 64 wide, as the training logs and the README's size say; its yaml file says 96. All three
were trained with stochastic depth 0.1, rising linearly over the blocks of all stages; the yaml files say 0.2. The
official weight decay spares 1-D tensors and biases, so it decays A_logs and the step-size tensors, not Ds;
`no_weight_decay()` follows the usual practice of the state-space literature.
"""

from typing import List, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import ConvNormAct, DropPath, Mlp, SqueezeExcite
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from vssm_kernels.passes import run_excite

from ..checkpoint import build_filter
from ..layers import ClassifierHead, PatchMerging, PatchStem
from ..scans import ATROUS, AtrousSS2D
from ._backbone import Stage, StagedBackbone, drop_path_rates, renamed_arguments, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family
from .vmamba import EARLY_NAMES

__all__ = ["EVSSBlock", "EfficientVMamba", "InvertedResidual"]

# Stages 0 and 1 scan; the following ones are convolutional.
SCAN_STAGES = 2


class ChannelGate(nn.Module):
    """x times a weight in (0, 1) for each channel, from the mean of the normalised map. (B, H, W, C) to the same."""

    def __init__(self, dim: int, reduction: int = 8, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, dim // reduction, **dd)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mlp(self.norm(x).mean(dim=(1, 2), keepdim=True))
        return x * weight.sigmoid()

    def paper_flops_offset(self, x: Tensor) -> int:
        """The official mean is no pooling layer, so fvcore does not see it; ours counts every mean."""
        return -x.numel()


class EVSSBlock(nn.Module):
    """x + gate(scan(norm(x))) + gate(convolutions(norm(x))), one gate for both branches. Channels-last (B, H, W, C)."""

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        drop_path: float = 0.0,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = AtrousSS2D(dim, d_state=d_state, ssm_ratio=ssm_ratio, A_init=A_init, **dd)
        self.conv = ConvNormAct(dim, dim, 3, groups=dim, bias=True, act_layer=nn.GELU, **dd)
        self.pw_conv = nn.Conv2d(dim, dim, 1, **dd)
        self.gate = ChannelGate(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        scanned = self.mixer(normed)
        convolved = self.pw_conv(self.conv(normed.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + self.drop_path(self.gate(scanned) + self.gate(convolved))


class InvertedResidual(nn.Module):
    """x + (expand, depth-wise 3 x 3, squeeze-and-excite, project). Channels-last (B, H, W, C)."""

    def __init__(self, dim: int, expand_ratio: float = 4.0, drop_path: float = 0.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        inner = int(dim * expand_ratio)
        self.conv_pw = ConvNormAct(dim, inner, 1, **dd)
        self.conv_dw = ConvNormAct(inner, inner, 3, groups=inner, **dd)
        self.se = SqueezeExcite(inner, rd_channels=inner // 8, **dd)
        self.conv_pwl = ConvNormAct(inner, dim, 1, apply_act=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(self.conv_pw(x.permute(0, 3, 1, 2)))
        if torch.jit.is_scripting():
            y = self.se(y)
        else:
            y = run_excite(self.se, SqueezeExcite, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.conv_pwl(y).permute(0, 2, 3, 1)
        return x + self.drop_path(y)


@renamed_arguments(embed_dim="dims")
class EfficientVMamba(StagedBackbone):
    """EfficientVMamba (arXiv 2403.09977).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage; the first two stages scan, the others are inverted residuals.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        d_state: states per channel of the scan.
        ssm_ratio: inner width of the scan as a multiple of the width.
        expand_ratio: inner width of the inverted residuals as a multiple of the width.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Input (B, in_chans, H, W) of any size of at least 4 x 4 pixels. `forward_features` gives (B, H / 32, W / 32, C).

    Raises:
        ValueError: a width is below 8, which would leave nothing of the gate's inner width.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (2, 2, 4, 2),
        dims: Union[int, Tuple[int, ...]] = 48,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        expand_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)
        dims = stage_dims(dims, depths)
        if min(dims) < 8:
            raise ValueError(f"EfficientVMamba: dims must be at least 8, got {min(dims)}")
        self.stem = PatchStem(in_chans, dims[0], **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = PatchMerging(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks: List[nn.Module]
            if i < SCAN_STAGES:
                blocks = [EVSSBlock(dims[i], d_state, ssm_ratio, rate, A_init, **dd) for rate in rates]
            else:
                blocks = [InvertedResidual(dims[i], expand_ratio, drop_path=rate, **dd) for rate in rates]
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


# Official name -> ours, in order. Stages that scan list their blocks under `blocks`. The others are flat sequences that
# begin and end with a change of layout: the blocks count from 1, and after the second change stands the downsampling.
_RENAMES = (
    *EARLY_NAMES,
    (r"^patch_embed\.0\.", "stem.conv."),
    (r"^patch_embed\.2\.", "stem.norm."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
    (r"^layers\.(\d+)\.(?:downsample|\d+)\.(norm|reduction)\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.{m[2]}."),
    (r"^layers\.(\d+)\.(\d+)\.", lambda m: f"stages.{m[1]}.blocks.{int(m[2]) - 1}."),
    (r"\.conv_(pw|dw)\.0\.", r".conv_\1.conv."),
    (r"\.conv_(pw|dw)\.1\.", r".conv_\1.bn."),
    (r"\.conv_pw2\.0\.", ".conv_pwl.conv."),
    (r"\.conv_pw2\.1\.", ".conv_pwl.bn."),
    (r"\.se\.conv_reduce\.", ".se.fc1."),
    (r"\.se\.conv_expand\.", ".se.fc2."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.op\.conv2d\.", ".mixer.conv."),
    (r"\.op\.x_proj_weight$", ".mixer.x_proj.weight"),
    (r"\.op\.", ".mixer."),
    (r"\.conv_branch\.0\.", ".conv.conv."),
    (r"\.conv_branch\.1\.", ".conv.bn."),
    (r"\.conv_branch\.3\.", ".pw_conv."),
    (r"\.se\.norm\.", ".gate.norm."),
    (r"\.se\.global_reduce\.", ".gate.mlp.fc1."),
    (r"\.se\.channel_select\.", ".gate.mlp.fc2."),
)


# One projection for each route, officially.
checkpoint_filter_fn = build_filter(_RENAMES, stacked=(".mixer.x_proj.weight",))


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        url=url,
        first_conv="stem.conv",
        license="unspecified (the official repository grants none; its README names Apache-2.0)",
        origin_url="https://github.com/TerryPei/EfficientVMamba",
        paper_ids="arXiv:2403.09977",
        paper_name="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
        **kwargs,
    )


def _published(size: str) -> dict:
    """The authors' page on the hub; their code refers to this name of the file, which nobody verified."""
    file = f"https://huggingface.co/TerryPei/EfficientVMamba-{size}/resolve/main/efficient_vmamba_{size.lower()}.ckpt"
    return _cfg(file, description="The repository is the authors'; the name of the file in it was not verified.")


default_cfgs = generate_default_cfgs(
    {
        "efficientvmamba_tiny.in1k": _published("Tiny"),
        "efficientvmamba_small.in1k": _published("Small"),
        "efficientvmamba_base.in1k": _published("Base"),
        "efficientvmamba_pico.untrained": _cfg(
            description="Of this package, for demos and tests: no published weights."
        ),
    }
)

FAMILY = register_family(
    Family(
        name="efficientvmamba",
        title="EfficientVMamba",
        models=(EfficientVMamba,),
        scan_patterns={"atrous": ATROUS},
        dense_maps=DenseMaps.NEW_NORMS,
        # The official recipes spare what has "norm" in its name there; the stem's norm is numbered.
        dense_decay={"norm": 0.0, "stem.norm": 1.0},
    )
)


def _create_efficientvmamba(variant: str, pretrained: bool = False, **kwargs) -> EfficientVMamba:
    return build_model(EfficientVMamba, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def efficientvmamba_tiny(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """EfficientVMamba-T as published."""
    args = dict(dims=48, depths=(2, 2, 4, 2))
    return _create_efficientvmamba("efficientvmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def efficientvmamba_small(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """EfficientVMamba-S as published."""
    args = dict(dims=64, depths=(2, 2, 4, 2))
    return _create_efficientvmamba("efficientvmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def efficientvmamba_base(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """EfficientVMamba-B as published."""
    args = dict(dims=96, depths=(2, 2, 9, 2))
    return _create_efficientvmamba("efficientvmamba_base", pretrained, **dict(args, **kwargs))


@register_model
def efficientvmamba_pico(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """An EfficientVMamba of this package for demos and tests; no published weights."""
    args = dict(dims=16, depths=(1, 1, 2, 1))
    return _create_efficientvmamba("efficientvmamba_pico", pretrained, **dict(args, **kwargs))
