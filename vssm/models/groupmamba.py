"""GroupMamba: hierarchical backbones whose mixer scans four channel groups, each in a direction of its own.

Paper: GroupMamba: Efficient Group-Based Visual State Space Model, arXiv 2407.13772 (CVPR 2025).
Official code: https://github.com/Amshaker/GroupMamba (MIT). Written anew from the paper and the shapes of its
checkpoints.

What differs from the official code:
- maps are channels-last, and the four groups of a mixer are stacked: one projection, one convolution, one scan;
- its gradients of the column scans are wrong on maps that are not square; here they are exact on any map;
- the class block takes only the pooled map: officially the map is carried along and never read;
- names say what a thing is (`class_block`, `mixer.gate`); `checkpoint_filter_fn` maps the official layout.

Two heads: after `set_distilled_training(True)` the model in training mode returns (class logits, distillation logits),
as the official one always does; otherwise, and in eval mode, their mean. Stages 1 to 3 end in a norm, so their features
are normalised; `norm`, the last one, belongs to the head, where it follows the class block, so the last map is raw. The
authors never published dense prediction; the trunks that this one descends from apply `norm` to the last map there, as
`forward_intermediates(norm=True)` does.

The official weight decay spares only 1-D tensors and biases, so it decays A_logs and the bias of the step size (2-D
there and here); `no_weight_decay()` follows the usual practice of the state-space literature and spares those as well.
"""

import re
from typing import Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import ConvNormAct, DropPath, Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter
from ..layers import ConvDownsample, DepthwiseMlp, add_mlp, channels_last, check_images, check_pool, next_pool
from ..scans import CROSS, GroupedSS2D
from ._backbone import Stage, StagedBackbone, drop_path_rates, renamed_arguments, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family

__all__ = ["GroupMamba", "GroupMambaBlock"]


class GroupMambaStem(nn.Module):
    """Three convolutions at half the resolution, then one of stride 2: (B, C, H, W) to (B, ceil(H/4), ceil(W/4), D)."""

    def __init__(self, in_chans: int, hidden_dim: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, hidden_dim, 7, stride=2, **dd)
        self.conv2 = ConvNormAct(hidden_dim, hidden_dim, 3, **dd)
        self.conv3 = ConvNormAct(hidden_dim, hidden_dim, 3, **dd)
        self.downsample = ConvDownsample(hidden_dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.conv1.conv.in_channels)
        x = channels_last(x).permute(0, 3, 1, 2)
        return self.downsample(self.conv3(self.conv2(self.conv1(x))).permute(0, 2, 3, 1))


