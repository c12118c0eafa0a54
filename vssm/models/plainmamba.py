"""PlainMamba: blocks of one width over one map, scanned along snakes by a mixer that knows the direction of each move.

Paper: "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition" (arXiv 2403.17695, BMVC 2024). Official
code: https://github.com/ChenhongyiYang/PlainMamba, Apache-2.0. Written from its description and state dicts; no code
was copied. Logits and gradients are those of the official model.

What `vssm.scans.ContinuousSS2D` says of step sizes, B and C in raster order and of the doubled bias is as released: the
weights depend on it. The paper's reading is `align_projections=True`.

Differences from the official code, none of which the weights see: odd sizes of images at construction (the official
grid of the position embeddings misses a row there), and float32 or better for the state space whatever the precision.
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import build_filter
from ..layers import channels_last, check_images
from ..scans import CONTINUOUS, ContinuousSS2D, KeptTokens, tokens_of_map, tokens_on_map
from ._backbone import drop_path_rates
from ._builder import build_model, imagenet_cfg
from ._family import DenseMaps, Family, register_family
from ._plain import PlainBackbone, TokenEmbedding, quarter_indices, resized_positions

__all__ = ["PlainMamba"]


class ConvPatchStem(nn.Module):
    """A 7 x 7 convolution of stride 2, 3 x 3 ones, then 8 x 8 patches: (B, in_chans, H, W) to (B, h, w, dim).

    h and w are H / 16 and W / 16, rounded up: what the patches lack is filled with zeros at the bottom and the right.

    Args:
        in_chans: channels of the image.
        dim: width of the result.
        num_convs: 3 x 3 convolutions.
        width: of the convolutions.
    """

    def __init__(self, in_chans: int, dim: int, num_convs: int, width: int = 64, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.img_size: Union[Tuple[int, int], None] = None
        self.conv = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False, **dd)
        self.norm = BatchNormAct2d(width, **dd)
        layers = []
        for _ in range(num_convs):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False, **dd), BatchNormAct2d(width, **dd)]
        self.convs = nn.Sequential(*layers)
        self.projection = nn.Conv2d(width, dim, 8, stride=8, **dd)

    def grid_size(self, height: int, width: int) -> Tuple[int, int]:
        """Rows and columns of patches of an image."""
        return (height + 15) // 16, (width + 15) // 16

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.conv.in_channels, 1, self.img_size)
        x = channels_last(x).permute(0, 3, 1, 2)
        x = self.convs(self.norm(self.conv(x)))
        x = F.pad(x, [0, -x.shape[3] % 8, 0, -x.shape[2] % 8])
        return self.projection(x).permute(0, 2, 3, 1)


class PlainMambaBlock(nn.Module):
    """x + mixer(norm(x)); with `local_conv` then GELU(BatchNorm(depth-wise 3 x 3 convolution)) of that, no residual.

    (B, H, W, dim) to the same; or the tokens that pruning has left, (B, L, dim).

    Args:
        dim: width.
        local_conv: whether there is that convolution.
        drop_path: stochastic depth.
        kwargs: further arguments of `ContinuousSS2D`.
    """

    def __init__(self, dim: int, local_conv: bool = False, drop_path: float = 0.0, device=None, dtype=None, **kwargs):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = ContinuousSS2D(dim, **kwargs, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.local: nn.Module = nn.Identity()
        self.has_local = local_conv
        if local_conv:
            self.local = nn.Sequential(
                nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd),
                BatchNormAct2d(dim, act_layer=nn.GELU, **dd),
            )

    def forward(self, x: Tensor, kept: Optional[KeptTokens] = None, outputs: Optional[List[Tensor]] = None) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm(x), kept, outputs))
        if self.has_local:
            x = x if kept is None else tokens_on_map(x, kept)
            x = self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = x if kept is None else tokens_of_map(x, kept)
        return x


class PlainMamba(PlainBackbone):
    """PlainMamba (arXiv 2403.17695).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: how the map is pooled for the classifier, see `vssm.layers.pool_tokens`; "" for the map itself.
        img_size: whose grid the position embeddings are stored for; they are resized for any other.
        dynamic_img_size: take images of any size; False: of `img_size` alone.
        dim: width.
        depth: blocks.
        stem_convs: 3 x 3 convolutions of the stem.
        local_convs: indices of the blocks that end in a depth-wise convolution.
        d_state: states of the scan.
        align_projections: read step size, B and C along the routes, as in the paper; the released weights need False.
        pruning: arguments of `set_pruning`, to prune tokens; None: none are pruned.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0. The official training: 0.2 for L1
            and L2, 0.4 for L3.

    Input (B, in_chans, H, W) of any size. `forward_features` gives (B, H / 16, W / 16, C), sizes rounded up.

    Raises:
        ValueError: an unknown pooling, or pruning that the net cannot do.
    """

    state_space_parameters = ("A_logs", "Ds", "dt_projs_bias", "direction_Bs")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: Union[int, Tuple[int, int]] = 224,
        dynamic_img_size: bool = True,
        dim: int = 192,
        depth: int = 24,
        stem_convs: int = 1,
        local_convs: Tuple[int, ...] = (),
        d_state: int = 16,
        align_projections: bool = False,
        pruning: Optional[Dict[str, Any]] = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, drop_rate)
        size = to_2tuple(img_size)
        self.num_features = self.head_hidden_size = dim
        self.stem = ConvPatchStem(in_chans, dim, stem_convs, **dd)
        if not dynamic_img_size:
            self.stem.img_size = size
        self.tokens = TokenEmbedding(dim, self.stem.grid_size(*size), **dd)
        self.global_pool = self.checked_pool(global_pool)
        mixer = dict(d_state=d_state, align_projections=align_projections, A_init=A_init)
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        blocks = [PlainMambaBlock(dim, i in local_convs, rate, **mixer, **dd) for i, rate in enumerate(rates)]
        self.blocks = nn.Sequential(*blocks)
        self.feature_info = self.block_info(dim, depth, 16)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self.make_head(**dd)
        self.init_weights()
        self.set_pruning(**(pruning or {}))

    @torch.jit.ignore
    def init_weights(self) -> None:
        """As in the official training, which starts the classifier smaller than other linear layers."""
        super().init_weights()
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.01)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the normalised map (B, h, w, C)."""
        return self.norm(self.forward_blocks(self.tokens(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map to logits (B, num_classes); to its mean (B, C) with `pre_logits`."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Official name -> ours, in order.
_RENAMES = (
    (r"^head\.fc\.", "head."),
    (r"^pos_embed$", "tokens.pos_embed"),
    (r"^ln1\.", "norm."),
    (r"^patch_embed\.stem\.0\.", "stem.conv."),
    (r"^patch_embed\.stem\.1\.", "stem.norm."),
    (r"^patch_embed\.convs\.(\d+)\.", lambda m: f"stem.convs.{int(m[1]) - int(m[1]) // 3}."),  # no ReLUs of their own
    (r"^patch_embed\.projection\.", "stem.projection."),
    (r"^layers\.(\d+)\.dw\.", r"blocks.\1.local."),
    (r"^layers\.(\d+)\.mamba\.", r"blocks.\1.mixer."),
    (r"^layers\.", "blocks."),
    (r"\.A_log$", ".A_logs"),
    (r"\.D$", ".Ds"),
    (r"\.conv2d\.", ".conv."),
    (r"\.dt_proj\.(weight|bias)$", r".dt_projs_\1"),
)


def _without_averages(weights, model):
    """Leave out the copies that the official averaging keeps as buffers; the plain names hold the averages."""
    return {name: value for name, value in weights.items() if not name.startswith("ema_")}


checkpoint_filter_fn = build_filter(_RENAMES, prepare=_without_averages, finish=resized_positions)


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        **{
            **dict(
                url=url,
                pool_size=(14, 14),
                first_conv="stem.conv",
                classifier="head",
                license="apache-2.0 (that of the code; the weights have no text of their own)",
                origin_url="https://github.com/ChenhongyiYang/PlainMamba",
                paper_ids="arXiv:2403.17695",
                paper_name="PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
            ),
            **kwargs,
        }
    )


_HUB = "https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/"

default_cfgs = generate_default_cfgs(
    {
        "plainmamba_l1.in1k": _cfg(_HUB + "l1.pth"),
        "plainmamba_l2.in1k": _cfg(_HUB + "l2.pth"),
        "plainmamba_l3.in1k": _cfg(_HUB + "l3.pth"),
        "plainmamba_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="plainmamba",
        title="PlainMamba",
        models=(PlainMamba,),
        scan_patterns={"continuous": CONTINUOUS},
        dense_maps=DenseMaps.NEW_AND_OWN_NORMS,
        dense_norm_eps=1e-6,
        # Officially the stem's norms are numbered and the last one is `ln1`, and only names with "norm" are spared.
        dense_decay={
            **{"norm": 0.0, "stem.norm": 1.0, "model.norm": 1.0},
            **dict.fromkeys(("pos_embed", "A_logs", "Ds", "direction_Bs"), 0.0),
        },
        uncounted_operators=("aten::layer_norm", "aten::batch_norm", "aten::mean"),
    )
)


def _create_plainmamba(variant: str, pretrained: bool = False, **kwargs) -> PlainMamba:
    return build_model(
        PlainMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_indices=quarter_indices(kwargs["depth"]),
        **kwargs,
    )


@register_model
def plainmamba_l1(pretrained: bool = False, **kwargs) -> PlainMamba:
    """PlainMamba-L1 as published."""
    args = dict(dim=192, depth=24, stem_convs=1, local_convs=(0,))
    return _create_plainmamba("plainmamba_l1", pretrained, **dict(args, **kwargs))


@register_model
def plainmamba_l2(pretrained: bool = False, **kwargs) -> PlainMamba:
    """PlainMamba-L2 as published."""
    args = dict(dim=384, depth=24, stem_convs=2)
    return _create_plainmamba("plainmamba_l2", pretrained, **dict(args, **kwargs))


@register_model
def plainmamba_l3(pretrained: bool = False, **kwargs) -> PlainMamba:
    """PlainMamba-L3 as published."""
    args = dict(dim=448, depth=36, stem_convs=2)
    return _create_plainmamba("plainmamba_l3", pretrained, **dict(args, **kwargs))


@register_model
def plainmamba_pico(pretrained: bool = False, **kwargs) -> PlainMamba:
    """A PlainMamba of this package for demos and tests; no published weights."""
    args = dict(dim=32, depth=4, stem_convs=1, local_convs=(0,), d_state=4)
    return _create_plainmamba("plainmamba_pico", pretrained, **dict(args, **kwargs))
