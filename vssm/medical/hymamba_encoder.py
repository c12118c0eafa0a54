"""HyMamba's encoder: convolutions on the fine maps of a volume, Mamba on the coarsest one (arXiv 2408.08070).

Official code: https://github.com/FengheTan9/MambaMIM, Apache-2.0. Written from its description and state dicts, no code
was copied; maps and gradients are those of the official network.

Differences that the weights do not see: volumes of any size (the official network takes cubes of one size), for which
the table of positions is computed anew. Each block holds the parameters of a backward scan that official files have and
nobody uses; here they are frozen.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor

from ..checkpoint import check_fit, rename, reshape_like, unwrap_state_dict
from ..layers import ChannelNorm, ResidualUnit
from ..scans import SS1D

__all__ = ["DECODER_RENAMES", "ENCODER_RENAMES", "HyMambaEncoder", "grid_positions", "to_official", "unwrap_official"]

# Official name -> ours, in order. The official stages count from 2, and its skips and widenings from 1.
ENCODER_RENAMES = (
    (r"^embeddings\.stem\.", "stem."),
    (r"^embeddings\.layer(\d)\.", lambda match: f"stages.{int(match[1]) - 2}."),
    (r"^embeddings\.expend(\d)\.", lambda match: f"widen.{int(match[1]) - 1}."),
    (r"^embeddings\.encoder(\d)\.", lambda match: f"skips.{int(match[1]) - 1}."),
    (r"^mae\.pos_embed$", "positions"),
    (r"^mae\.blocks\.", "blocks."),
    (r"\.mamba\.(A_b_log|D_b)$", r".unused.\1"),
    (r"\.mamba\.(conv1d_b|x_proj_b|dt_proj_b)\.(weight|bias)$", r".unused.\1_\2"),
    (r"\.mamba\.A_log$", ".mixer.A_logs"),
    (r"\.mamba\.D$", ".mixer.Ds"),
    (r"\.mamba\.conv1d\.", ".mixer.conv."),
    (r"\.mamba\.x_proj\.weight$", ".mixer.x_proj_weight"),
    (r"\.mamba\.dt_proj\.", ".mixer.dt_projs_"),
    (r"\.mamba\.", ".mixer."),
)
DECODER_RENAMES = (
    (r"^decoder\.out\.conv\.", "head."),
    (r"^decoder\.decoder1\.", "decoder.last."),
    (r"^decoder\.decoder(\d)\.", lambda match: f"decoder.stages.{5 - int(match[1])}."),
)
# Ours -> official, in order.
_OFFICIAL = (
    (r"^stem\.", "embeddings.stem."),
    (r"^stages\.(\d)\.", lambda match: f"embeddings.layer{int(match[1]) + 2}."),
    (r"^widen\.(\d)\.", lambda match: f"embeddings.expend{int(match[1]) + 1}."),
    (r"^skips\.(\d)\.", lambda match: f"embeddings.encoder{int(match[1]) + 1}."),
    (r"^positions$", "mae.pos_embed"),
    (r"^blocks\.", "mae.blocks."),
    (r"\.unused\.(A_b_log|D_b)$", r".mamba.\1"),
    (r"\.unused\.(conv1d_b|x_proj_b|dt_proj_b)_(weight|bias)$", r".mamba.\1.\2"),
    (r"\.mixer\.A_logs$", ".mamba.A_log"),
    (r"\.mixer\.Ds$", ".mamba.D"),
    (r"\.mixer\.conv\.", ".mamba.conv1d."),
    (r"\.mixer\.x_proj_weight$", ".mamba.x_proj.weight"),
    (r"\.mixer\.dt_projs_", ".mamba.dt_proj."),
    (r"\.mixer\.", ".mamba."),
)
# Stacked over directions here, of which there is one.
_STACKED = re.compile(r"\.mamba\.(x_proj\.weight|dt_proj\.(weight|bias))$")


def unwrap_official(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the weights of a checkpoint; the official pre-training has them under "module", its settings beside them."""
    inner = state_dict.get("module")
    return unwrap_state_dict(inner if isinstance(inner, Mapping) else state_dict)


