"""VMamba: hierarchical backbones of cross-scanned selective state spaces.

Paper: VMamba: Visual State Space Model, arXiv 2401.10166 (NeurIPS 2024).
Official code: https://github.com/MzeroMiko/VMamba (MIT). Written anew from the paper and the shapes of its checkpoints.

What differs from the official code:
- every map is channels-last and the projections of the scan are computed once on the map, not once a route; the numbers
  agree to float32 rounding;
- downsampling stands at the start of a stage, so that a stage's output is the feature map of its stride;
- names say what a thing is (`stem.conv1`, `mixer.x_proj`); `checkpoint_filter_fn` maps both official layouts.

Official names: `vmamba_*_v0` are "vanilla VMamba", `s1l8` means inner ratio 1 and 8 layers in the third stage. No
weights of the `m2` variants were ever released. The official weight decay spares only 1-D tensors and biases, so it
decays A_logs and the step-size tensors; `no_weight_decay()` follows the usual practice of the state-space literature
and spares those as well.
"""

from typing import Any, Dict, Mapping, Optional, Tuple, Union

import torch.nn as nn
from timm.layers import Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter, new_name
from ..layers import ClassifierHead, ConvDownsample, ConvStem, MixerBlock, PatchMerging, PatchStem
from ..scans import BIDIRECTIONAL, CROSS, S4D2D, SS2D, SSD2D, UNIDIRECTIONAL, CascadeSS2D, Roesser2D, RowsColumnsSS2D
from ._backbone import Stage, StagedBackbone, drop_path_rates, renamed_arguments, stage_dims, stage_info
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family

__all__ = ["VMamba", "VMambaBlock"]

SCANS = {"cross": CROSS, "unidirectional": UNIDIRECTIONAL, "bidirectional": BIDIRECTIONAL, "cascade": CROSS}


# Mixers that stand in the place of SS2D, to be compared with it; the last two have no routes.
ABLATIONS = {"s4d": S4D2D, "roesser": Roesser2D, "rows_columns": RowsColumnsSS2D}


def create_mixer(dim: int, scan: str, ssd: bool, scan_float32: bool, gate: bool, mixer: str, **kwargs) -> nn.Module:
    """The token mixer of a block; see `VMamba` for the arguments."""
    if scan not in SCANS:
        raise ValueError(f"VMamba: scan must be one of {', '.join(SCANS)}, got {scan!r}")
    if mixer != "ss2d":
        if mixer not in ABLATIONS:
            raise ValueError(f"VMamba: mixer must be ss2d, {', '.join(ABLATIONS)}, got {mixer!r}")
        if ssd or scan == "cascade" or (mixer != "s4d" and scan != "cross"):
            raise ValueError(f"VMamba: mixer={mixer!r} takes neither ssd=True nor scan={scan!r}")
        if mixer == "s4d":
            kwargs["routes"] = SCANS[scan]
        return ABLATIONS[mixer](dim, scan_float32=scan_float32, gate=gate, **kwargs)
    if ssd:
        if gate or scan == "cascade":
            raise ValueError("VMamba: the SSD mixer has neither a gate nor a cascade scan")
        return SSD2D(dim, routes=SCANS[scan], **kwargs)
    cross_scan = CascadeSS2D if scan == "cascade" else SS2D
    return cross_scan(dim, routes=SCANS[scan], scan_float32=scan_float32, gate=gate, **kwargs)


class VMambaBlock(MixerBlock):
    """x + mixer(norm(x)), then x + mlp(norm(x)) where there is an MLP. Channels-last (B, H, W, C)."""

    def __init__(self, dim: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, device=None, dtype=None, **kwargs):
        dd = {"device": device, "dtype": dtype}
        mixer = create_mixer(dim, **kwargs, **dd)
        mlp = Mlp(dim, int(dim * mlp_ratio), **dd) if mlp_ratio > 0 else None
        super().__init__(dim, mixer, mlp, drop_path, **dd)


