"""The dual selective projector of Mamba-FSCIL (arXiv 2407.06136): from a feature map to one vector, by state spaces.

Letters: B batch, Ci channels of the map, C of the vector, S side of the map, L = S S tokens, K sequences of a scan,
N states, R rank of the step size.
"""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor

from .._errors import UserError
from ..scans import SS1D, SS2D
from ..scans.routes import Route

__all__ = ["DualProjector", "Projection", "Selection", "convert_projector"]

# Rows, columns, each followed by its reverse: not VMamba's order, and the parameters of the routes are stored in it.
ROUTES = (Route(), Route(reverse=True), Route(transpose=True), Route(transpose=True, reverse=True))


class Selection(NamedTuple):
    """What a scan has chosen for each token, in raster order.

    Attributes:
        dt: The step size at its low rank, (B, L, K, R).
        B: The way into the state, (B, L, K, N).
        C: The way out of the state, (B, L, K, N).
    """

    dt: Tensor
    B: Tensor
    C: Tensor


class Projection(NamedTuple):
    """What the projector makes of maps.

    Attributes:
        features: The vectors (B, C).
        gate: The gate of the branch that learns, before its activation; tokens (B, L, C).
        selection: Of the first branch.
        new_selection: Of the second branch, or None where there is none.
        residual: The vectors without the second branch's share, (B, C).
    """

    features: Tensor
    gate: Tensor
    selection: Selection
    new_selection: Selection | None
    residual: Tensor


class SequenceMixer(SS1D):
    """One causal mixer for four passes: along the rows and the columns, each forwards and backwards.

    (B, S, S, C) to (B, S, S, C). The passes share all parameters and their results are added.

    Args:
        dim: Channels C.
        d_state: States N.
        dt_rank: Rank R.
    """

    def __init__(self, dim: int, d_state: int, dt_rank: int):
        super().__init__(dim, d_state=d_state, ssm_ratio=1.0, dt_rank=dt_rank, out_proj=False)

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Selection]:
        """Give the result, the sum of the passes' gates (B, L, C), and the selection of the pass along the rows."""
        rows, columns = x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)
        passes = torch.cat([rows, rows.flip(1), columns, columns.flip(1)])
        tokens, z = self.in_proj(passes).chunk(2, dim=-1)
        u = self.convolve(tokens)
        dt, B, C = self.project(u)
        y = self.scan(u, dt, B, C, self.route_code).squeeze(1).to(z.dtype) * F.silu(z)
        selection = Selection(*(part[: len(x)].flatten(1, 2) for part in (dt, B, C)))
        return self.add_up(y, x), self.add_up(z, x).flatten(1, 2), selection

    @staticmethod
    def add_up(passes: Tensor, x: Tensor) -> Tensor:
        """Add what belongs to the tokens of four passes over the map `x`: (4 B, L, C) to (B, S, S, C)."""
        rows, rows_back, columns, columns_back = passes.chunk(4)
        size = x.shape[1:3]
        along_rows = (rows + rows_back.flip(1)).unflatten(1, size)
        return along_rows + (columns + columns_back.flip(1)).unflatten(1, size).transpose(1, 2)


class MapMixer(SS2D):
    """The gated `SS2D` of the projector: four routes with parameters of their own. (B, S, S, C) to (B, S, S, C).

    Args:
        dim: Channels C.
        d_state: States N.
        dt_rank: Rank R.
    """

    def __init__(self, dim: int, d_state: int, dt_rank: int):
        super().__init__(
            dim,
            d_state=d_state,
            ssm_ratio=1.0,
            dt_rank=dt_rank,
            conv_bias=True,
            gate=True,
            routes=ROUTES,
            out_proj=False,
        )

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Selection]:
        """Give the result, its gate (B, L, C), and the selection of the four routes."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = self.convolve(x)
        dt, B, C = self.project(u)
        y = self.out_norm(self.scan(u, dt, B, C, self.route_code, out_dtype=self.Ds.dtype)).to(z.dtype)
        return y * self.act(z), z.flatten(1, 2), Selection(*(part.flatten(1, 2) for part in (dt, B, C)))


MIXERS = {"sequence": SequenceMixer, "map": MapMixer}


class Branch(nn.Module):
    """Point-wise layers, positions, a mixer, and the mean over the tokens.

    Args:
        in_channels: Ci.
        out_channels: C.
        size: Side S of the map.
        mixer: A key of `MIXERS`.
        layers: Point-wise layers, 2 or more.
        d_state: N.
        dt_rank: R.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: int, mixer: str, layers: int, d_state: int, dt_rank: int
    ):
        super().__init__()
        hidden, width, steps = 2 * in_channels, in_channels, []
        for _ in range(layers - 1):
            # The norm is over the whole map, which ties the projector to its size.
            steps += [nn.Conv2d(width, hidden, 1), nn.LayerNorm([hidden, size, size]), nn.LeakyReLU(0.1)]
            width = hidden
        self.mlp = nn.Sequential(*steps, nn.Conv2d(width, out_channels, 1, bias=False))
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, size * size, out_channels), std=0.02))
        self.mixer = MIXERS[mixer](out_channels, d_state, dt_rank)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Selection]:
        """Give the vectors (B, C) of maps (B, Ci, S, S), the gate and the selection."""
        x = self.mlp(x).permute(0, 2, 3, 1)
        y, gate, selection = self.mixer.select(x + self.pos_embed.view(1, *x.shape[1:]))
        return y.mean((1, 2)), gate, selection