def to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give an encoder's weights the names and shapes of the official files."""
    return {k: v[0] if _STACKED.search(k) else v for k, v in rename(dict(weights), _OFFICIAL).items()}


def grid_positions(grid: Sequence[int], dim: int) -> Tensor:
    """Sines and cosines of the places of a grid in raster order: (1, D H W, dim).

    Raises:
        ValueError: `dim` is no multiple of six.
    """
    if dim % 6:
        raise ValueError(f"the width of the coarsest map must be a multiple of 6 for its positions, got {dim}")
    omega = 10000.0 ** (-torch.arange(dim // 6, dtype=torch.float64) / (dim / 6))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()[None]


class MedNeXtBlock(nn.Module):
    """A depth-wise convolution, LayerNorm and an MLP of 1 x 1 x 1 convolutions: (B, C, D, H, W) to the same shape."""

    def __init__(self, dim: int, expand: int):
        super().__init__()
        self.conv1 = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm = ChannelNorm(dim)
        self.conv2 = nn.Conv3d(dim, dim * expand, 1)
        self.conv3 = nn.Conv3d(dim * expand, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(F.gelu(self.conv2(self.norm(self.conv1(x)))))


class MambaBlock(nn.Module):
    """Mamba and an MLP, each behind a LayerNorm: tokens (B, L, C) to the same shape.

    Attributes:
        unused: Parameters of a backward scan, frozen; see the module's text.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = SS1D(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 2 * dim)
        mixer = self.mixer
        self.unused = nn.ParameterDict(
            {
                "A_b_log": mixer.A_logs.detach().clone(),
                "D_b": mixer.Ds.detach().clone(),
                "conv1d_b_weight": mixer.conv.weight.detach().clone(),
                "conv1d_b_bias": mixer.conv.bias.detach().clone(),
                "x_proj_b_weight": mixer.x_proj_weight[0].detach().clone(),
                "dt_proj_b_weight": mixer.dt_projs_weight[0].detach().clone(),
                "dt_proj_b_bias": mixer.dt_projs_bias[0].detach().clone(),
            }
        ).requires_grad_(False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Xavier-uniform matrices and biases of 0, those of the step size too, as the official code starts them."""
        mixer = self.mixer
        for layer in (mixer.in_proj, mixer.out_proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for matrix in (mixer.x_proj_weight[0], mixer.dt_projs_weight[0]):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(mixer.dt_projs_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class HyMambaEncoder(nn.Module):
    """Volumes (B, in_chans, D, H, W) to five maps (B, C, D', H', W') of strides 1 to 16.

    Args:
        in_chans: channels of the volume.
        dims: width of the stem and of the four maps after it; the fifth map is as wide as the fourth.
        depths: blocks of convolutions on the maps of strides 2, 4, 8 and 16.
        expand: hidden width of their MLPs as multiples of the width.
        mamba_depth: blocks of Mamba on the coarsest map.
        img_size: size (D, H, W) of the volumes whose table of positions is part of the weights; one number for a cube.

    Attributes:
        channels: width of each map.
        reductions: stride (D, H, W) of each map against the volume.

    Raises:
        ValueError: not five widths, four depths and four expansions, or a last width that is no multiple of six.
    """

    spatial_dims = 3

    def __init__(
        self,
        in_chans: int = 1,
        dims: Sequence[int] = (32, 64, 128, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 1),
        expand: Sequence[int] = (2, 4, 4, 4),
        mamba_depth: int = 4,
        img_size: int | Sequence[int] = 96,
    ):
        super().__init__()
        if (len(dims), len(depths), len(expand)) != (5, 4, 4):
            raise ValueError(
                f"HyMamba has five dims, four depths and four expand, got {len(dims)}, {len(depths)} and {len(expand)}"
            )
        self.stem = nn.Conv3d(in_chans, dims[0], 3, padding=1)
        self.widen = nn.ModuleList(nn.Conv3d(a, b, 3, padding=1) for a, b in zip(dims, dims[1:], strict=False))
        self.pool = nn.MaxPool3d(2)
        self.stages = nn.ModuleList(
            nn.Sequential(*(MedNeXtBlock(dim, ratio) for _ in range(depth)))
            for dim, depth, ratio in zip(dims[1:], depths, expand, strict=True)
        )
        self.skips = nn.ModuleList(ResidualUnit(dim, dim) for dim in dims[1:])
        sides = (img_size,) * 3 if isinstance(img_size, int) else tuple(img_size)
        self.grid = tuple(side // 16 for side in sides)
        self.positions = nn.Parameter(grid_positions(self.grid, dims[-1]), requires_grad=False)
        self.blocks = nn.ModuleList(MambaBlock(dims[-1]) for _ in range(mamba_depth))
        self.channels = [*dims[1:], dims[-1]]
        self.reductions = [(step,) * 3 for step in (1, 2, 4, 8, 16)]

    def convert_weights(self, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
        """Official files of the encoder, of whole networks or of pre-training, or ours, to our names and shapes.

        Raises:
            CheckpointError: a parameter is missing, or a key is no encoder's.
        """
        weights = unwrap_official(state_dict)
        for prefix in ("sparse_encoder.", "encoder."):
            inner = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
            weights = inner or weights
        weights = rename(
            {k: v for k, v in weights.items() if k != "mae.mask_token" and not k.startswith("decoder.")},
            ENCODER_RENAMES,
        )
        own = self.state_dict()
        if weights.get("positions", own["positions"]).shape != own["positions"].shape:
            weights["positions"] = own["positions"]  # a formula, of another size of volumes
        reshape_like(weights, own)
        check_fit(weights, self)
        return weights

    def mix(self, x: Tensor, visible: Tensor | None = None, keep: int | None = None) -> Tensor:
        """Run Mamba over the coarsest map in raster order.

        Args:
            x: (B, C, D, H, W).
            visible: of masked pre-training, which places are seen, (B, 1, D, H, W), bool; the others are left out of
                the sequence, and are 0 in the result. None: all.
            keep: how many tokens of each sample stay in the sequence; None: as many as the fullest sample has. Masked
                ones stand behind all that are seen, where a causal scan does not see them.

        Returns:
            (B, C, D, H, W).
        """
        grid, dim = x.shape[2:], x.shape[1]
        tokens = x.flatten(2).transpose(1, 2)
        table = self.positions if tuple(grid) == self.grid else grid_positions(grid, dim)
        tokens = tokens + table.to(tokens)
        if visible is None:
            for block in self.blocks:
                tokens = block(tokens)
            return tokens.transpose(1, 2).unflatten(2, grid)
        seen = visible.flatten(1)
        tokens = tokens * seen[..., None]
        order = seen.byte().argsort(dim=1, descending=True, stable=True)
        order = order[:, : keep or int(seen.sum(1).max())]
        places = order[..., None].expand(-1, -1, dim)
        short = tokens.gather(1, places)
        for block in self.blocks:
            short = block(short)
        short = short * seen.gather(1, order)[..., None]
        return torch.zeros_like(tokens, dtype=short.dtype).scatter(1, places, short).transpose(1, 2).unflatten(2, grid)

    def forward(self, x: Tensor, visible: Tensor | None = None, keep: int | None = None) -> list[Tensor]:
        """(B, in_chans, D, H, W), with sides that are multiples of 16, to the five maps; see `mix`."""
        x = self.widen[0](self.stem(x))
        maps = [x]
        for stage, widen in zip(self.stages, [*self.widen[1:], None], strict=True):
            x = stage(self.pool(x))
            x = x if widen is None else widen(x)
            maps.append(x)
        return [*(skip(y) for skip, y in zip(self.skips, maps, strict=False)), self.mix(x, visible, keep)]