@renamed_arguments(embed_dim="dims")
class VMamba(StagedBackbone):
    """VMamba (arXiv 2401.10166).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: pooling of the head, timm's names; "" for none.
        depths: blocks in each stage.
        dims: width of each stage; a single number is the first one's, doubled by every further stage.
        d_state: states per channel of the scan.
        ssm_ratio: inner width of the scan as a multiple of the width.
        d_conv: kernel size of the depth-wise convolution; below 2 there is none.
        conv_bias: whether the depth-wise convolution has a bias.
        ssm_act_layer: activation in the mixer.
        mlp_ratio: hidden width of the MLP as a multiple of the width; 0 for no MLP.
        gate: gate the scan's result with a second projection of the input.
        scan: "cross", "unidirectional", "bidirectional" or "cascade".
        ssd: use the state-space dual of Mamba-2 in place of the selective scan.
        scan_float32: scan in float32 under autocast.
        conv_embed: overlapping convolutions as stem and downsampling; else 4 x 4 patches and patch merging.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`, and with "s4d" `vssm.scans.s4d_A`; None:
            as the mixer's own default, "real", or "lin" with "s4d".
        mixer: "ss2d"; or, to compare with it, "s4d", which does not depend on the input, "roesser" or "rows_columns",
            whose recurrences are two-dimensional.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Input (B, in_chans, H, W) of any size of at least 4 x 4 pixels. `forward_features` gives (B, H / 32, W / 32, C).

    Raises:
        ValueError: an unknown scan or mixer, an SSD mixer with a gate or a cascade, or a mixer to compare with SS2D
            and a scan or SSD besides.
    """

    # The second half is that of the mixers to compare with.
    state_space_parameters = ("A_logs", "Ds", "dt_projs_bias", "A_imag", "C", "log_dt", "couplings")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Tuple[int, ...] = (2, 2, 8, 2),
        dims: Union[int, Tuple[int, ...]] = 96,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        d_conv: int = 3,
        conv_bias: bool = False,
        ssm_act_layer: type = nn.SiLU,
        mlp_ratio: float = 4.0,
        gate: bool = False,
        scan: str = "cross",
        ssd: bool = False,
        scan_float32: bool = False,
        conv_embed: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Optional[Union[str, float]] = None,
        mixer: str = "ss2d",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)
        options: Dict[str, Any] = dict(
            mixer=mixer,
            scan=scan,
            ssd=ssd,
            scan_float32=scan_float32,
            gate=gate,
            d_state=d_state,
            ssm_ratio=ssm_ratio,
            d_conv=d_conv,
            conv_bias=conv_bias,
            act_layer=ssm_act_layer,
        )
        if A_init is not None:
            options["A_init"] = A_init
        dims = stage_dims(dims, depths)
        self.stem = (ConvStem if conv_embed else PatchStem)(in_chans, dims[0], **dd)
        downsample = ConvDownsample if conv_embed else PatchMerging
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = downsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity()
            blocks = [VMambaBlock(dims[i], mlp_ratio=mlp_ratio, drop_path=rate, **options, **dd) for rate in rates]
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


# Regular expression -> name: what the first release called things, which the codes derived from it still read.
EARLY_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
)
# Official name -> ours, within a block; the networks of vssm.medical are made of such blocks too.
BLOCK_RENAMES = (
    (r"(\.blocks\.\d+)\.norm\.", r"\1.norm1."),
    (r"(\.blocks\.\d+)\.op\.", r"\1.mixer."),
    (r"\.mixer\.conv2d\.1\.", ".mixer.conv."),
    (r"\.mixer\.conv2d\.", ".mixer.conv."),
    (r"\.mixer\.x_proj_weight$", ".mixer.x_proj.weight"),
    (r"\.mixer\.dt_projs\.weight$", ".mixer.dt_projs_weight"),
)
# Official name -> ours, in order.
_RENAMES = (
    *EARLY_NAMES,
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
    *BLOCK_RENAMES,
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
)
# The stem and the downsampling layers are numbered Sequentials whose numbers depend on their kind.
_CONV_EMBED = ({"0": "conv1", "2": "norm1", "5": "conv2", "7": "norm2"}, {"1": "conv", "3": "norm"})
_PATCH_EMBED = ({"0": "conv", "2": "norm"}, {"1": "norm", "2": "reduction", "norm": "norm", "reduction": "reduction"})


def _our_name(name: str, conv_embed: bool) -> str:
    name = new_name(name, _RENAMES)
    stem, downsample = _CONV_EMBED if conv_embed else _PATCH_EMBED
    parts = name.split(".")
    if parts[0] == "patch_embed" and parts[1] in stem:
        return ".".join(["stem", stem[parts[1]], *parts[2:]])
    if parts[0] == "layers" and len(parts) > 4 and parts[2] == "downsample" and parts[3] in downsample:
        return ".".join(["stages", str(int(parts[1]) + 1), "downsample", downsample[parts[3]], *parts[4:]])
    return name


def our_names(weights: Mapping[str, Tensor], conv_embed: bool) -> Dict[str, Tensor]:
    """A bare state dict in any official layout, or ours, under our names."""
    if any(name.startswith("stem.") for name in weights):
        return dict(weights)
    return {_our_name(name, conv_embed): value for name, value in weights.items()}


