"""Fill the gaps of a masked sequence by a state space: MambaMIM's TOKI (arXiv 2408.08070)."""

import torch
from torch import Tensor

__all__ = ["interpolate_tokens"]


def interpolate_tokens(x: Tensor, visible: Tensor, A: Tensor) -> Tensor:
    """Interpolate the tokens between those that are seen.

    The places that are seen, the first and the last are anchors. Between neighbouring anchors s < e, n apart, the
    tokens v_j = (1 - a_j) x_s + a_j x_e with a = linspace(0, 1, n) are the inputs of a linear state space, and its
    result is z_(s+j) = sum over k <= j of A^(n-1-k) v_k, as in the official code; powers count from the far end of the
    gap, and A^0 is the identity. At the last place z = A x. With A = 0, as training starts, each gap is empty but
    for its last place, which has x_e.

    Args:
        x: Tokens (B, L, C); those at both ends count where they are masked, too.
        visible: Which are seen, (B, L), bool.
        A: Matrix (C, C).

    Returns:
        z, (B, L, C); at the places that are seen, too, where nobody needs it.
    """
    length = x.shape[1]
    place = torch.arange(length, device=x.device).expand(visible.shape)
    anchor = visible.clone()
    anchor[:, 0] = anchor[:, -1] = True
    start = torch.where(anchor, place, 0).cummax(dim=1).values
    # The next anchor behind each place; the last place has none.
    coming = torch.where(anchor, place, length - 1).flip(1).cummin(dim=1).values.flip(1)
    end = torch.cat([coming[:, 1:], coming[:, -1:]], dim=1)
    share = (place - start) / (end - start - 1).clamp(min=1)
    first, last = (x.gather(1, index[..., None].expand_as(x)) for index in (start, end))
    v = torch.lerp(first, last, share[..., None].to(x))
    v = torch.cat([v[:, :-1], x[:, -1:]], dim=1)
    power = torch.cat([end[:, :-1] - 1 - place[:, :-1], torch.ones_like(place[:, -1:])], dim=1)
    for least in range(1, int(power.max()) + 1):
        v = torch.where((power >= least)[..., None], v @ A.T, v)
    before = (start[:, :, None] == start[:, None, :]) & (place[:, :, None] >= place[:, None, :])
    return before.to(v) @ v
