"""EfficientViM: convolutions and the hidden-state mixer (HSM-SSD), three stages of strides 16, 32 and 64.

Paper: EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality, arXiv 2411.15241
(CVPR 2025). Official code: https://github.com/mlvlab/EfficientViM (MIT). Written anew from the paper and the shapes of
its checkpoints.

timm has a port of its own, `efficientvim_m1` and so on, hence the prefix of our names. The two take each other's
weights (`checkpoint_filter_fn`, `to_timm_state_dict`) and agree to float32 rounding; features, classifier and
attributes follow timm's conventions. What differs from timm's port:
- maps are channels-last and point-wise convolutions are matrix products on them, which is faster on a CPU;
- downsampling stands at the start of a stage, so that a stage's output is the feature map of its stride;
- `pretrained=True` loads the longer of the two published trainings (450 epochs; timm's default is 300).

What differs from the official code: images of any size and shape, not only square ones. The official weight decay
spares 1-D tensors and biases, so it decays the gates `alpha` and the LayerNorm weights, which it stores with more
dimensions; here LayerNorm weights are 1-D and spared, and A and D are spared by name, too.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor

from ..checkpoint import build_filter, new_name
from ..layers import (
    ConvNorm,
    ConvNormDownsample,
    ConvNormStem,
    FusedHead,
    LinearNorm,
    LinearNormMlp,
    check_pool,
    next_pool,
)
from ..scans import HiddenStateMixer
from ._backbone import StagedBackbone, drop_path_rates, renamed_arguments, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import Family, register_family

__all__ = ["EfficientViM", "EfficientViMBlock", "EfficientViMDistilled", "to_timm_state_dict"]


class EfficientViMBlock(nn.Module):
    """x + a_i (f_i(x) - x), a_i = sigmoid(alpha_i) per channel, for four f: convolution, mixer, convolution, MLP.

    (B, H, W, dim) to the same and the states of the mixer (B, d_state, dim).
    """

    def __init__(
        self,
        dim: int,
        d_state: int,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fused = False
        self.stochastic = drop_path > 0
        self.dwconv1 = ConvNorm(dim, dim, depthwise=True, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = HiddenStateMixer(dim, d_state=d_state, ssm_ratio=ssm_ratio, **dd)
        self.dwconv2 = ConvNorm(dim, dim, depthwise=True, **dd)
        self.ffn = LinearNormMlp(dim, int(dim * mlp_ratio), **dd)
        self.alpha = nn.Parameter(torch.empty(4, dim, **dd))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.constant_(self.alpha, 1e-4)  # so each gate starts half open

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Fold the gated residuals of the two convolutions; exact in eval mode."""
        if not self.fused:
            gates = self.alpha.sigmoid()
            self.dwconv1.fuse_residual(1 - gates[0], gates[0])
            self.dwconv2.fuse_residual(1 - gates[2], gates[2])
            self.fused = True
        return self

    def _blend(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        # One pass over the maps in place of three. Under autocast the residual stays in the gate's dtype, float32.
        x = x.to(gate.dtype)
        y = torch.lerp(x, y.to(gate.dtype), gate)
        if self.training and self.stochastic:
            y = x + self.drop_path(y - x)
        return y

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        gates = torch.sigmoid(self.alpha)
        x = self.dwconv1(x) if self.fused else self._blend(x, self.dwconv1(x), gates[0])
        y, h = self.mixer(self.norm(x))
        x = self._blend(x, y, gates[1])
        x = self.dwconv2(x) if self.fused else self._blend(x, self.dwconv2(x), gates[2])
        return self._blend(x, self.ffn(x), gates[3]), h


class EfficientViMStage(nn.Module):
    """Downsampling (none in the first stage), then blocks.

    (B, H, W, dim) to the map (B, H', W', dim_out) and the states (B, d_state, dim_out) of the last block.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        x = self.downsample(x)
        h = x
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, h = checkpoint(block, x)
            else:
                x, h = block(x)
        return x, h


@renamed_arguments(embed_dim="dims")
class EfficientViM(StagedBackbone):
    """EfficientViM (arXiv 2411.15241).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: "avg", or "" for none, which takes num_classes=0.
        dims: width of each stage.
        depths: blocks in each stage.
        d_state: states of the mixers in each stage.
        ssm_ratio: inner width of the mixers as a multiple of the width.
        mlp_ratio: hidden width of the MLP as a multiple of the width.
        drop_rate: dropout before the classifiers.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Input (B, in_chans, H, W) of any size. The classifier looks at the states of each stage and at the last map, so
    `forward_features` gives a list, as in timm: for each stage the normalised states (B, C, N) of its last block, then
    the normalised last map (B, C, L), L = ceil(H / 64) * ceil(W / 64). `num_features` is the sum of their widths.

    For deployment `timm.utils.reparameterize_model(model.eval())` folds BatchNorm and gated residuals into the
    convolutions.

    Raises:
        ValueError: lengths of `dims`, `depths` and `d_state` that differ; another `global_pool`; "" with classes.
    """

    if TYPE_CHECKING:
        norm: nn.ModuleList
        head_dist: FusedHead

    state_space_parameters = ("A", "D")
    classifier_parts = ("head", "head_dist")
    pooled: torch.jit.Final[bool]  # type: ignore[misc]  # TorchScript's: fixed once it compiles

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Tuple[int, ...] = (128, 192, 320),
        depths: Tuple[int, ...] = (2, 2, 2),
        d_state: Tuple[int, ...] = (49, 25, 9),
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)
        dims = stage_dims(dims, depths)
        if len(d_state) != len(depths):
            raise ValueError(f"{type(self).__name__}: d_state and depths differ in length, got {d_state} and {depths}")
        self.output_fmt = "NCHW"
        self.embed_dim = dims  # its name in timm's port
        self._set_pool(global_pool)
        self.stem = ConvNormStem(in_chans, dims[0], **dd)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = ConvNormDownsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks = [EfficientViMBlock(dims[i], d_state[i], ssm_ratio, mlp_ratio, rate, **dd) for rate in rates]
            stages.append(EfficientViMStage(down, blocks))
        self.stages = nn.ModuleList(stages)
        self.feature_info = stage_info(dims, reduction=16)
        widths = [*dims, dims[-1]]
        self.num_features = self.head_hidden_size = sum(widths)
        self.norm = nn.ModuleList([nn.LayerNorm(width, **dd) for width in widths])
        self.head_drop = nn.Dropout(drop_rate)
        for name in self._heads():
            setattr(self, name, FusedHead(widths, num_classes, **dd))
        self.init_weights()

    def _heads(self) -> List[str]:
        """Names of the classifiers."""
        return ["head"]

    def _set_pool(self, global_pool: str) -> None:
        check_pool(global_pool, self.num_classes, known=("avg",))
        self.global_pool = global_pool
        self.pooled = bool(global_pool)  # type: ignore[misc]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fcs

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        self.num_classes = num_classes
        self._set_pool(next_pool(self.global_pool, global_pool, num_classes))
        for name in self._heads():
            getattr(self, name).reset(num_classes)

    # The final features are a list. TorchScript reads one comment about types there, and no more behind it.
    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[List[Tensor], List[Tensor]]]:
        """As `StagedBackbone.forward_intermediates`; the final features are a list, of the stages that ran.

        `norm` applies the norm of a stage's states to its map, as timm does.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        x = self.stem(x)
        features: List[Tensor] = []
        intermediates: List[Tensor] = []
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice modules
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        for i, (stage, stage_norm) in enumerate(zip(stages, self.norm)):  # noqa: B905 (the last norm is not a stage's)
            x, h = stage(x)
            if i in take_indices:
                y = stage_norm(x) if norm else x
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
            if not intermediates_only:
                features.append(stage_norm(h).transpose(1, 2))
        if intermediates_only:
            return intermediates
        x = self.norm[-1](x) if len(stages) == last + 1 else x
        features.append(x.flatten(1, 2).transpose(1, 2))
        return features, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop the stages after the last one wanted, with them the last norm and the heads; the rest if asked to."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        count = max_index + 1
        pruned = count < len(self.stages)
        self.note_pruned(count, prune_norm, prune_head or pruned)
        self.stages = self.stages[:count]
        if pruned:
            self.norm = nn.ModuleList([*self.norm[:count], nn.Identity()])
            self.embed_dim = self.embed_dim[:count]
            self.feature_info = self.feature_info[:count]
            widths = [*self.embed_dim, self.embed_dim[-1]]
            self.num_features = self.head_hidden_size = sum(widths)
            for name in self._heads():  # nothing of the old classifiers fits the features that are left
                mix = getattr(self, name).mix
                setattr(self, name, FusedHead(widths, 0, device=mix.device, dtype=mix.dtype))
        if prune_norm:
            self.norm = nn.ModuleList([nn.Identity() for _ in self.norm])
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> List[Tensor]:
        """(B, in_chans, H, W) to the normalised states (B, C, N) of each stage and last map (B, C, L)."""
        x = self.stem(x)
        features: List[Tensor] = []
        for stage, norm in zip(self.stages, self.norm):  # noqa: B905 (the last norm is not a stage's)
            x, h = stage(x)
            features.append(norm(h).transpose(1, 2))
        features.append(self.norm[-1](x).flatten(1, 2).transpose(1, 2))
        return features

    def pool(self, x: List[Tensor]) -> List[Tensor]:
        """Features (B, C, L) to vectors (B, C)."""
        return [self.head_drop(t.mean(dim=-1)) for t in x]

    def forward_head(self, x: List[Tensor], pre_logits: bool = False):
        """Features to logits; to all pooled features side by side with `pre_logits`; themselves without pooling."""
        if not self.pooled:
            return x
        else:  # TorchScript compiles one of the two
            pooled = self.pool(x)
            if pre_logits or self.num_classes == 0:
                return torch.cat(pooled, dim=1)
            return self.head(pooled)

    def forward(self, x: Tensor):
        return self.forward_head(self.forward_features(x))


class EfficientViMDistilled(EfficientViM):
    """EfficientViM with a second head that learns from a teacher.

    In training mode the model gives the logits of both heads, (z, z_dist), as the official code does, once
    `set_distilled_training(True)` has been called. Otherwise, in eval mode and under TorchScript it gives their mean.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.distilled_training = False

    def _heads(self) -> List[str]:
        return ["head", "head_dist"]

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether the model in training mode returns the logits of both heads, for a distillation loss."""
        self.distilled_training = enable

    @torch.jit.ignore
    def get_classifier(self) -> Tuple[nn.Module, nn.Module]:
        return self.head.fcs, self.head_dist.fcs

    def forward_head(self, x: List[Tensor], pre_logits: bool = False):
        """As `EfficientViM.forward_head`, with the logits of both heads or their mean."""
        if not self.pooled:
            return x
        else:
            pooled = self.pool(x)
            if pre_logits or self.num_classes == 0:
                return torch.cat(pooled, dim=1)
            z, z_dist = self.head(pooled), self.head_dist(pooled)
            if self.distilled_training and self.training and not torch.jit.is_scripting():
                return z, z_dist
            return (z + z_dist) / 2


# Ours -> official, in order. The official names of the downsampling layers are those of the stage before.
_RENAMES = (
    (r"^stem\.convs\.", "patch_embed.conv."),
    (r"\.downsample\.expand\.", ".downsample.conv.0."),
    (r"\.downsample\.reduce\.", ".downsample.conv.1."),
    (r"\.downsample\.se\.", ".downsample.conv.2."),
    (r"\.downsample\.project\.", ".downsample.conv.3."),
    (r"\.linear\.", ".conv."),
    (r"\.mixer\.bcdt_proj\.", ".mixer.BCdt_proj.conv."),
    (r"\.mixer\.conv\.", ".mixer.dw.conv."),
    (r"\.mixer\.(hz|out)_proj\.", r".mixer.\1_proj.conv."),
    (r"^head\.fcs\.", "heads."),
    (r"^head\.mix$", "weights"),
    (r"^head_dist\.fcs\.", "heads_dist."),
    (r"^head_dist\.mix$", "weights_dist"),
    (r"^stages\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
)
_HEADS_DIST = ("heads_dist.", "weights_dist", "head_dist.")


def _ours(weights: Dict[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    ours = {new_name(name, _RENAMES): name for name in model.state_dict()}
    # Heads that this model lacks (no classes) go by our names, too, for timm drops them by those.
    heads = {"heads": "head.fcs", "heads_dist": "head_dist.fcs"}
    ours |= {f"{a}.{i}.{p}": f"{b}.{i}.{p}" for a, b in heads.items() for i in range(9) for p in ("weight", "bias")}
    return {ours.get(name, name): value for name, value in weights.items()}


def _without_second_head(weights: Dict[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    if isinstance(model, EfficientViMDistilled):
        return weights
    return {name: value for name, value in weights.items() if not name.startswith(_HEADS_DIST)}


# Of the official code, of timm's port, or ours. Their norms are stored as (1, C, 1) or (1, C, 1, 1).
checkpoint_filter_fn = build_filter(prepare=_ours, finish=_without_second_head)


def to_timm_state_dict(model: EfficientViM) -> Dict[str, Tensor]:
    """Weights of a model of ours for timm's own port of the same variant, `efficientvim_m1` and so on.

    The tensors share their memory with the model's. The names are the official ones, too; the official code wants the
    norms over channels in the shapes (1, C, 1) and (1, C, 1, 1).

    Raises:
        ValueError: a model whose norms have been folded away.
    """
    if not all(isinstance(m.norm, nn.BatchNorm2d) for m in model.modules() if isinstance(m, (ConvNorm, LinearNorm))):
        raise ValueError("to_timm_state_dict: the norms of this model are folded; convert it before it is fused")
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith(".linear.weight"):
            value = value[:, :, None, None]
        elif name.endswith("_proj.weight"):
            value = value[:, :, None]
        weights[new_name(name, _RENAMES)] = value
    return weights


def _cfg(distilled: bool = False, **kwargs) -> dict:
    heads = ("head", "head_dist") if distilled else ("head",)
    return imagenet_cfg(
        pool_size=None,  # forward_features gives a list
        first_conv="stem.convs.0.conv",
        classifier=tuple(f"{head}.fcs.{i}" for head in heads for i in range(4)),
        license="mit",
        origin_url="https://github.com/mlvlab/EfficientViM",
        paper_ids="arXiv:2411.15241",
        paper_name="EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality",
        **kwargs,
    )


def _cfgs(variant: str, **kwargs) -> dict:
    """The published trainings of a variant, as timm's hub has them. The first is the default: the more accurate."""
    tags = (f"{variant}.e450_in1k", f"{variant}.e300_in1k", f"{variant}_dist.in1k")
    return {f"vssm_{tag}": _cfg("_dist" in tag, hf_hub_id=f"timm/{tag}", **kwargs) for tag in tags}


default_cfgs = generate_default_cfgs(
    {
        **_cfgs("efficientvim_m1"),
        **_cfgs("efficientvim_m2"),
        **_cfgs("efficientvim_m3"),
        **_cfgs("efficientvim_m4", input_size=(3, 256, 256)),
        "vssm_efficientvim_pico.untrained": _cfg(
            description="Of this package, for demos and tests: no published weights."
        ),
    }
)

FAMILY = register_family(
    Family(
        name="efficientvim",
        title="EfficientViM",
        models=(EfficientViM,),
        # The official code writes both by hand, and fvcore does not know them.
        uncounted_operators=("aten::layer_norm", "aten::mean"),
    )
)

_M1 = dict(dims=(128, 192, 320), depths=(2, 2, 2), d_state=(49, 25, 9))
_M2 = dict(dims=(128, 256, 512), depths=(2, 2, 2), d_state=(49, 25, 9))
_M3 = dict(dims=(224, 320, 512), depths=(2, 2, 2), d_state=(49, 25, 9))
_M4 = dict(dims=(224, 320, 512), depths=(3, 4, 2), d_state=(64, 32, 16))


_BUILD: Dict[str, Any] = dict(pretrained_filter_fn=checkpoint_filter_fn, feature_indices=(0, 1, 2))


def _create_efficientvim(variant: str, pretrained: bool = False, **kwargs) -> EfficientViM:
    return build_model(EfficientViM, variant, pretrained, **_BUILD, **kwargs)


def _create_distilled(variant: str, pretrained: bool = False, **kwargs) -> EfficientViMDistilled:
    return build_model(EfficientViMDistilled, variant, pretrained, **_BUILD, **kwargs)


@register_model
def vssm_efficientvim_m1(pretrained: bool = False, **kwargs) -> EfficientViM:
    """EfficientViM-M1 as published."""
    return _create_efficientvim("vssm_efficientvim_m1", pretrained, **dict(_M1, **kwargs))


@register_model
def vssm_efficientvim_m1_dist(pretrained: bool = False, **kwargs) -> EfficientViMDistilled:
    """EfficientViM-M1 with a second set of heads, for distillation."""
    return _create_distilled("vssm_efficientvim_m1_dist", pretrained, **dict(_M1, **kwargs))


@register_model
def vssm_efficientvim_m2(pretrained: bool = False, **kwargs) -> EfficientViM:
    """EfficientViM-M2 as published."""
    return _create_efficientvim("vssm_efficientvim_m2", pretrained, **dict(_M2, **kwargs))


@register_model
def vssm_efficientvim_m2_dist(pretrained: bool = False, **kwargs) -> EfficientViMDistilled:
    """EfficientViM-M2 with a second set of heads, for distillation."""
    return _create_distilled("vssm_efficientvim_m2_dist", pretrained, **dict(_M2, **kwargs))


@register_model
def vssm_efficientvim_m3(pretrained: bool = False, **kwargs) -> EfficientViM:
    """EfficientViM-M3 as published."""
    return _create_efficientvim("vssm_efficientvim_m3", pretrained, **dict(_M3, **kwargs))


@register_model
def vssm_efficientvim_m3_dist(pretrained: bool = False, **kwargs) -> EfficientViMDistilled:
    """EfficientViM-M3 with a second set of heads, for distillation."""
    return _create_distilled("vssm_efficientvim_m3_dist", pretrained, **dict(_M3, **kwargs))


@register_model
def vssm_efficientvim_m4(pretrained: bool = False, **kwargs) -> EfficientViM:
    """EfficientViM-M4 as published."""
    return _create_efficientvim("vssm_efficientvim_m4", pretrained, **dict(_M4, **kwargs))


@register_model
def vssm_efficientvim_m4_dist(pretrained: bool = False, **kwargs) -> EfficientViMDistilled:
    """EfficientViM-M4 with a second set of heads, for distillation."""
    return _create_distilled("vssm_efficientvim_m4_dist", pretrained, **dict(_M4, **kwargs))


@register_model
def vssm_efficientvim_pico(pretrained: bool = False, **kwargs) -> EfficientViM:
    """An EfficientViM of this package for demos and tests; no published weights."""
    args = dict(dims=(32, 48, 64), depths=(1, 1, 1), d_state=(16, 9, 4))
    return _create_efficientvim("vssm_efficientvim_pico", pretrained, **dict(args, **kwargs))
