"""The form of plain (columnar) nets: blocks of one width over the tokens of one grid, counted by their index."""

import math
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import to_2tuple, trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor

from ..layers import POOLS, check_pool, pool_tokens, pooled_width
from ._backbone import Backbone
from ._pruning import PrunedWalk, TokenPruning

__all__ = ["PlainBackbone", "TokenEmbedding", "quarter_indices", "resize_positions", "resized_positions", "token_index"]


def quarter_indices(depth: int) -> Tuple[int, ...]:
    """The last block of each quarter, which is where decoders take maps from."""
    return tuple(sorted({max(depth * i // 4 - 1, 0) for i in range(1, 5)}))


@torch.fx.wrap
def token_index(position: str, patches: int) -> int:
    """Where among as many patches a class token stands: "first", "middle" (behind the first half) or "last"."""
    if position == "first":
        return 0
    return patches // 2 if position == "middle" else patches


@torch.fx.wrap
def resize_positions(table: Tensor, grid: List[int], new_grid: List[int], position: str = "") -> Tensor:
    """Position embeddings for another grid: bicubic, without antialiasing; those of the same grid as they are.

    Args:
        table: (1, L, C), L = rows * columns of `grid` in raster order, and one more with a class token.
        grid: (rows, columns) of the table.
        new_grid: (rows, columns) wanted.
        position: of the class token, see `token_index`; its entry keeps its values. "" for no token.

    Returns:
        (1, L', C).
    """
    if grid[0] == new_grid[0] and grid[1] == new_grid[1]:
        return table
    patches, token = table, table[:, :0]
    if position != "":
        i = token_index(position, grid[0] * grid[1])
        patches, token = torch.cat([table[:, :i], table[:, i + 1 :]], dim=1), table[:, i : i + 1]
    on_grid = patches.float().reshape(1, grid[0], grid[1], -1).permute(0, 3, 1, 2)
    on_grid = F.interpolate(on_grid, size=[new_grid[0], new_grid[1]], mode="bicubic", align_corners=False)
    patches = on_grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    if position == "":
        return patches
    i = token_index(position, new_grid[0] * new_grid[1])
    return torch.cat([patches[:, :i], token, patches[:, i:]], dim=1)


class TokenEmbedding(nn.Module):
    """Adds position embeddings to patches, and a class token among them if there is one.

    A map (B, h, w, C) to the same, or with a class token to a sequence (B, h * w + 1, C) in raster order.

    Args:
        dim: width.
        grid: rows and columns of the stored embeddings; those of other grids are resized from them at run time.
        class_token: where the token stands, see `token_index`; "" for none. Its embedding stands in the same place.
    """

    def __init__(self, dim: int, grid: Tuple[int, int], class_token: str = "", device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if class_token not in ("", "first", "middle", "last"):
            raise ValueError(f"class_token must be first, middle, last or '', got {class_token!r}")
        self.grid = [grid[0], grid[1]]
        self.position = class_token
        tokens = grid[0] * grid[1] + (1 if class_token else 0)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim, **dd))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **dd)) if class_token else None
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated-normal, both."""
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    @torch.no_grad()
    def set_grid(self, grid: Tuple[int, int]) -> None:
        """Store the embeddings for another grid, resized from what they are now."""
        table = resize_positions(self.pos_embed, self.grid, [grid[0], grid[1]], self.position)
        self.pos_embed = nn.Parameter(table.clone(), requires_grad=self.pos_embed.requires_grad)
        self.grid = [grid[0], grid[1]]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        positions = resize_positions(self.pos_embed, self.grid, [height, width], self.position)
        if self.cls_token is None:
            return x + positions.reshape(1, height, width, -1)
        x = x.flatten(1, 2)
        i = token_index(self.position, height * width)
        return torch.cat([x[:, :i], self.cls_token.expand(x.shape[0], -1, -1), x[:, i:]], dim=1) + positions

    def split(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """The patches, a map or a sequence (B, h * w, C), and the class token (B, C), or None."""
        if self.cls_token is None:
            return x, None
        i = token_index(self.position, x.shape[1] - 1)
        return torch.cat([x[:, :i], x[:, i + 1 :]], dim=1), self.class_token(x)

    def index(self, patches: int) -> int:
        """Where the class token stands among as many patches."""
        return token_index(self.position, patches)

    def join(self, patches: Tensor, token: Optional[Tensor]) -> Tensor:
        """Undo `split`: a sequence (B, h * w, C) and the class token to (B, h * w + 1, C); without one as it is."""
        if token is None:
            return patches
        i = token_index(self.position, patches.shape[1])
        return torch.cat([patches[:, :i], token.unsqueeze(1), patches[:, i:]], dim=1)

    def class_token(self, x: Tensor) -> Tensor:
        """The class token (B, C) of (B, h * w + 1, C)."""
        i = token_index(self.position, x.shape[1] - 1)
        return x[:, i : i + 1].squeeze(1)  # a compiler would take `x[:, i]` for a demand that i is what it is now


def resized_positions(weights: Dict[str, Tensor], model: Any) -> Dict[str, Tensor]:
    """Weights in our names, their position embeddings resized to the model's grid where they are those of a square.

    Without a class token in the model, one in the weights and its position embedding are left out. For a family's
    `checkpoint_filter_fn`; what is of no square grid stays, and does not fit.
    """
    name, tokens = "tokens.pos_embed", model.tokens
    table = weights.get(name)
    if table is None or table.dim() != 3:
        return weights
    weights, with_token = dict(weights), "tokens.cls_token" in weights
    grid = math.isqrt(table.shape[1] - with_token)
    if tokens.cls_token is None and with_token:
        i = token_index("middle", table.shape[1] - 1)
        del weights["tokens.cls_token"]
        weights[name] = table = torch.cat([table[:, :i], table[:, i + 1 :]], dim=1)
    patches = table.shape[1] - (tokens.cls_token is not None)
    if patches != tokens.grid[0] * tokens.grid[1] and patches == grid * grid:
        weights[name] = resize_positions(table, [grid, grid], tokens.grid, tokens.position)
    return weights


class PlainBackbone(Backbone):
    """A backbone whose blocks all see one grid in one width.

    Its class sets `stem`, images (B, in_chans, H, W) to a map (B, h, w, C), with `img_size`, the only size it takes or
    None, and `grid_size`, from the size of an image to (h, w); `tokens`, a `TokenEmbedding`; `blocks`, a Sequential
    over what that gives; `norm`; `head`, a linear layer; and `feature_info`, see `block_info`. Features are taken by
    the index of a block, without the class token.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: what the classifier looks at: "token", the class token; a pooling of the patches, see
            `vssm.layers.pool_tokens`; "" for all tokens.
        drop_rate: dropout before the classifier.
    """

    if TYPE_CHECKING:
        stem: Any
        tokens: TokenEmbedding
        blocks: nn.Sequential
        norm: nn.Module

    # TorchScript reads the types of attributes from the nearest class that has any; it cannot take all of `Backbone`'s.
    global_pool: str

    def __init__(self, in_chans: int, num_classes: int, drop_rate: float, global_pool: str = "avg"):
        super().__init__(in_chans, num_classes, drop_rate)
        self.grad_checkpointing = False
        self.global_pool = global_pool
        self.pruning: Optional[TokenPruning] = None
        self.num_prefix_tokens = 0  # those that `forward_intermediates` gives beside its maps, wherever they stand

    @staticmethod
    def block_info(dim: int, depth: int, reduction: int) -> List[Dict[str, Any]]:
        """timm's `feature_info`, an entry for each block."""
        return [dict(num_chs=dim, reduction=reduction, module=f"blocks.{i}") for i in range(depth)]

    def tapped(self, before: Tensor, after: Tensor, index: int) -> Tensor:
        """What a decoder is given of a block: what the block was given and what it gave, its index."""
        return after

    def forward_blocks(self, x: Tensor) -> Tensor:
        """All blocks. The shape stays; of a net that prunes tokens, those that are left come back, (B, L, C)."""
        if not torch.jit.is_scripting() and self.pruning is not None:
            walk = PrunedWalk(self.pruning, self.tokens, x, self.grad_checkpointing)
            for i, block in enumerate(self.blocks):
                walk.step(i, block)
            return walk.x.flatten(1, -2)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    @torch.jit.ignore
    def set_pruning(
        self, sites: Sequence[int] = (), keep: float = 1.0, decay: bool = False, as_released: bool = False
    ) -> None:
        """Prune tokens behind some blocks (ToP-ViM, arXiv 2409.18962); no arguments: prune none.

        The weights are the same with and without. `forward_features` then gives the tokens that are left, (B, L, C).
        `forward_intermediates` gives whole maps: a pruned place holds the value that it had when it was pruned.

        Args:
            sites: indices of the blocks behind which tokens are pruned, increasing.
            keep: the share of the patches that each site keeps, rounded up, and with a class token in the middle down
                to an even number. 1 prunes nothing.
            decay: let states decay over the gaps as they would over tokens of zeros; False: they are carried.
            as_released: choose as the released code does, with its mistakes; see `TokenPruning`.

        Raises:
            ValueError: sites that the net does not have, a share that is none, or mixers that cannot do it.
        """
        pruning = TokenPruning(tuple(sites), keep, decay, as_released)
        pruning.check(len(self.blocks), self.tokens.position)
        if not all(hasattr(getattr(block, "mixer", None), "keep_tokens") for block in self.blocks):
            raise ValueError(f"{type(self).__name__} cannot prune tokens: its blocks have no mixer with `keep_tokens`")
        self.pruning = pruning if pruning.sites and keep < 1 else None
        self.output_fmt = "NHWC" if self.pruning is None and self.tokens.cls_token is None else "NLC"

    @torch.jit.ignore
    def kept_patches(self, x: Tensor) -> List[Tensor]:
        """Which patches of images (B, in_chans, H, W) are left behind each site: (B, h, w), bool."""
        if self.pruning is None:
            return []
        x = self.stem(x)
        walk, found = PrunedWalk(self.pruning, self.tokens, self.tokens(x)), []
        for i, block in enumerate(self.blocks):
            walk.step(i, block)
            if i in self.pruning.sites:
                found.append(walk.kept_patches().unflatten(1, x.shape[1:3]))
        return found

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` asks for before it compiles the net."""
        if self.pruning is not None:
            raise ValueError("a net that prunes tokens cannot be scripted; trace or export it, or call set_pruning()")
        return self

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        """The state-space parameters, position embeddings and class token."""
        spared = {*self.state_space_parameters, "pos_embed", "cls_token"}
        return {n for n, _ in self.named_parameters() if n.rsplit(".", 1)[-1] in spared}

    def pool(self, x: Tensor) -> Tensor:
        """Tokens or a map to what the classifier looks at, (B, C); as they are where `global_pool` is ""."""
        if self.global_pool == "":
            return x
        if self.global_pool == "token":
            return self.tokens.class_token(x)
        patches, _ = self.tokens.split(x)
        return pool_tokens(patches.flatten(1, -2), self.global_pool)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Another classifier, or with 0 classes none.

        Raises:
            ValueError: an unknown pooling, or the class token of a net without one.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self.checked_pool(global_pool)
        like = next(self.parameters())
        self.head = self.make_head(device=like.device, dtype=like.dtype)

    def checked_pool(self, global_pool: str) -> str:
        """The pooling, if this net has it."""
        check_pool(global_pool, known=POOLS if self.tokens.cls_token is None else ("token", *POOLS))
        return global_pool

    def make_head(self, device=None, dtype=None) -> nn.Module:
        """A classifier of as many classes as the net has."""
        if self.num_classes <= 0:
            return nn.Identity()
        width = pooled_width(self.num_features, self.global_pool)
        return nn.Linear(width, self.num_classes, device=device, dtype=dtype)

    @torch.jit.ignore
    def set_input_size(self, img_size: Union[int, Tuple[int, int]]) -> None:
        """Store the position embeddings for images of another size, resized; they need not be resized at run time then.

        Args:
            img_size: height and width.
        """
        size = to_2tuple(img_size)
        self.tokens.set_grid(self.stem.grid_size(*size))
        if self.stem.img_size is not None:
            self.stem.img_size = size

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return dict(stem=r"^stem|^tokens", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Maps behind blocks, with or without the final features.

        Args:
            x: images (B, in_chans, H, W).
            indices: the last n blocks if an int, all if None, else those listed.
            norm: apply the final norm to every map.
            stop_early: skip the blocks after the last one wanted.
            output_fmt: "NCHW" or "NHWC" for the intermediates.
            intermediates_only: return only the intermediates.
            return_prefix_tokens: give (map, class token (B, 1, C)) in place of each map; not in TorchScript.

        Returns:
            The maps (B, C, h, w) or (B, h, w, C); or the normalised result of the last block that ran, and the maps.

        Raises:
            ValueError: another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt}")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        x = self.stem(x)
        height, width = x.shape[1], x.shape[2]
        x = self.tokens(x)
        intermediates: List[Tensor] = []
        class_tokens: List[Tensor] = []
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice a Sequential
            blocks = self.blocks
        else:
            blocks = self.blocks[: max_index + 1]
        if not torch.jit.is_scripting() and self.pruning is not None:
            walk = PrunedWalk(self.pruning, self.tokens, x, self.grad_checkpointing)
        for i, block in enumerate(blocks):
            before = x
            if not torch.jit.is_scripting() and self.pruning is not None:
                walk.step(i, block)
                x = walk.x
                whole = walk.whole() if i in take_indices else x
            elif self.grad_checkpointing and not torch.jit.is_scripting():
                x = whole = checkpoint_seq([block], x)
            else:
                x = whole = block(x)
            if i in take_indices:
                patches, token = self.tokens.split(self.norm(whole) if norm else self.tapped(before, whole, i))
                if token is not None:
                    class_tokens.append(token.unsqueeze(1))
                y = patches.reshape(patches.shape[0], height, width, patches.shape[-1])
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if not torch.jit.is_scripting() and return_prefix_tokens and class_tokens:
            pairs: Any = list(zip(intermediates, class_tokens, strict=True))
            intermediates = pairs
        if intermediates_only:
            return intermediates
        if not torch.jit.is_scripting() and self.pruning is not None:
            x = x.flatten(1, -2)
        return self.norm(x), intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop the blocks after the last one wanted; the norm and the head if asked to."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        parts = [f"blocks.{i}" for i in range(max_index + 1, len(self.blocks))]
        parts += ["norm"] if prune_norm else []
        parts += self.classifier_parts if prune_head else []
        self.pruned_parts = tuple(parts)
        self.blocks = self.blocks[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices
