"""Vim (Vision Mamba): blocks of Mamba in both directions over patches, the class token in the middle of them.

Paper: "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model" (arXiv 2401.09417,
ICML 2024). Official code: https://github.com/hustvl/Vim, Apache-2.0. Written from its description and state dicts, no
code was copied; logits and gradients are those of the official model.

A plain net: no stages, no MLP, one width. The stream stays in float32 under AMP, as officially.

Differences from the official code, none of which the weights see: images of any size of at least 16 x 16 pixels (the
official class takes one size); the parameters of both directions are stacked; position embeddings of another grid are
resized around the class token's, where the official fine-tuning code takes the first one for it; and the
official weight decay does not spare A_log, which `no_weight_decay()` names.
"""

import math
from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import DropPath, RmsNorm, lecun_normal_, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoint import CheckpointError, build_filter
from ..layers import check_images
from ..scans import SS1D, KeptTokens, Route, tokens_of_map
from ._backbone import drop_path_rates
from ._builder import build_model, imagenet_cfg
from ._family import Family, register_family
from ._plain import PlainBackbone, TokenEmbedding, quarter_indices, resized_positions

__all__ = ["Vim"]


class PatchEmbedding(nn.Module):
    """Patches that may overlap: (B, in_chans, H, W) to (B, (H - size) // stride + 1, (W - size) // stride + 1, dim).

    Pixels that fill no patch are cut off.
    """

    def __init__(self, in_chans: int, dim: int, size: int, stride: int, device=None, dtype=None):
        super().__init__()
        self.size, self.stride = size, stride
        self.img_size: Union[Tuple[int, int], None] = None
        self.conv = nn.Conv2d(in_chans, dim, size, stride=stride, device=device, dtype=dtype)

    def init_weights(self) -> None:
        """LeCun-normal, as in the official code."""
        lecun_normal_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def grid_size(self, height: int, width: int) -> Tuple[int, int]:
        """Rows and columns of patches of an image."""
        return (height - self.size) // self.stride + 1, (width - self.size) // self.stride + 1

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.conv.in_channels, self.size, self.img_size)
        return self.conv(x).permute(0, 2, 3, 1)


