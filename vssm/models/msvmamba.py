"""MSVMamba: one scan direction at full resolution, the other three at half, and convolutions in the feed-forward layer.

Paper: Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model, arXiv 2405.14174 (NeurIPS 2024).
Official code: https://github.com/YuHengsss/MSVMamba. The repository names no licence, neither for its code nor for its
weights. Written anew from the paper and the shapes of the checkpoints.

There are two generations, which share the idea and little else. `msvmamba_*` are the nets of the first arXiv version
(the repository's branch `master`), `msvmambav3_*` those of the NeurIPS version (branch `v2`): inner ratio 1,
overlapping convolutions as stem and downsampling, one norm after the branches are merged, nearest in place of bilinear
upsampling, a wider feed-forward layer with its norm behind it, and a gate only in `base`.

What differs from the official code:
- every map is channels-last and 1 x 1 convolutions are linear layers; the numbers agree to float32 rounding;
- downsampling stands at the start of a stage, so that a stage's output is the feature map of its stride;
- the stacked scan parameters hold the full branch first. The first generation's code holds the half branch first,
  with equal shapes; `checkpoint_filter_fn` turns them round.

The official weight decay spares only 1-D tensors and biases, so it decays A_logs and the step-size tensors, their bias
included; `no_weight_decay()` follows the usual practice of the state-space literature and spares A_logs and that bias.
"""

from typing import Any, Dict, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter, rename
from ..layers import ClassifierHead, ConvDownsample, ConvFFN, ConvStem, PatchMerging, PatchStem, add_mlp
from ..scans import MULTISCALE, MultiScaleSS2D
from . import vmamba
from ._backbone import Stage, StagedBackbone, drop_path_rates, renamed_arguments, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family

__all__ = ["MSVMamba", "MSVMambaBlock"]


class MSVMambaBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) or, with `mlp_post_norm`, x + norm(mlp(x)).

    Channels-last (B, H, W, C).
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 2.0,
        mlp_post_norm: bool = False,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
        **mixer,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.mlp_post_norm = mlp_post_norm
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = MultiScaleSS2D(dim, **mixer, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = ConvFFN(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        if not torch.jit.is_scripting() and not self.mlp_post_norm:
            added = add_mlp(x, self.norm2, self.mlp, self.drop_path)
            if added is not None:
                return added
        y = self.norm2(self.mlp(x)) if self.mlp_post_norm else self.mlp(self.norm2(x))
        return x + self.drop_path(y)


@renamed_arguments(embed_dim="dims")
class MSVMamba(StagedBackbone):
    """MSVMamba (arXiv 2405.14174).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        d_state: states per channel of the scan.
        ssm_ratio: inner width of the scan as a multiple of the width.
        gate: gate the scan's result with a second projection of the input.
        norm_before_merge: normalise the scan's branches apart; else their sum.
        upsample_mode: "bilinear" or "nearest", for the branch of half resolution.
        scan_float32: scan in float32 under autocast.
        mlp_ratio: hidden width of the feed-forward layer as a multiple of the width.
        mlp_post_norm: norm behind the feed-forward layer; else before it.
        conv_embed: overlapping convolutions as stem and downsampling; else 4 x 4 patches and patch merging.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Input (B, in_chans, H, W) of any size of at least 4 x 4 pixels. `forward_features` gives (B, H / 32, W / 32, C).

    Raises:
        ValueError: an unknown upsampling.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (1, 2, 5, 2),
        dims: Union[int, Tuple[int, ...]] = 48,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        gate: bool = True,
        norm_before_merge: bool = True,
        upsample_mode: str = "bilinear",
        scan_float32: bool = True,
        mlp_ratio: float = 2.0,
        mlp_post_norm: bool = False,
        conv_embed: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)
        self.norm_before_merge = norm_before_merge
        block: Dict[str, Any] = dict(
            mlp_ratio=mlp_ratio,
            mlp_post_norm=mlp_post_norm,
            d_state=d_state,
            ssm_ratio=ssm_ratio,
            gate=gate,
            norm_before_merge=norm_before_merge,
            upsample_mode=upsample_mode,
            scan_float32=scan_float32,
            A_init=A_init,
        )
        dims = stage_dims(dims, depths)
        self.stem = (ConvStem if conv_embed else PatchStem)(in_chans, dims[0], **dd)
        downsample = ConvDownsample if conv_embed else PatchMerging
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = downsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks = [MSVMambaBlock(dims[i], drop_path=rate, **block, **dd) for rate in rates]
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


# What VMamba's checkpoints do not have; its filter renames the rest.
_RENAMES = (
    (r"\.convFFN\.linear1\.", ".mlp.fc1."),
    (r"\.convFFN\.dwc\.", ".mlp.conv."),
    (r"\.convFFN\.linear2\.", ".mlp.fc2."),
    (r"\.conv2d_b1\.", ".conv_half."),
    (r"\.se\.fc\.0\.", ".se.fc1."),
    (r"\.se\.fc\.2\.", ".se.fc2."),
)
_PER_BRANCH = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")


def _full_branch_first(official: Dict[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    weights = {}
    for name, value in official.items():
        # Only the code of the first generation, which normalises before merging, holds the half branch first.
        if model.norm_before_merge and name.endswith(_PER_BRANCH) and value.dim() and len(value) % 2 == 0:
            value = value.unflatten(0, (2, -1)).flip(0).flatten(0, 1)
        weights[name] = value
    return vmamba.our_names(rename(weights, _RENAMES), isinstance(model.stem, ConvStem))


checkpoint_filter_fn = build_filter(prepare=_full_branch_first, stacked=vmamba.STACKED)


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        url=url,
        license="unspecified (the official repository grants none)",
        origin_url="https://github.com/YuHengsss/MSVMamba",
        paper_ids="arXiv:2405.14174",
        paper_name="Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
        **{"first_conv": "stem.conv", **kwargs},
    )


def _drive(folder: str) -> dict:
    return _cfg(description=f"Not published as a direct download: Google Drive folder id {folder}.")


def _v3_cfg(url: str = "", **kwargs) -> dict:
    return _cfg(url, first_conv="stem.conv1", **kwargs)


_RELEASE = "https://huggingface.co/YuhengSSS/MSVMamba/resolve/main/"
_OURS = "Of this package, for demos and tests: no published weights."

default_cfgs = generate_default_cfgs(
    {
        "msvmamba_nano.in1k": _drive("1J41w3ApitQhp2O3wHmJoOs4U032uqebK"),
        "msvmamba_micro.in1k": _drive("1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk"),
        "msvmamba_tiny.in1k": _drive("1ddNWk89ohcxxMuVEaJ2Y5A6xeBKgA7lU"),
        "msvmambav3_tiny.in1k": _v3_cfg(_RELEASE + "msvmambav3_tiny_224.pth"),
        "msvmambav3_small.in1k": _v3_cfg(_RELEASE + "msvmambav3_small_224.pth"),
        "msvmambav3_base.in1k": _v3_cfg(_RELEASE + "msvmambav3_base_224.pth"),
        "msvmamba_pico.untrained": _cfg(description=_OURS),
        "msvmambav3_pico.untrained": _v3_cfg(description=_OURS),
    }
)

FAMILY = register_family(
    Family(
        name="msvmamba",
        title="MSVMamba",
        models=(MSVMamba,),
        scan_patterns={"multi-scale (the last three at half resolution, joined)": MULTISCALE},
        dense_maps=DenseMaps.NEW_NORMS,
        # The official recipes spare what has "norm" in its name there; the stem's norm is numbered.
        dense_decay={"norm": 0.0, "stem.norm": 1.0},
    )
)


def _create_msvmamba(variant: str, pretrained: bool = False, **kwargs) -> MSVMamba:
    return build_model(MSVMamba, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


def _v3(**kwargs) -> dict:
    """Arguments of the second generation."""
    args = dict(
        ssm_ratio=1.0,
        gate=False,
        norm_before_merge=False,
        upsample_mode="nearest",
        scan_float32=False,
        mlp_ratio=4.0,
        mlp_post_norm=True,
        conv_embed=True,
    )
    return {**args, **kwargs}


@register_model
def msvmamba_nano(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-N as published."""
    args = dict(dims=48, depths=(1, 2, 5, 2))
    return _create_msvmamba("msvmamba_nano", pretrained, **dict(args, **kwargs))


@register_model
def msvmamba_micro(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-M as published."""
    args = dict(dims=64, depths=(1, 2, 5, 2))
    return _create_msvmamba("msvmamba_micro", pretrained, **dict(args, **kwargs))


@register_model
def msvmamba_tiny(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-T as published."""
    args = dict(dims=96, depths=(1, 2, 9, 2))
    return _create_msvmamba("msvmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def msvmambav3_tiny(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-T of the second generation."""
    args = _v3(dims=96, depths=(2, 2, 9, 2))
    return _create_msvmamba("msvmambav3_tiny", pretrained, **dict(args, **kwargs))


@register_model
def msvmambav3_small(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-S of the second generation."""
    args = _v3(dims=96, depths=(2, 3, 20, 2))
    return _create_msvmamba("msvmambav3_small", pretrained, **dict(args, **kwargs))


@register_model
def msvmambav3_base(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-B of the second generation."""
    args = _v3(dims=128, depths=(2, 4, 18, 2), gate=True)
    return _create_msvmamba("msvmambav3_base", pretrained, **dict(args, **kwargs))


@register_model
def msvmamba_pico(pretrained: bool = False, **kwargs) -> MSVMamba:
    """An MSVMamba of this package for demos and tests; no published weights."""
    args = dict(dims=16, depths=(1, 1, 2, 1))
    return _create_msvmamba("msvmamba_pico", pretrained, **dict(args, **kwargs))


@register_model
def msvmambav3_pico(pretrained: bool = False, **kwargs) -> MSVMamba:
    """A second-generation MSVMamba of this package for demos and tests; no published weights."""
    args = _v3(dims=16, depths=(1, 1, 2, 1))
    return _create_msvmamba("msvmambav3_pico", pretrained, **dict(args, **kwargs))