def _number_free(weights: Dict[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    return our_names(weights, isinstance(model.stem, ConvStem))


# Projections are officially apart for each route, and in the one-file layout all in one.
STACKED = (".x_proj.weight", ".dt_projs_weight")
checkpoint_filter_fn = build_filter(prepare=_number_free, stacked=STACKED)


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        url=url,
        first_conv="stem.conv1",
        license="mit",
        origin_url="https://github.com/MzeroMiko/VMamba",
        paper_ids="arXiv:2401.10166",
        paper_name="VMamba: Visual State Space Model",
        **kwargs,
    )


_RELEASE = "https://github.com/MzeroMiko/VMamba/releases/download/"

default_cfgs = generate_default_cfgs(
    {
        "vmamba_tiny_v0.in1k": _cfg(_RELEASE + "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth")
        | {"first_conv": "stem.conv"},
        "vmamba_small_v0.in1k": _cfg(_RELEASE + "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth")
        | {"first_conv": "stem.conv"},
        "vmamba_base_v0.in1k": _cfg(_RELEASE + "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth")
        | {"first_conv": "stem.conv"},
        "vmamba_tiny_s2l5.in1k": _cfg(_RELEASE + "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.in1k": _cfg(_RELEASE + "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
        "vmamba_base_s2l15.in1k": _cfg(_RELEASE + "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
        "vmamba_tiny_s1l8.in1k": _cfg(_RELEASE + "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        "vmamba_small_s1l20.in1k": _cfg(_RELEASE + "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base_s1l20.in1k": _cfg(_RELEASE + "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "vmamba_tiny_m2.untrained": _cfg(),
        "vmamba_small_m2.untrained": _cfg(),
        "vmamba_base_m2.untrained": _cfg(),
        "vmamba_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="vmamba",
        title="VMamba",
        models=(VMamba,),
        scan_patterns={"cross": CROSS},
        dense_maps=DenseMaps.NEW_NORMS,
        # The official recipes spare every parameter with "norm" in its name and decay the rest, biases and the scan's
        # parameters included. Names decide, and ours are not theirs: these rules pick the same parameters. The norms of
        # the stem and of the convolutions between the stages are numbered there. Patch merging in the first version has
        # a named norm: the recipes of `vmamba_*_v0` spare "downsample.norm".
        dense_decay={"norm": 0.0, "stem.norm": 1.0, "downsample.norm": 1.0},
    )
)


def _create_vmamba(variant: str, pretrained: bool = False, **kwargs) -> VMamba:
    return build_model(VMamba, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


def _vanilla(**kwargs) -> dict:
    """Arguments of the first VMamba: Mamba's block as it is, patches, no MLP."""
    args = dict(
        d_state=16, ssm_ratio=2.0, conv_bias=True, mlp_ratio=0.0, gate=True, scan_float32=True, conv_embed=False
    )
    return {**args, **kwargs}


def _ssd(**kwargs) -> dict:
    """Arguments of the SSD variants."""
    return {**dict(ssd=True, d_state=64, ssm_act_layer=nn.GELU), **kwargs}


@register_model
def vmamba_tiny_v0(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T of the first version, with Mamba's block."""
    args = _vanilla(dims=96, depths=(2, 2, 9, 2))
    return _create_vmamba("vmamba_tiny_v0", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_small_v0(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S of the first version, with Mamba's block."""
    args = _vanilla(dims=96, depths=(2, 2, 27, 2))
    return _create_vmamba("vmamba_small_v0", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_base_v0(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B of the first version, with Mamba's block."""
    args = _vanilla(dims=128, depths=(2, 2, 27, 2))
    return _create_vmamba("vmamba_base_v0", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T with inner ratio 2 and five layers in the third stage."""
    args = dict(dims=96, depths=(2, 2, 5, 2), ssm_ratio=2.0)
    return _create_vmamba("vmamba_tiny_s2l5", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S with inner ratio 2 and fifteen layers in the third stage."""
    args = dict(dims=96, depths=(2, 2, 15, 2), ssm_ratio=2.0)
    return _create_vmamba("vmamba_small_s2l15", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B with inner ratio 2 and fifteen layers in the third stage."""
    args = dict(dims=128, depths=(2, 2, 15, 2), ssm_ratio=2.0)
    return _create_vmamba("vmamba_base_s2l15", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T with inner ratio 1 and eight layers in the third stage."""
    args = dict(dims=96, depths=(2, 2, 8, 2), ssm_ratio=1.0)
    return _create_vmamba("vmamba_tiny_s1l8", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S with inner ratio 1 and twenty layers in the third stage."""
    args = dict(dims=96, depths=(2, 2, 20, 2), ssm_ratio=1.0)
    return _create_vmamba("vmamba_small_s1l20", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B with inner ratio 1 and twenty layers in the third stage."""
    args = dict(dims=128, depths=(2, 2, 20, 2), ssm_ratio=1.0)
    return _create_vmamba("vmamba_base_s1l20", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_tiny_m2(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T with the SSD mixer, which its authors never trained."""
    args = _ssd(dims=96, depths=(2, 2, 4, 2))
    return _create_vmamba("vmamba_tiny_m2", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_small_m2(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S with the SSD mixer, which its authors never trained."""
    args = _ssd(dims=96, depths=(2, 2, 12, 2))
    return _create_vmamba("vmamba_small_m2", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_base_m2(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B with the SSD mixer, which its authors never trained."""
    args = _ssd(dims=128, depths=(2, 2, 12, 2))
    return _create_vmamba("vmamba_base_m2", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_pico(pretrained: bool = False, **kwargs) -> VMamba:
    """A VMamba of this package for demos and tests; no published weights."""
    args = dict(dims=32, depths=(1, 1, 2, 1), ssm_ratio=1.0)
    return _create_vmamba("vmamba_pico", pretrained, **dict(args, **kwargs))
