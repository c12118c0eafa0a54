"""Token pruning of plain nets (ToP-ViM, arXiv 2409.18962): behind some blocks, those that matter least go.

How much a token matters is told by the scan of the block before (`vssm.scans.token_importance`); later blocks see a
shorter sequence, so they are faster. All samples of a batch keep as many tokens.

The released code is not the method of the paper; of its mistakes none is copied, and `TokenPruning.as_released` makes
them all, to compare with it.
"""

import math
from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

import torch
from timm.models import checkpoint
from torch import Tensor

from ..scans import KeptTokens, gather_tokens, select_tokens, token_importance

__all__ = ["PrunedWalk", "TokenPruning"]


@torch.fx.wrap
def _patches_to_keep(patches: int, keep: float, even: bool) -> int:
    """How many patches stay: the share, rounded up; with a class token in the middle of them rounded to an even number.

    That is the released rule, which makes the number of tokens odd.
    """
    count = math.ceil(patches * keep)
    return count // 2 * 2 if even else count


@dataclass(frozen=True)
class TokenPruning:
    """Where a plain net prunes tokens, and how.

    Attributes:
        sites: indices of the blocks behind which tokens are pruned, increasing.
        keep: the share of the patches that each site keeps, in (0, 1].
        decay: let states decay over the gaps as they would over tokens of zeros; False: they are carried over them.
        as_released: score as the released code does, to compare with it: the score of a token is that of its mirror
            image, nothing is clipped, and the class token is protected in the first sample of a batch only.
    """

    sites: Tuple[int, ...]
    keep: float
    decay: bool = False
    as_released: bool = False

    def check(self, depth: int, class_token: str) -> None:
        """Raise a ValueError if a net of as many blocks, with its class token there, cannot be pruned like this."""
        sites = list(self.sites)
        if sites != sorted(set(sites)) or not all(0 <= site < depth for site in sites):
            raise ValueError(f"pruning sites must be increasing indices of blocks below {depth}, got {sites}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"the share of patches to keep must be above 0 and at most 1, got {self.keep}")
        if self.as_released and (class_token != "middle" or self.decay):
            raise ValueError("as_released is for nets with a class token in the middle, and goes without decay")


class PrunedWalk:
    """The way of the tokens of a batch through the blocks of a net, fewer behind every site.

    A block is called as block(x, kept, outputs), and has a `mixer` with `keep_tokens`; see `vssm.scans.SS1D`.

    Args:
        pruning: what to do.
        tokens: the net's `TokenEmbedding`.
        x: its result: a map (B, H, W, C), or a sequence (B, L, C) with a class token.
        checkpointed: recompute the blocks in the backward pass.

    Attributes:
        x: the tokens that are left, (B, L, C), behind the last step; a map as long as all of them are there.
        places: their numbers in the sequence that came, (B, L), or None as long as all of them are there. Patches come
            in raster order, the class token where it stood.
    """

    def __init__(self, pruning: TokenPruning, tokens: Any, x: Tensor, checkpointed: bool = False):
        self.pruning, self.tokens, self.checkpointed = pruning, tokens, checkpointed
        self.grid = (x.shape[1], x.shape[2]) if x.dim() == 4 else (1, x.shape[1] - 1)
        self.x = x
        self.places: Optional[Tensor] = None
        self.kept: Optional[KeptTokens] = None
        self._whole: Optional[Tensor] = None

    def step(self, index: int, block: Any) -> None:
        """Go through a block, and prune behind it if it is a site."""
        outputs: Optional[List[Tensor]] = [] if index in self.pruning.sites else None
        if self.checkpointed:
            self.x = checkpoint(block, self.x, self.kept, outputs, use_reentrant=False)
        else:
            self.x = block(self.x, self.kept, outputs)
        if outputs:
            self._prune(outputs[0], block.mixer)

    def whole(self) -> Tensor:
        """The tokens as one would have them without pruning: those that were pruned have the values they had then."""
        if self._whole is None or self.places is None:
            return self.x
        places = self.places.unsqueeze(-1).expand_as(self.x)
        whole = self._whole.to(self.x.dtype).scatter(1, places, self.x)
        return whole if self.tokens.cls_token is not None else whole.unflatten(1, self.grid)

    def kept_patches(self) -> Tensor:
        """Which patches are left, (B, H * W), bool."""
        patches, count = self.grid[0] * self.grid[1], len(self.x)
        if self.places is None:
            return torch.ones(count, patches, dtype=torch.bool, device=self.x.device)
        found = torch.zeros(count, self._length(), dtype=torch.bool, device=self.x.device)
        found = found.scatter(1, self.places, True).unsqueeze(-1)
        return self.tokens.split(found)[0].squeeze(-1) if self.tokens.cls_token is not None else found.squeeze(-1)

    def _length(self) -> int:
        """Tokens that came."""
        return self.grid[0] * self.grid[1] + (self.tokens.cls_token is not None)

    def _prune(self, outputs: Tensor, mixer: Any) -> None:
        whole = self.whole()
        self._whole = whole.flatten(1, -2)
        x, places = self.x, self.places
        if places is None:
            x = self._whole
            places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        indices = self._chosen(outputs)
        self.x, self.places = gather_tokens(x, indices), places.gather(1, indices)
        self.kept = mixer.keep_tokens(self._line(self.places), *self.grid, self.pruning.decay)

    def _chosen(self, outputs: Tensor) -> Tensor:
        """Indices of the tokens to keep: patches in the order in which they stand, the class token in its place."""
        score = token_importance(outputs, clip=not self.pruning.as_released)
        if self.tokens.cls_token is None:
            return select_tokens(score, _patches_to_keep(score.shape[1], self.pruning.keep, even=False))
        patches = score.shape[1] - 1
        count = _patches_to_keep(patches, self.pruning.keep, even=self.tokens.position == "middle")
        middle = self.tokens.index(patches)
        if self.pruning.as_released:
            score = score.flip(1)
            score[0, middle] = -torch.inf
            chosen = select_tokens(score, count)
        else:
            chosen = select_tokens(torch.cat([score[:, :middle], score[:, middle + 1 :]], dim=1), count)
            chosen = chosen + (chosen >= middle).to(chosen.dtype)
        before = self.tokens.index(count)
        token = torch.full_like(chosen[:, :1], middle)
        return torch.cat([chosen[:, :before], token, chosen[:, before:]], dim=1)

    def _line(self, places: Tensor) -> Tensor:
        """The places as increasing numbers: a class token is taken to stand right behind the patch before it."""
        if self.tokens.cls_token is None:
            return places
        count = places.shape[1] - 1
        i = self.tokens.index(count)
        patches = torch.cat([places[:, :i], places[:, i + 1 :]], dim=1)
        patches = patches - (patches > self.tokens.index(self._length() - 1)).to(patches.dtype)
        first = max(i - 1, 0)
        token = patches[:, first : first + 1] + (1 if i else 0)
        return torch.cat([patches[:, :i], token, patches[:, i:] + 1], dim=1)
