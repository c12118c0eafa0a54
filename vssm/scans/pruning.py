"""Scans over the tokens that pruning has left (ToP-ViM, arXiv 2409.18962): which to keep, and how routes pass the gaps.

A route visits the tokens that are left in the order that it has on the whole map. Its state is carried over a gap as it
is; that makes the scan one of a shorter sequence, so nothing is computed for what was pruned. Or the state decays over
the gap, as if tokens of zeros stood there (`scan_over_gaps`).

Letters: B batch, L tokens that are left, D channels, K sequences of a scan, N states.
"""

from typing import List, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "KeptTokens",
    "gaps_along",
    "gather_tokens",
    "scan_over_gaps",
    "select_tokens",
    "token_importance",
    "tokens_of_map",
    "tokens_on_map",
]


class KeptTokens(NamedTuple):
    """The tokens that are left, as the mixers need them; a mixer's `keep_tokens` makes it.

    Attributes:
        places: Numbers on the whole sequence or map, in raster order, increasing, (B, L), int64.
        height: Rows of the whole map.
        width: Its columns.
        gaps: How many pruned tokens a sequence of the scan passes before it comes to each token, (B, L, K); None: the
            state is carried.
        order: The tokens in the order of the routes, (B, L, routes), int64; None: they stand in it.
        ranks: Where on the routes each token is, (B, L, routes): the inverse of `order`.
        moves: How each sequence came to the tokens of `order`, (B, L, K), int64; None: the mixer asks for no moves.
    """

    places: Tensor
    height: int
    width: int
    gaps: Tensor | None = None
    order: Tensor | None = None
    ranks: Tensor | None = None
    moves: Tensor | None = None


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Take the tokens with these indices (B, L) from (B, L', D), each sample its own; the result is (B, L, D)."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def tokens_on_map(x: Tensor, kept: KeptTokens) -> Tensor:
    """Put tokens (B, L, D) in their places on a map (B, H, W, D); zeros elsewhere."""
    whole = x.new_zeros([x.shape[0], kept.height * kept.width, x.shape[2]])
    return whole.scatter(1, kept.places.unsqueeze(-1).expand_as(x), x).unflatten(1, (kept.height, kept.width))


def tokens_of_map(x: Tensor, kept: KeptTokens) -> Tensor:
    """Take the tokens (B, L, D) from a map (B, H, W, D)."""
    return gather_tokens(x.flatten(1, 2), kept.places)


def token_importance(y: Tensor, clip: bool = True) -> Tensor:
    """Score tokens by what a scan gives for them: the sum over channels of max(0, y).

    Args:
        y: The scan's result behind its gate, (B, L, D).
        clip: Leave out what is below zero, as in the paper; the released code does not.

    Returns:
        (B, L), float32 or better.
    """
    y = y if y.dtype == torch.float64 else y.float()
    return (y.clamp(min=0) if clip else y).sum(-1)


def select_tokens(score: Tensor, count: int) -> Tensor:
    """Give the indices of the tokens with the highest scores, in the order in which they stand.

    Args:
        score: (B, L).
        count: How many.

    Returns:
        (B, count), int64.
    """
    return score.topk(count, dim=1).indices.sort(dim=1).values


def gaps_along(steps: Tensor) -> Tensor:
    """Count what is missing before each token on the way forwards, and on the way back.

    Args:
        steps: Increasing numbers along the way, (B, L).

    Returns:
        (B, L, 2).
    """
    gaps = steps.diff(dim=1) - 1
    none = torch.zeros_like(steps[:, :1])
    return torch.stack([torch.cat([none, gaps], dim=1), torch.cat([gaps, none], dim=1)], dim=-1)


def scan_over_gaps(
    u: Tensor,
    delta: Tensor,
    waited: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    code: List[int],
    merge: bool = True,
) -> Tensor:
    """Scan tokens so that the state decays over the gaps between them: h = exp((waited + delta) A) h' + delta B u.

    The operator has one step size for both the decay and the input. It is given the sum, and an input smaller by as
    much; the skip, which sees the input as it is, is added here.

    Args:
        u: A map (B, H, W, D), or (B, H, W, K, D) with channels of its own for each sequence.
        delta: Step sizes, positive, (B, H, W, K, D).
        waited: The step sizes of the pruned tokens between a token and the one before it, summed, (B, H, W, K, D).
        A: (K, D, N).
        B: (B, H, W, K, N).
        C: (B, H, W, K, N).
        D: The skip (K, D).
        code: The routes of the K sequences, from `encode_routes`.
        merge: Sum the results of all routes.

    Returns:
        (B, H, W, D), or one result for each route, (B, H, W, K, D), if they are not merged.
    """
    u = u.unsqueeze(3) if u.dim() == 4 else u
    total = (delta + waited).clamp(min=1.2e-38)  # float32's smallest normal number; TorchScript knows no torch.finfo
    y = torch.ops.vssm.selective_scan_2d(
        u * (delta / total), dt=total, A=A, B=B, C=C, routes=code, delta_softplus=False, merge=merge
    )
    skip = u * D
    return y + (skip.sum(3) if merge else skip)