class GroupMambaBlock(nn.Module):
    """x + mixer(x), whose norm is its own, then x + mlp(norm(x)). Channels-last (B, H, W, C)."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float = 0.0, device=None, dtype=None, **mixer):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.mixer = GroupedSS2D(dim, **mixer, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = DepthwiseMlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(x))
        if not torch.jit.is_scripting():
            y = add_mlp(x, self.norm, self.mlp, self.drop_path)
            if y is not None:
                return y
        return x + self.drop_path(self.mlp(self.norm(x)))


class ClassBlock(nn.Module):
    """The block of the class token, here a map of one pixel: x + norm(mixer(x)), then x + mlp(norm(x)).

    The scan takes one step from a state of zeros: A_logs of this mixer has no influence and a gradient of zeros.
    """

    def __init__(self, dim: int, mlp_ratio: float, device=None, dtype=None, **mixer):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.mixer = GroupedSS2D(dim, **mixer, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.mixer(x))
        return x + self.mlp(self.norm2(x))


@renamed_arguments(embed_dims="dims", mlp_ratios="mlp_ratio")
class GroupMamba(StagedBackbone):
    """GroupMamba (arXiv 2407.13772).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of each classifier; 0 for none.
        global_pool: "avg", or "" for the normalised map without pooling, class block and classifiers.
        depths: blocks in each stage.
        dims: width of each stage, multiples of 4.
        stem_dim: width of the stem's first three convolutions.
        mlp_ratio: hidden width of each stage's MLP as a multiple of its width; the class block's is 4.
        d_state: states per channel of the scan.
        distillation: have a second classifier, for the labels of a teacher.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifiers.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Input (B, in_chans, H, W) of any size. `forward_features` gives the last map raw, (B, H / 32, W / 32, C).

    Raises:
        ValueError: a pooling that is not one of the two, or classifiers without pooling; a width that does not fit.
    """

    classifier_parts = ("class_block", "head", "dist_head")
    normed_features = False

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (3, 4, 9, 3),
        dims: Tuple[int, ...] = (64, 128, 348, 448),
        stem_dim: int = 32,
        mlp_ratio: Tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        d_state: int = 1,
        distillation: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)
        self.distilled_training = False
        dims = stage_dims(dims, depths)
        self.stem = GroupMambaStem(in_chans, stem_dim, dims[0], **dd)
        mixer = dict(d_state=d_state, A_init=A_init, **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = ConvDownsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks = [GroupMambaBlock(dims[i], mlp_ratio[i], rate, **mixer) for rate in rates]
            norm = nn.LayerNorm(dims[i], eps=1e-6, **dd) if i < len(depths) - 1 else None
            stages.append(Stage(down, blocks, norm))
        self.stages = nn.Sequential(*stages)
        self.feature_info = stage_info(dims)
        self.num_features = self.head_hidden_size = dims[-1]
        self.class_block: nn.Module = ClassBlock(self.num_features, mlp_ratio=4.0, **mixer)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self._build_classifiers(num_classes, global_pool, distillation, **dd)
        self.init_weights()

    def _build_classifiers(self, num_classes: int, global_pool: str, distillation: bool, device, dtype) -> None:
        check_pool(global_pool, num_classes, known=("avg",))
        self.num_classes = num_classes
        self.global_pool = global_pool

        def classifier() -> nn.Module:
            if num_classes == 0:
                return nn.Identity()
            return nn.Linear(self.num_features, num_classes, device=device, dtype=dtype).train(self.training)

        self.head = classifier()
        self.dist_head = classifier() if distillation else None

    @torch.jit.ignore
    def init_weights(self) -> None:
        """As every backbone here, and convolutions from a normal distribution by their fan-out."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether the model in training mode returns the logits of both heads, for a distillation loss."""
        self.distilled_training = enable

    @torch.jit.ignore
    def get_classifier(self) -> Union[nn.Module, Tuple[nn.Module, nn.Module]]:
        """Both classifiers; one when there is no distillation."""
        return self.head if self.dist_head is None else (self.head, self.dist_head)

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        like = next(self.parameters())
        pool = next_pool(self.global_pool, global_pool, num_classes)
        self._build_classifiers(num_classes, pool, self.dist_head is not None, like.device, like.dtype)

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        count = len(self.stages)
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.stages) < count:
            self.class_block = nn.Identity()  # a part of the head
            self.head_hidden_size = self.num_features
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, H', W', C), raw: its norm belongs to the head."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False):
        """The last map (B, H', W', C) to logits: those of both heads in distilled training, else their mean.

        Without classes (B, C); without pooling the normalised map. TorchScript wants one type, so it always takes the
        mean.
        """
        if self.global_pool == "":
            return self.norm(x)
        x = self.norm(self.class_block(x.mean((1, 2), keepdim=True))).flatten(1)
        if pre_logits:
            return x
        x = self.head_drop(x)
        y = self.head(x)
        if self.dist_head is not None and self.num_classes > 0:
            y_dist = self.dist_head(x)
            if self.distilled_training and self.training and not torch.jit.is_scripting():
                return y, y_dist
            y = (y + y_dist) / 2
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Official name -> ours, in order.
_RENAMES = (
    (r"^patch_embed1\.conv\.(\d)\.", lambda m: f"stem.conv{int(m[1]) // 3 + 1}.{('conv', 'bn')[int(m[1]) % 3]}."),
    (r"^patch_embed1\.proj\.", "stem.downsample.conv."),
    (r"^patch_embed1\.norm\.", "stem.downsample.norm."),
    (r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
    (r"^patch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.norm."),
    (r"^block(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"^norm([1-3])\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"^norm4\.", "norm."),
    (r"^post_network\.0\.", "class_block."),
    (r"^(stages\..*)\.norm2\.", r"\1.norm."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"\.attn\.(fc[12])\.", r".mixer.gate.\1."),
    (r"\.attn\.", ".mixer."),
    (r"(\.mamba_g\d)\.conv2d\.", r"\1.conv."),
    (r"(\.mamba_g\d)\.(in|out)_proj\.weight$", r"\1.\2_proj_weight"),
)
_GROUP = re.compile(r"\.mamba_g([1-4])\.")


def _stack_groups(weights: Dict[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    """Make one tensor of the four groups of every mixer, and drop a second head where the model has none."""
    own = model.state_dict()
    stacked: Dict[str, Tensor] = {}
    groups: Dict[str, Dict[str, Tensor]] = {}
    for name, value in weights.items():
        group = _GROUP.search(name)
        if group is not None:
            groups.setdefault(_GROUP.sub(".", name), {})[name] = value
        elif model.dist_head is not None or not name.startswith("dist_head."):
            stacked[name] = value
    for name, members in groups.items():
        # What does not make a whole keeps the names of its groups, which the check of the fit then names.
        whole = name in own and all(_is_quarter(value, own[name]) for value in members.values()) and len(members) == 4
        parts = [members[key] for key in sorted(members)]
        stacked.update({name: torch.cat(parts).reshape(own[name].shape)} if whole else members)
    return stacked


def _is_quarter(value: Tensor, own: Tensor) -> bool:
    """Whether the model's tensor is made of four such tensors, one after the other."""
    quarter = (own.shape[0] // 4, *own.shape[1:])
    return [n for n in value.shape if n != 1] == [n for n in quarter if n != 1]


checkpoint_filter_fn = build_filter(_RENAMES, finish=_stack_groups)


def _cfg(**kwargs) -> dict:
    return imagenet_cfg(
        first_conv="stem.conv1.conv",
        classifier=("head", "dist_head"),
        license="mit",
        origin_url="https://github.com/Amshaker/GroupMamba",
        paper_ids="arXiv:2407.13772",
        paper_name="GroupMamba: Efficient Group-Based Visual State Space Model",
        **kwargs,
    )


def _published(drive_id: str, size: str) -> dict:
    return _cfg(
        description=f"Not published as a direct download: https://drive.google.com/file/d/{drive_id}/view or, on "
        f"Hugging Face, Abdelrahman-shaker/GroupMamba-{size}."
    )


default_cfgs = generate_default_cfgs(
    {
        "groupmamba_tiny.in1k": _published("1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o", "Tiny"),
        "groupmamba_small.in1k": _published("1vTN9ynDcsDuOVrcT9GcQ5nBSk-hXySlh", "Small"),
        "groupmamba_base.in1k": _published("1A_srBeDYpsinU5W3PAEADu1saoz413EU", "Base"),
        "groupmamba_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="groupmamba",
        title="GroupMamba",
        models=(GroupMamba,),
        scan_patterns={"cross": CROSS},
        dense_maps=DenseMaps.OWN_NORM,
        dense_decay={"norm": 0.0},  # no recipe was published
    )
)


def _create_groupmamba(variant: str, pretrained: bool = False, **kwargs) -> GroupMamba:
    return build_model(GroupMamba, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def groupmamba_tiny(pretrained: bool = False, **kwargs) -> GroupMamba:
    """GroupMamba-T as published."""
    args = dict(depths=(3, 4, 9, 3), dims=(64, 128, 348, 448), stem_dim=32)
    return _create_groupmamba("groupmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def groupmamba_small(pretrained: bool = False, **kwargs) -> GroupMamba:
    """GroupMamba-S as published."""
    args = dict(depths=(3, 4, 16, 3), dims=(64, 128, 348, 512), stem_dim=64)
    return _create_groupmamba("groupmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def groupmamba_base(pretrained: bool = False, **kwargs) -> GroupMamba:
    """GroupMamba-B as published."""
    args = dict(depths=(3, 6, 21, 3), dims=(96, 192, 424, 512), stem_dim=64)
    return _create_groupmamba("groupmamba_base", pretrained, **dict(args, **kwargs))


@register_model
def groupmamba_pico(pretrained: bool = False, **kwargs) -> GroupMamba:
    """A GroupMamba of this package for demos and tests; no published weights."""
    args = dict(depths=(1, 1, 2, 1), dims=(16, 32, 60, 64), stem_dim=16)
    return _create_groupmamba("groupmamba_pico", pretrained, **dict(args, **kwargs))