def _angles(x: Tensor, height: int, width: int) -> Tensor:
    """The angles (height, width, C / 2) by which the pairs of channels of x (..., C) are turned on a map."""
    dim = x.shape[-1]
    speeds = 10000 ** (-torch.arange(0, dim // 2, 2, device=x.device).float() / (dim // 2))
    rows = torch.arange(height, device=x.device).float().div(height).mul(14).unsqueeze(1) * speeds
    columns = torch.arange(width, device=x.device).float().div(width).mul(14).unsqueeze(1) * speeds
    rows = rows.unsqueeze(1).expand(-1, width, -1)
    return torch.cat([rows, columns.unsqueeze(0).expand(height, -1, -1)], dim=-1)


@torch.fx.wrap
def rotate_positions(x: Tensor, kept: Optional[KeptTokens] = None) -> Tensor:
    """Rotary position embedding of a map: half of the channels tell the row, half the column.

    Neighbouring channels are turned by t * 10000 ** (-4 i / C), where t is the row or column on a grid of 14 x 14, to
    which every map is stretched.

    Args:
        x: (B, H, W, C), C a multiple of 4; or the tokens that pruning has left of it, (B, L, C).
        kept: which tokens they are.

    Returns:
        The same.
    """
    if kept is None:
        angles = _angles(x, x.shape[1], x.shape[2])
    else:
        angles = tokens_of_map(_angles(x, kept.height, kept.width).expand(x.shape[0], -1, -1, -1), kept)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class VimBlock(nn.Module):
    """x + mixer(norm(x)), with `rope` after a rotation of x. Tokens (B, L, dim), or a map (B, H, W, dim).

    Args:
        dim: width.
        d_state: states of the scan.
        halve: divide the sum of both directions by two.
        rope: rotate the stream itself before the block; a map only.
        drop_path: stochastic depth.
        depth: blocks of the net, whose root divides the output projection at the start.
        A_init: how A of the scan starts.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        halve: bool = True,
        rope: bool = False,
        drop_path: float = 0.0,
        depth: int = 1,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.depth = depth
        self.rope = rope
        self.norm = RmsNorm(dim, eps=1e-5, **dd)
        self.mixer = SS1D(dim, d_state=d_state, bidirectional=True, halve=halve, A_init=A_init, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the mixer as officially: a small output, and the steps of the second direction at softplus(0)."""
        self.mixer.out_proj.weight.div_(math.sqrt(self.depth))
        self.mixer.dt_projs_bias[1].zero_()

    def forward(self, x: Tensor, kept: Optional[KeptTokens] = None, outputs: Optional[List[Tensor]] = None) -> Tensor:
        if self.rope:
            x = rotate_positions(x, kept)
        return x + self.drop_path(self.mixer(self.norm(x), kept, outputs))


class Vim(PlainBackbone):
    """Vim (arXiv 2401.09417).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: what the classifier looks at: "token"; a pooling of the patches, see `vssm.layers.pool_tokens`; ""
            for all tokens; None: the class token if there is one, otherwise "avg".
        img_size: whose grid the position embeddings are stored for; they are resized for any other.
        dynamic_img_size: take images of any size; False: of `img_size` alone.
        patch_size: sides of a patch.
        stride: pixels from a patch to the next; None: no overlap.
        dim: width.
        depth: blocks.
        d_state: states of the scan.
        class_token: put a class token in the middle of the patches.
        rope: rotate the stream by its positions before each block; not with a class token.
        halve: divide the sum of both directions by two.
        feature_maps: what `forward_intermediates` gives of a block unless it norms the maps: "stream", the residual
            stream behind it; "rotated", that stream as the next block sees it, after its rotation, which the small
            official segmentor takes; "mixer", what the block adds to the stream, which the tiny one takes.
        pruning: arguments of `set_pruning`, to prune tokens; None: none are pruned.
        A_init: how A of the scans starts, see `vssm.scans.init_state_matrix`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0. The official training: 0 for tiny,
            0.05 for small.

    Input (B, in_chans, H, W) of any size of at least a patch. `forward_features` gives all tokens (B, h * w + 1, C),
    the class token behind the first half; without one a map (B, h, w, C).

    The first tiny checkpoint that was released, of 73.1 %, needs class_token=False, rope=True, halve=False; so do the
    official detectors, and some of the segmentors.

    Raises:
        ValueError: rope with a class token or a width that four does not divide, an unknown pooling, maps of another
            kind, or pruning that the net cannot do.
    """

    state_space_parameters = ("A_logs", "Ds", "dt_projs_bias")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Union[str, None] = None,
        img_size: Union[int, Tuple[int, int]] = 224,
        dynamic_img_size: bool = True,
        patch_size: int = 16,
        stride: Union[int, None] = None,
        dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        class_token: bool = True,
        rope: bool = False,
        halve: bool = True,
        feature_maps: str = "stream",
        pruning: Optional[Dict[str, Any]] = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        A_init: Union[str, float] = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if rope and (class_token or dim % 4):
            raise ValueError(
                f"Vim: rope needs class_token=False and a width that 4 divides, got {class_token} and {dim}"
            )
        if feature_maps not in ("stream", "mixer", *(["rotated"] if rope else [])):
            raise ValueError(f"Vim: feature_maps must be stream, mixer or, with rope, rotated, got {feature_maps!r}")
        super().__init__(in_chans, num_classes, drop_rate)
        self.depth, self.rope, self.feature_maps = depth, rope, feature_maps
        size, stride = to_2tuple(img_size), stride or patch_size
        self.output_fmt = "NLC" if class_token else "NHWC"
        self.num_prefix_tokens = int(class_token)
        self.num_features = self.head_hidden_size = dim
        self.stem = PatchEmbedding(in_chans, dim, patch_size, stride, **dd)
        if not dynamic_img_size:
            self.stem.img_size = size
        self.tokens = TokenEmbedding(dim, self.stem.grid_size(*size), "middle" if class_token else "", **dd)
        self.global_pool = self.checked_pool(
            ("token" if class_token else "avg") if global_pool is None else global_pool
        )
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        blocks = [
            VimBlock(dim, d_state, halve, rope, drop_path=rate, depth=depth, A_init=A_init, **dd) for rate in rates
        ]
        self.blocks = nn.Sequential(*blocks)
        self.feature_info = self.block_info(dim, depth, stride)
        self.norm = RmsNorm(dim, eps=1e-5, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self.make_head(**dd)
        self.init_weights()
        self.set_pruning(**(pruning or {}))

    @torch.jit.ignore
    def set_pruning(
        self, sites: Sequence[int] = (), keep: float = 1.0, decay: bool = False, as_released: bool = False
    ) -> None:
        if sites and self.feature_maps != "stream":
            raise ValueError(f"Vim: pruning needs feature_maps='stream', got {self.feature_maps!r}")
        super().set_pruning(sites, keep, decay, as_released)

    def tapped(self, before: Tensor, after: Tensor, index: int) -> Tensor:
        """See `feature_maps`."""
        if self.feature_maps == "mixer":
            return after - (rotate_positions(before) if self.rope else before)
        if self.feature_maps == "rotated" and index < self.depth - 1:
            return rotate_positions(after)
        return after

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the normalised tokens (B, L, C), or a map without a class token."""
        return self.norm(self.forward_blocks(self.tokens(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits (B, num_classes); to what the classifier looks at (B, C) with `pre_logits`."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Official name -> ours, in order.
_RENAMES = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^(pos_embed|cls_token)$", r"tokens.\1"),
    (r"^norm_f\.", "norm."),
    (r"^layers\.", "blocks."),
)
# Of a mixer: official names of the two directions -> ours, and how they are joined.
_PAIRS = (
    ("A_log", "A_b_log", "A_logs", torch.cat),
    ("D", "D_b", "Ds", torch.cat),
    ("conv1d.weight", "conv1d_b.weight", "conv.weight", torch.cat),
    ("conv1d.bias", "conv1d_b.bias", "conv.bias", torch.cat),
    ("x_proj.weight", "x_proj_b.weight", "x_proj_weight", torch.stack),
    ("dt_proj.weight", "dt_proj_b.weight", "dt_projs_weight", torch.stack),
    ("dt_proj.bias", "dt_proj_b.bias", "dt_projs_bias", torch.stack),
)


def _join_directions(weights: Dict[str, Tensor], model: Any) -> Dict[str, Tensor]:
    """Stack the two directions of each mixer, and leave out the tables of the rotations, which are computed."""
    rotated, rotates = any(name.startswith("rope.") for name in weights), model.blocks[0].rope
    if rotated and not rotates:
        raise CheckpointError(
            "the checkpoint is of a Vim with rotations; create the model with class_token=False, rope=True, halve=False"
        )
    joined = {name: value for name, value in weights.items() if not name.startswith("rope.")}
    for forwards, backwards, ours, join in _PAIRS:
        for name in [name for name in joined if name.endswith(f".mixer.{backwards}")]:
            prefix = name.removesuffix(backwards)
            if prefix + forwards in joined:
                joined[prefix + ours] = join([joined.pop(prefix + forwards), joined.pop(name)])
    return joined


checkpoint_filter_fn = build_filter(_RENAMES, prepare=_join_directions, finish=resized_positions)


def _cfg(url: str = "", **kwargs) -> dict:
    return imagenet_cfg(
        **{
            **dict(
                url=url,
                pool_size=None,
                first_conv="stem.conv",
                classifier="head",
                license="apache-2.0 (the tag of the weights; the text of their cards says non-commercial)",
                origin_url="https://github.com/hustvl/Vim",
                paper_ids="arXiv:2401.09417",
                paper_name="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space "
                "Model",
            ),
            **kwargs,
        }
    )


_HUB = "https://huggingface.co/hustvl/"

default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224.in1k": _cfg(_HUB + "Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth"),
        "vim_tiny_patch16_stride8_224.in1k": _cfg(
            _HUB + "Vim-tiny-midclstok/resolve/main/vim_t_midclstok_ft_78p3acc.pth"
        ),
        "vim_small_patch16_224.in1k": _cfg(_HUB + "Vim-small-midclstok/resolve/main/vim_s_midclstok_80p5acc.pth"),
        "vim_small_patch16_stride8_224.in1k": _cfg(
            _HUB + "Vim-small-midclstok/resolve/main/vim_s_midclstok_ft_81p6acc.pth"
        ),
        "vim_base_patch16_224.in1k": _cfg(_HUB + "Vim-base-midclstok/resolve/main/vim_b_midclstok_81p9acc.pth"),
        "vim_pico.untrained": _cfg(description="Of this package, for demos and tests: no published weights."),
    }
)

FAMILY = register_family(
    Family(
        name="vim",
        title="Vim",
        models=(Vim,),
        scan_patterns={"both ways": (Route(), Route(reverse=True))},
        dense_decay={"norm": 0.0, "pos_embed": 0.0},
    )
)


def _create_vim(variant: str, pretrained: bool = False, averaged: bool = True, **kwargs) -> Vim:
    filter_fn = partial(checkpoint_filter_fn, averaged=averaged)
    indices = quarter_indices(kwargs.get("depth", 24))
    return build_model(Vim, variant, pretrained, pretrained_filter_fn=filter_fn, feature_indices=indices, **kwargs)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-Ti as published."""
    return _create_vim("vim_tiny_patch16_224", pretrained, **dict(dict(dim=192), **kwargs))


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-Ti with overlapping patches, which its authors call of finer granularity."""
    return _create_vim("vim_tiny_patch16_stride8_224", pretrained, **dict(dict(dim=192, stride=8), **kwargs))


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-S as published."""
    return _create_vim("vim_small_patch16_224", pretrained, **dict(dict(dim=384), **kwargs))


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-S with overlapping patches, which its authors call of finer granularity."""
    return _create_vim("vim_small_patch16_stride8_224", pretrained, **dict(dict(dim=384, stride=8), **kwargs))


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-B as published."""
    return _create_vim("vim_base_patch16_224", pretrained, **dict(dict(dim=768), **kwargs))


@register_model
def vim_pico(pretrained: bool = False, **kwargs) -> Vim:
    """A Vim of this package for demos and tests; no published weights."""
    return _create_vim("vim_pico", pretrained, **dict(dict(dim=32, depth=4, d_state=8), **kwargs))
