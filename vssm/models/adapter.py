"""The ViT-Adapter: maps of four strides from a plain net, by convolutions beside it that exchange with its tokens.

Paper: "Vision Transformer Adapter for Dense Predictions" (arXiv 2205.08534, ICLR 2023). PlainMamba's detectors use it
(arXiv 2403.17695), whose files load by `convert_adapter`. Written from the papers and the layout of those files; no
code was copied.

Shapes: B images, C channels, L tokens. "The pyramid" are the maps of strides 8, 16 and 32 as one sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..checkpoint import rename
from ..layers import DeformableAttention, raster_points
from ._plain import PlainBackbone, quarter_indices

__all__ = ["ADAPTER_STRIDES", "ViTAdapter", "convert_adapter", "is_adapters"]

ADAPTER_STRIDES = (4, 8, 16, 32)
Size = tuple[int, int]


def _as_maps(x: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """A sequence (B, L, C) of the pixels of maps to the maps (B, C, h, w)."""
    parts = x.split([rows * columns for rows, columns in sizes], dim=1)
    # Contiguous: as a view of one image a map has strides of which PyTorch's batch norm makes wrong gradients on a CPU.
    return [y.transpose(1, 2).contiguous().unflatten(2, size) for y, size in zip(parts, sizes, strict=True)]


class SpatialPrior(nn.Module):
    """Convolutions over the image: (B, in_chans, H, W) to maps (B, dim, H / s, W / s) of the strides s = 4, 8, 16, 32.

    Args:
        in_chans: channels of the image.
        dim: width of all maps.
        width: of the first convolutions; 2, 4 and 4 times as much in the coarser ones.
    """

    def __init__(self, in_chans: int, dim: int, width: int = 64, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False, **dd)
            return [layer, nn.BatchNorm2d(outputs, **dd), nn.ReLU()]

        widths = (width, 2 * width, 4 * width, 4 * width)
        layers = [*conv(in_chans, width, 2), *conv(width, width), *conv(width, width)]
        self.stem = nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList(nn.Sequential(*conv(widths[i], widths[i + 1], 2)) for i in range(3))
        self.projections = nn.ModuleList(nn.Conv2d(width, dim, 1, **dd) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(y) for project, y in zip(self.projections, maps, strict=True)]


class PyramidFfn(nn.Module):
    """Linear, depth-wise 3 x 3 convolution over each map, GELU, linear: (B, L, dim) to the same."""

    def __init__(self, dim: int, hidden_dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """`sizes`: rows and columns of each map."""
        x = torch.cat([self.dwconv(y).flatten(2).transpose(1, 2) for y in _as_maps(self.fc1(x), sizes)], dim=1)
        return self.fc2(F.gelu(x))


class Injector(nn.Module):
    """x + gamma * attention of the patches x to the pyramid; gamma starts at 0, so that the net starts as it was.

    Args:
        dim: width.
        num_heads: of the attention.
        num_points: of the attention in each map.
    """

    def __init__(self, dim: int, num_heads: int, num_points: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = DeformableAttention(dim, num_heads, 3, num_points, **dd)
        self.gamma = nn.Parameter(torch.zeros(dim, **dd))

    def forward(self, x: Tensor, points: Tensor, pyramid: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Patches (B, h * w, dim) with their places (h * w, 2), and the pyramid with its sizes, to the patches."""
        return x + self.gamma * self.attn(self.query_norm(x), points, self.feat_norm(pyramid), sizes)


