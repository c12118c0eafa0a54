"""HRVMamba: branches of four resolutions side by side, of cross-scans behind deformable sampling.

Paper: Efficient High-Resolution Visual Representation Learning with State Space Model for Human Pose Estimation, arXiv
2410.03174.
Official code: https://github.com/zhanghao5201/HRVMamba (no licence). Nothing of it is in here: written anew from the
paper, from a description of its layers and from the numbers that they give.

What differs from the official code:
- the deformable step is torchvision's operator with its numbers in another order, so there is nothing to compile, and
  it works without CUDA, in images of any size;
- all sizes are one class: squeeze-and-excitation and convolutions of position are options, which nano and tiny have;
- maps are channels-last. A stage adds a branch (`downsample`); its blocks hold one block for each branch, and every
  second one is followed by a fusion of the branches (`fusions`);
- `checkpoint_filter_fn` maps the official names.

Feature maps are of the strides 4, 8, 16 and 32, `out_indices` 0 to 3. With `maps="branches"` these are the branches,
as pose estimation takes them, with `maps="neck"` those of the classifier's neck, as semantic segmentation does.

Official files of pose estimation lack the fusion into the branches that they do not use. So does a net that gives the
features of the first branch alone, `features_only=True, out_indices=(0,)`.
"""

import re
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..checkpoint import CheckpointError, build_filter
from ..layers import (
    AddBranch,
    Bottleneck,
    ClassifierHead,
    ConvNorm,
    FuseBranches,
    HighResolutionNeck,
    KeepBranch,
    KeepBranches,
    MultiScaleConv,
    channels_last,
    check_images,
)
from ..scans import CROSS, DeformableSS2D
from ._backbone import StagedBackbone, drop_path_rates, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family

__all__ = ["HRVMamba"]

STEM_DIM = 64
MAPS = ("branches", "neck")


class HRVMambaStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2, then two bottlenecks: (B, in_chans, H, W) to (B, H / 4, W / 4, dim)."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.in_chans = in_chans
        self.conv1 = ConvNorm(in_chans, STEM_DIM, stride=2, act=True, **dd)
        self.conv2 = ConvNorm(STEM_DIM, STEM_DIM, stride=2, act=True, **dd)
        self.layers = nn.Sequential(Bottleneck(STEM_DIM, dim, **dd), Bottleneck(dim, dim, **dd))

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_chans, H, W); sizes are rounded up."""
        check_images(x, self.in_chans)
        return self.layers(self.conv2(self.conv1(channels_last(x))))


class DVSSBlock(nn.Module):
    """The block of one branch: convolutions of several sizes, scan, MLP, each behind a norm and added to its input.

    (B, H, W, dim) to the same. With `pos_conv` a depth-wise convolution is added to what the first part sees, though
    not to what its result is added to, and another one to what the MLP sees and is added to.
    """

    def __init__(
        self,
        dim: int,
        drop_path: nn.Module,
        drop_local: bool,
        mlp_ratio: float,
        se: bool,
        pos_conv: bool,
        offset_conv: bool,
        A_init: Union[str, float],
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.pos_conv = pos_conv
        pos = dict(kernel_size=3, padding=1, groups=dim, **dd)
        self.pos1 = nn.Conv2d(dim, dim, **pos) if pos_conv else nn.Identity()
        self.norm0 = nn.LayerNorm(dim, **dd)
        self.local = MultiScaleConv(dim, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = DeformableSS2D(dim, offset_conv=offset_conv, se=se, A_init=A_init, **dd)
        self.pos2 = nn.Conv2d(dim, dim, **pos) if pos_conv else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = drop_path
        self.drop_path0 = drop_path if drop_local else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, dim)."""
        seen = x
        if self.pos_conv:
            seen = x + self.pos1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path0(self.local(self.norm0(seen)))
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        if self.pos_conv:
            x = x + self.pos2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class HRVMambaBlock(nn.Module):
    """A `DVSSBlock` for each branch: a list of maps to a list of maps of the same shapes."""

    def __init__(self, branches: Sequence[nn.Module], drop_path: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.drop_path = drop_path  # of all branches; here for those who ask for its rate

    def forward(self, maps: List[Tensor]) -> List[Tensor]:
        """Mix the maps (B, H / 2^i, W / 2^i, dims[i])."""
        mixed: List[Tensor] = []
        for i, branch in enumerate(self.branches):
            mixed.append(branch(maps[i]))
        return mixed


class HRVMambaStage(nn.Module):
    """Add a branch, then blocks, with a fusion of the branches after some of them: n maps to n + 1.

    Args:
        downsample: What adds the branch.
        blocks: See `HRVMambaBlock`.
        fusions: What follows each block: a `FuseBranches` or a `KeepBranches`.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], fusions: Sequence[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.fusions = nn.ModuleList(fusions)

    def forward(self, maps: List[Tensor]) -> List[Tensor]:
        """Go on from n maps with n + 1."""
        maps = self.downsample(maps)
        for block, fusion in zip(self.blocks, self.fusions):  # noqa: B905  (TorchScript has no strict)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                maps = checkpoint(block, maps, use_reentrant=False)
            else:
                maps = block(maps)
            maps = fusion(maps)
        return maps


def _branch_dims(dims: Union[int, Sequence[int]], depths: Sequence[int]) -> Tuple[int, ...]:
    count = len(depths) + 1
    widths = tuple(dims * 2**i for i in range(count)) if isinstance(dims, int) else tuple(dims)
    if len(widths) != count or not depths:
        raise ValueError(
            "HRVMamba: dims and depths must have one number a branch and a stage, and n stages have n + 1 branches; "
            f"got {widths} and {tuple(depths)}"
        )
    odd = [width for width in widths if width % 4]
    if odd:
        raise ValueError(f"HRVMamba: every width must be a multiple of 4, got {odd[0]} in dims {widths}")
    return widths


class HRVMamba(StagedBackbone):
    """HRVMamba (arXiv 2410.03174).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks of each branch in the stages of two, three and four branches.
        dims: width of each branch; a single number is the first one's, doubled by every further branch.
        stem_dim: width of the map that the stem gives.
        fuse_every: the branches are fused after so many blocks, and at the end of a stage.
        neck_dims: width of each map of the neck before the last layer.
        num_features: width of the last map of the neck, which is classified.
        mlp_ratio: hidden width of the MLP as a multiple of the width.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        se: scale the channels after the scan by squeeze-and-excitation.
        pos_conv: add convolutions of position to the blocks.
        offset_conv: convolve the map before the deformable step's numbers are taken from it: of all branches, or a
            choice for each.
        maps: which maps are the features, "branches" or "neck"; see the head of this file.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        drop_local: whether stochastic depth drops the convolutions of several sizes, too: so in the official
            classifier, not in the official pose estimation.

    Input (B, in_chans, H, W) of any size. `forward_features` gives (B, H / 32, W / 32, num_features), sizes rounded up.

    Raises:
        ValueError: lists that do not fit one another, a width that is no multiple of 4, or other `maps`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (2, 8, 4),
        dims: Union[int, Tuple[int, ...]] = 32,
        stem_dim: int = 256,
        fuse_every: int = 2,
        neck_dims: Tuple[int, ...] = (128, 256, 512, 1024),
        num_features: int = 2048,
        mlp_ratio: float = 2.0,
        A_init: Union[str, float] = "real",
        se: bool = False,
        pos_conv: bool = False,
        offset_conv: Union[bool, Tuple[bool, ...]] = False,
        maps: str = "branches",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_local: bool = True,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims = _branch_dims(dims, depths)
        neck_dims = tuple(neck_dims)[: len(dims)]
        convs = (offset_conv,) * len(dims) if isinstance(offset_conv, bool) else tuple(offset_conv)
        for name, given in (("neck_dims", neck_dims), ("offset_conv", convs)):
            if len(given) != len(dims):
                raise ValueError(f"HRVMamba: {name} needs one entry for each of the {len(dims)} branches, got {given}")
        if maps not in MAPS:
            raise ValueError(f"HRVMamba: maps must be 'branches' or 'neck', got {maps!r}")
        super().__init__(in_chans, num_classes, drop_rate)
        self.fuse_every = fuse_every
        self.neck_maps = maps == "neck"

        self.stem = HRVMambaStem(in_chans, stem_dim, **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            widths = dims[: i + 2]
            blocks, fusions = [], []
            for j, rate in enumerate(rates):
                drop_path = DropPath(rate) if rate > 0 else nn.Identity()
                branches = [
                    DVSSBlock(width, drop_path, drop_local, mlp_ratio, se, pos_conv, conv, A_init, **dd)
                    for width, conv in zip(widths, convs, strict=False)
                ]
                blocks.append(HRVMambaBlock(branches, drop_path))
                fused = (j + 1) % fuse_every == 0 or j == len(rates) - 1
                fusions.append(FuseBranches(widths, **dd) if fused else KeepBranches())
            down = AddBranch(dims[i] if i > 0 else stem_dim, widths, **dd)
            stages.append(HRVMambaStage(down, blocks, fusions))
        self.stages = nn.ModuleList(stages)
        self.neck: nn.Module = HighResolutionNeck(dims, neck_dims, num_features, **dd)
        self.feature_info = stage_info((*neck_dims[:-1], num_features) if self.neck_maps else dims)
        for info in self.feature_info:
            info["module"] = "neck" if self.neck_maps else f"stages.{len(stages) - 1}"
        self.num_features = self.head_hidden_size = num_features
        self.norm = nn.Identity()
        self.head = ClassifierHead(num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.init_weights()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        matcher = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"].append((r"^stages\.(\d+)\.fusions\.(\d+)", None))  # with the block before it
        return matcher

    def forward_branches(self, x: Tensor) -> List[Tensor]:
        """Images (B, in_chans, H, W) to the branches (B, H / 4 / 2^i, W / 4 / 2^i, dims[i])."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps = stage(maps)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map of the neck (B, H', W', num_features)."""
        return self.neck(self.forward_branches(x))[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, num_classes); to the pooled features (B, num_features) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Feature maps, with or without the last map of the neck.

        Args:
            x: images (B, in_chans, H, W).
            indices: the last n maps if an int, all if None, else those listed.
            norm: without effect; there is no norm behind the maps.
            stop_early: without effect; every map needs all stages.
            output_fmt: "NCHW" or "NHWC" for the maps.
            intermediates_only: return only the maps.

        Raises:
            ValueError: another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt}")
        take_indices, _ = feature_take_indices(len(self.stages) + 1, indices)  # as many as there are branches
        maps = self.forward_branches(x)
        last = maps[-1]
        if self.neck_maps:
            maps = self.neck(maps)
            last = maps[-1]
        elif not intermediates_only:
            last = self.neck(maps)[-1]
        intermediates: List[Tensor] = []
        for i, y in enumerate(maps):
            if i in take_indices:
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        return last, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop what the wanted maps do not need: the neck, the last fusion into other branches, and the head."""
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        parts = list(self.classifier_parts) if prune_head else []
        if not self.neck_maps and prune_head:
            parts.append("neck")
            self.neck = KeepBranches()
            self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
            self.head.in_features = self.head.num_features = self.num_features
            last: Any = self.stages[-1].fusions
            for i in set(range(len(self.feature_info))) - set(take_indices):
                parts.append(f"stages.{len(self.stages) - 1}.fusions.{len(last) - 1}.outputs.{i}")
                last[-1].outputs[i] = KeepBranch(i)
        self.pruned_parts = tuple(parts)
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices


_RENAMES = (
    (r"^conv([12])\.", r"stem.conv\1.conv."),
    (r"^bn([12])\.", r"stem.conv\1.norm."),
    (r"^layer1\.", "stem.layers."),
    (r"^neck\.increase_layers\.(\d+)\.0\.", r"neck.widen.\1."),
    (r"^neck\.downsample_layers\.(\d+)\.", lambda layer: f"neck.shrink.{int(layer[1]) + 1}."),
    (r"^neck\.final_layer\.conv\.", "neck.final.linear."),
    (r"^neck\.final_layer\.bn\.", "neck.final.norm."),
    (r"^(neck\.shrink\.\d+)\.bn\.", r"\1.norm."),
    # bottlenecks
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.conv1\.", r"\1.reduce.linear."),
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.bn1\.", r"\1.reduce.norm."),
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.conv2\.", r"\1.conv.conv."),
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.bn2\.", r"\1.conv.norm."),
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.conv3\.", r"\1.expand.linear."),
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.bn3\.", r"\1.expand.norm."),
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.downsample\.0\.", r"\1.shortcut.linear."),
    (r"^((?:stem\.layers|neck\.widen)\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    # new branches
    (r"^transition1\.0\.0\.", "stages.0.downsample.old.conv."),
    (r"^transition1\.0\.1\.", "stages.0.downsample.old.norm."),
    (r"^transition(\d)\.\d\.0\.0\.", lambda layer: f"stages.{int(layer[1]) - 1}.downsample.new.conv."),
    (r"^transition(\d)\.\d\.0\.1\.", lambda layer: f"stages.{int(layer[1]) - 1}.downsample.new.norm."),
    # blocks
    (r"\.cpe([12])\.", r".pos\1."),
    (r"(\.branches\.\d+)\.conv2d\.", r"\1.local.convs."),
    (r"(\.branches\.\d+)\.norm\.", r"\1.norm1."),
    (r"\.op\.conv2d\.offset_mask_dw\.", ".mixer.conv.offset_conv."),
    (r"\.op\.conv2d\.", ".mixer.conv."),
    (r"\.op\.se\.fc\.0\.", ".mixer.se.fc1."),
    (r"\.op\.se\.fc\.2\.", ".mixer.se.fc2."),
    (r"\.op\.x_proj_weight$", ".mixer.x_proj.weight"),
    (r"\.op\.", ".mixer."),
    # fusions
    (r"\.paths\.(\d+)\.0\.(weight|bias)$", r".paths.\1.proj.linear.\2"),
    (r"\.paths\.(\d+)\.1\.(\w+)$", r".paths.\1.proj.norm.\2"),
    (r"\.paths\.(\d+)\.(\d+)\.0\.", lambda layer: f".paths.{layer[1]}.{2 * int(layer[2])}.conv."),
    (r"\.paths\.(\d+)\.(\d+)\.1\.", lambda layer: f".paths.{layer[1]}.{2 * int(layer[2])}.norm."),
    (r"\.paths\.(\d+)\.(\d+)\.2\.", lambda layer: f".paths.{layer[1]}.{2 * int(layer[2]) + 1}.linear."),
    (r"\.paths\.(\d+)\.(\d+)\.3\.", lambda layer: f".paths.{layer[1]}.{2 * int(layer[2]) + 1}.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
_BLOCK = re.compile(r"^stage(\d)\.(\d+)\.branches\.(\d+)\.(\d+)\.")
_FUSION = re.compile(r"^stage(\d)\.(\d+)\.fuse_layers\.(\d+)\.(\d+)\.")


def _number_blocks(weights: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Count the blocks of a stage through its modules; the first names are half ours then."""
    if any(".op.conv2d.value_proj." in name or ".op.conv2d.output_proj." in name for name in weights):
        raise CheckpointError(
            "the checkpoint's deformable steps have projections of their own (value_proj, output_proj), which no "
            "published HRVMamba has"
        )
    every = model.fuse_every

    def block(found: re.Match) -> str:
        stage, module, branch, number = map(int, found.groups())
        return f"stages.{stage - 2}.blocks.{module * every + number}.branches.{branch}."

    def fusion(found: re.Match) -> str:
        stage, module, output, path = map(int, found.groups())
        depth = len(model.stages[stage - 2].blocks) if stage - 2 < len(model.stages) else (module + 1) * every
        last = min((module + 1) * every, depth) - 1
        return f"stages.{stage - 2}.fusions.{last}.outputs.{output}.paths.{path}."

    return {_FUSION.sub(fusion, _BLOCK.sub(block, name)): value for name, value in weights.items()}


# Projections are officially apart for each route.
checkpoint_filter_fn = build_filter(_RENAMES, prepare=_number_blocks, stacked=(".x_proj.weight", ".dt_projs_weight"))


def _cfg(**kwargs) -> dict:
    common = dict(
        crop_pct=1.0,
        first_conv="stem.conv1.conv",
        license="unspecified (the official repository grants none)",
        origin_url="https://github.com/zhanghao5201/HRVMamba",
        paper_ids="arXiv:2410.03174",
        paper_name="Efficient High-Resolution Visual Representation Learning with State Space Model for Human Pose "
        "Estimation",
    )
    return imagenet_cfg(**common | kwargs)


def _drive(file_id: str, size: int = 256) -> dict:
    where = f"Not published as a direct download: https://drive.google.com/file/d/{file_id}/view"
    return _cfg(description=where, input_size=(3, size, size), pool_size=(size // 32, size // 32))


default_cfgs = generate_default_cfgs(
    {
        "hrvmamba_nano.in1k": _drive("1vjoEmX8NGh3D4aIB2zTP6eKN23zXmd7i"),
        "hrvmamba_tiny.in1k": _drive("18MnK9b-Ip7RLevdAzzPBFNIe_BNHg2Ry"),
        "hrvmamba_small.in1k": _drive("1Gxo0Pxg2D7x3dU0P2AZ2YGEFS-7XMxIX"),
        "hrvmamba_base.in1k": _drive("1jbXjvCBdjgraeEaJrDjD2wStpxJtCEuy", 224),
        "hrvmamba_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="hrvmamba",
        title="HRVMamba",
        models=(HRVMamba,),
        scan_patterns={"cross": CROSS},
        dense_maps=DenseMaps.NEW_NORMS,
        # Officially all that has "norm" in its name; the batch norms have not.
        dense_decay={"norm": 0.0, "stem.": 1.0, "downsample.": 1.0, "fusions.": 1.0, "neck.": 1.0},
    )
)


def _create_hrvmamba(variant: str, pretrained: bool = False, **kwargs) -> HRVMamba:
    return build_model(HRVMamba, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def hrvmamba_nano(pretrained: bool = False, **kwargs) -> HRVMamba:
    """HRVMamba-N as published."""
    args = dict(dims=8, stem_dim=64, se=True, pos_conv=True)
    return _create_hrvmamba("hrvmamba_nano", pretrained, **dict(args, **kwargs))


@register_model
def hrvmamba_tiny(pretrained: bool = False, **kwargs) -> HRVMamba:
    """HRVMamba-T as published."""
    args = dict(dims=16, stem_dim=128, se=True, pos_conv=True)
    return _create_hrvmamba("hrvmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def hrvmamba_small(pretrained: bool = False, **kwargs) -> HRVMamba:
    """HRVMamba-S as published."""
    args = dict(dims=32)
    return _create_hrvmamba("hrvmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def hrvmamba_base(pretrained: bool = False, **kwargs) -> HRVMamba:
    """HRVMamba-B as published."""
    args = dict(dims=80, offset_conv=True)
    return _create_hrvmamba("hrvmamba_base", pretrained, **dict(args, **kwargs))


@register_model
def hrvmamba_pico(pretrained: bool = False, **kwargs) -> HRVMamba:
    """An HRVMamba of this package for demos and tests; no published weights."""
    args = dict(
        dims=8,
        depths=(1, 1, 2),
        stem_dim=128,
        fuse_every=1,
        neck_dims=(16, 32, 64, 128),
        num_features=128,
        se=True,
        pos_conv=True,
    )
    return _create_hrvmamba("hrvmamba_pico", pretrained, **dict(args, **kwargs))