class DualProjector(nn.Module):
    """Project maps to vectors: one branch for the classes of the start, a second one for those that come later.

    `add_branch` adds the second one, whose gate starts at zero: at first it changes nothing.

    Args:
        in_channels: Channels Ci of the map.
        out_channels: Channels C of the vector.
        size: Side S of the map that the parameters are for; other maps are pooled to it.
        mixer: "sequence", a causal mixer with shared parameters run along four passes; or "map", a gated `SS2D`.
        d_state: States N.
        dt_rank: Rank R.
        residual_proj: Project the mean of the map before it is added to the vector; needed where Ci is not C.
        layers: Point-wise layers of the first branch.
        detach: Keep gradients out of the first branch once there is a second.

    Raises:
        UserError: The mixer is unknown, a number is too small, or the widths differ and nothing projects.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        mixer: str = "map",
        d_state: int = 256,
        dt_rank: int = 256,
        residual_proj: bool = True,
        layers: int = 2,
        detach: bool = True,
    ):
        super().__init__()
        if mixer not in MIXERS:
            raise UserError(f"The projector has the mixers {', '.join(MIXERS)}, not '{mixer}'.")
        numbers = dict(out_channels=out_channels, size=size, d_state=d_state, dt_rank=dt_rank)
        for name, number in numbers.items():
            if number < 1:
                raise UserError(f"The projector's {name} is 1 or more, not {number}.")
        if not residual_proj and in_channels != out_channels:
            raise UserError(
                f"The projector adds the mean of a map of {in_channels} channels to a vector of {out_channels}: "
                "say residual_proj=True."
            )
        self.size = size
        self.detach = detach
        self.options = dict(**numbers, in_channels=in_channels, mixer=mixer)
        self.base = self._branch(layers)
        self.residual_proj = nn.Linear(in_channels, out_channels, bias=False) if residual_proj else nn.Identity()
        self.new: Branch | None = None

    def _branch(self, layers: int) -> Branch:
        if layers < 2:
            raise UserError(f"A branch of the projector has 2 point-wise layers or more, not {layers}.")
        return Branch(**self.options, layers=layers)

    @torch.no_grad()
    def add_branch(self, layers: int = 2) -> None:
        """Add the second branch, with random parameters but for its gate, which is zero, so that it adds nothing yet.

        Args:
            layers: Its point-wise layers.

        Raises:
            UserError: There is one already, or it has too few layers.
        """
        if self.new is not None:
            raise UserError("The projector has its second branch already.")
        self.new = self._branch(layers).to(self.base.pos_embed)
        gate = self.new.mixer.in_proj.weight
        gate[len(gate) // 2 :].zero_()

    def forward(self, x: Tensor) -> Projection:
        """Project maps (B, Ci, H, W)."""
        if x.shape[-2:] != (self.size, self.size):
            x = F.adaptive_avg_pool2d(x, self.size)
        y, gate, selection = self.base(x)
        residual = y + self.residual_proj(x.mean((2, 3)))
        if self.new is None:
            return Projection(residual, gate, selection, None, residual)
        if self.detach:
            # The selection keeps its gradient: the separation loss of the first branch is over it.
            residual = residual.detach()
        new, gate, new_selection = self.new(x.detach())
        return Projection(residual + new, gate, selection, new_selection, residual)


def convert_projector(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the weights of the official neck, with or without the second branch.

    Args:
        weights: Of the official names, from `pos_embed` on.

    Returns:
        A state dict of `DualProjector`.
    """
    names = {
        "block.conv1d.": "mixer.conv.",
        "block.conv2d.": "mixer.conv.",
        "block.x_proj_weight": "mixer.x_proj.weight",  # of four routes
        "block.x_proj.weight": "mixer.x_proj_weight",  # of one sequence
        "block.dt_proj.": "mixer.dt_projs_",
        "block.A_logs": "mixer.A_logs",
        "block.A_log": "mixer.A_logs",
        "block.Ds": "mixer.Ds",
        "block.D": "mixer.Ds",
        "block.": "mixer.",
        "mlp_proj.": "mlp.",
    }
    converted = {}
    for key, value in weights.items():
        if key.startswith("residual_proj."):
            converted["residual_proj.weight"] = value
            continue
        part, dot, rest = key.partition(".")
        branch = "new" if part.endswith("_new") else "base"
        name = part.removesuffix("_new") + dot + rest
        start = next((start for start in names if name.startswith(start)), "")
        if start == "block.x_proj_weight":
            value = value.flatten(0, 1)
        elif start in ("block.x_proj.weight", "block.dt_proj."):
            value = value.unsqueeze(0)
        converted[f"{branch}.{names.get(start, '')}{name.removeprefix(start)}"] = value
    return converted