class Extractor(nn.Module):
    """c + attention of the pyramid c to the patches, then c + FFN(c).

    Args:
        dim: width.
        num_heads: of the attention.
        num_points: of the attention.
        mlp_ratio: hidden width of the FFN / dim.
        drop_path: stochastic depth of the FFN.
    """

    def __init__(
        self, dim: int, num_heads: int, num_points: int, mlp_ratio: float, drop_path: float, device=None, dtype=None
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = DeformableAttention(dim, num_heads, 1, num_points, **dd)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.ffn = PyramidFfn(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, c: Tensor, points: Tensor, sizes: Sequence[Size], x: Tensor, grid: Size) -> Tensor:
        """The pyramid (B, L, dim) with its places and sizes, and patches with their grid, to the pyramid."""
        c = c + self.attn(self.query_norm(c), points, self.feat_norm(x), [grid])
        return c + self.drop_path(self.ffn(self.ffn_norm(c), sizes))


class Interaction(nn.Module):
    """What happens around a part of the net: an injector before its blocks, extractors behind them.

    Args:
        dim: width.
        extra: further extractors.
        kwargs: of `Extractor`.
    """

    def __init__(self, dim: int, extra: int = 0, device=None, dtype=None, **kwargs):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.injector = Injector(dim, kwargs["num_heads"], kwargs["num_points"], **dd)
        self.extractor = Extractor(dim, **kwargs, **dd)
        self.extra_extractors = nn.ModuleList(Extractor(dim, **kwargs, **dd) for _ in range(extra))

    def extractors(self) -> list[nn.Module]:
        """All of them, in order."""
        return [self.extractor, *self.extra_extractors]


class ViTAdapter(nn.Module):
    """Maps of the strides 4, 8, 16 and 32, all as wide as the net, from a plain net and this module beside it.

    The net is not part of the module, and its weights stay its own. It is a `PlainBackbone` of this package, such as
    Vim and PlainMamba, or a timm VisionTransformer with `dynamic_img_size=True`. Its class tokens go through the blocks
    as ever; the adapter exchanges with the patches alone.

    Args:
        model: the net; only its width and its depth are read.
        last_blocks: the last block of each part of the net, counted from 0; blocks after the last part do not run.
            None: the ends of its quarters.
        in_chans: channels of the images.
        num_heads: of the deformable attention.
        num_points: of that, in each map.
        prior_width: of the first convolutions over the image.
        mlp_ratio: hidden width / width, in the extractors.
        drop_path_rate: stochastic depth in the extractors.

    Raises:
        ValueError: another kind of net, or blocks that it has not.

    Example:
        >>> model = timm.create_model("plainmamba_l1", pretrained=True)
        >>> adapter = ViTAdapter(model, drop_path_rate=0.1)
        >>> maps = adapter(model, torch.randn(1, 3, 200, 300))  # (1, 192, 50, 75) to (1, 192, 7, 10)
    """

    def __init__(
        self,
        model: Any,
        last_blocks: Sequence[int] | None = None,
        in_chans: int = 3,
        num_heads: int = 6,
        num_points: int = 4,
        prior_width: int = 64,
        mlp_ratio: float = 0.25,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        _check(model)
        depth, dim = len(model.blocks), model.num_features
        last_blocks = quarter_indices(depth) if last_blocks is None else tuple(last_blocks)
        if not last_blocks or list(last_blocks) != sorted({*last_blocks}) or not 0 <= last_blocks[-1] < depth:
            raise ValueError(f"ViTAdapter: last_blocks must rise within 0 to {depth - 1}, got {last_blocks}")
        self.last_blocks = last_blocks
        self.prior = SpatialPrior(in_chans, dim, prior_width, **dd)
        self.level_embed = nn.Parameter(torch.empty(3, dim, **dd))
        options = dict(num_heads=num_heads, num_points=num_points, mlp_ratio=mlp_ratio, drop_path=drop_path_rate, **dd)
        extra = [2 * (i == len(last_blocks) - 1) for i in range(len(last_blocks))]
        self.interactions = nn.ModuleList(Interaction(dim, number, **options) for number in extra)
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2, **dd)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim, **dd) for _ in ADAPTER_STRIDES)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Linear layers truncated-normal, convolutions by their outputs (He), the embedding of levels normal."""
        if self.level_embed.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                outputs = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / outputs) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.init_weights()
        nn.init.normal_(self.level_embed)

    def forward(self, model: Any, x: Tensor) -> list[Tensor]:
        """Run the net on images, with the exchange between its blocks.

        Images are filled with zeros at the bottom and the right to whole multiples of 32 pixels, and the maps cut
        again.

        Args:
            model: the net.
            x: images (B, in_chans, H, W) of any size.

        Returns:
            Maps (B, C, H / s, W / s), sizes rounded up, of the strides s = 4, 8, 16, 32.

        Raises:
            ValueError: the net prunes tokens.
        """
        if getattr(model, "pruning", None) is not None:
            raise ValueError("ViTAdapter needs all patches, and this net prunes some: call its set_pruning()")
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        finest, *maps = self.prior(x)
        sizes = [(y.shape[2], y.shape[3]) for y in maps]
        c = torch.cat([y.flatten(2).transpose(1, 2) + e for y, e in zip(maps, self.level_embed, strict=True)], dim=1)
        x, grid = _embed(model, x)
        places, pixels = raster_points([grid], x.device), raster_points(sizes, x.device)
        start = 0
        interaction: Any  # to a type checker, what stands in a list is any module
        for last, interaction in zip(self.last_blocks, self.interactions, strict=True):
            patches = interaction.injector(_patches(model, x), places, c, sizes)
            x = _run(model, model.blocks[start : last + 1], _with_patches(model, x, patches))
            patches = _patches(model, x)
            for extractor in interaction.extractors():
                c = extractor(c, pixels, sizes, patches, grid)
            start = last + 1
        maps = _as_maps(c, sizes)
        maps = [self.up(maps[0]) + finest, *maps]
        (patches,) = _as_maps(patches, [grid])
        outputs = []
        for y, norm, stride in zip(maps, self.norms, ADAPTER_STRIDES, strict=True):
            y = norm(y + F.interpolate(patches, y.shape[2:], mode="bilinear", align_corners=False))
            outputs.append(y[:, :, : -(-height // stride), : -(-width // stride)])
        return outputs


# ---- the net beside it


def _check(model: Any) -> None:
    """Refuse a net whose blocks this module cannot run."""
    if isinstance(model, PlainBackbone):
        if model.pruning is not None:
            raise ValueError("ViTAdapter needs all patches, and this net prunes some: call its set_pruning() first")
        return
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            "ViTAdapter takes a plain net, Vim, PlainMamba or a timm VisionTransformer, "
            f"and {type(model).__name__} is none"
        )
    if not model.dynamic_img_size:
        raise ValueError("ViTAdapter needs a VisionTransformer that was created with dynamic_img_size=True")
    if not isinstance(model.patch_drop, nn.Identity):
        raise ValueError(
            "ViTAdapter needs all patches, and this VisionTransformer drops some: leave out patch_drop_rate"
        )


def _embed(model: Any, x: Tensor) -> tuple[Tensor, Size]:
    """What the first block takes, and the grid of the patches."""
    if isinstance(model, PlainBackbone):
        x = model.stem(x)
        return model.tokens(x), (x.shape[1], x.shape[2])
    grid = model.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
    return model.norm_pre(model._pos_embed(model.patch_embed(x))), grid


def _patches(model: Any, x: Tensor) -> Tensor:
    """The patches (B, h * w, C) among what blocks give."""
    if isinstance(model, PlainBackbone):
        return model.tokens.split(x)[0].flatten(1, -2)
    return x[:, model.num_prefix_tokens :]


def _with_patches(model: Any, x: Tensor, patches: Tensor) -> Tensor:
    """What blocks take, with other patches (B, h * w, C) in it."""
    if isinstance(model, PlainBackbone):
        return model.tokens.join(patches, model.tokens.split(x)[1]).reshape(x.shape)
    return torch.cat([x[:, : model.num_prefix_tokens], patches], dim=1)


def _run(model: Any, blocks: nn.Sequential, x: Tensor) -> Tensor:
    return checkpoint_seq(blocks, x) if model.grad_checkpointing else blocks(x)


# ---- weights

# Official name -> ours, in order.
_RENAMES = (
    (r"^spm\.stem\.", "prior.stem."),
    (r"^spm\.conv(\d)\.", lambda m: f"prior.stages.{int(m[1]) - 2}."),
    (r"^spm\.fc(\d)\.", lambda m: f"prior.projections.{int(m[1]) - 1}."),
    (r"^ad_norm(\d)\.", lambda m: f"norms.{int(m[1]) - 1}."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)


def is_adapters(name: str) -> bool:
    """Whether a weight of an official backbone is its adapter's."""
    return name.startswith(("level_embed", "spm.", "interactions.", "up.", "ad_norm"))


def convert_adapter(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of an official backbone's adapter the names of a `ViTAdapter`; other weights are left out."""
    return rename({name: value for name, value in weights.items() if is_adapters(name)}, _RENAMES)
