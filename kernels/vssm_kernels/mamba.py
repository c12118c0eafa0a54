"""What a Mamba mixer does between its projections in and out, written as PyTorch's own operators around a scan.

This is the rule that compiled forms are tested against, and what runs where there is none.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .route_code import Route, encode_routes

__all__ = ["DIRECTIONS", "mamba_inner_fwd"]

# The routes of one direction and of both. A sequence of tokens is a map of one row.
DIRECTIONS = tuple(tuple(encode_routes(ways)) for ways in ((Route(),), (Route(), Route(reverse=True))))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, backwards: bool) -> Tensor:
    """SiLU of a causal depth-wise convolution of (Bt, D, L) by (D, taps); `backwards` it looks at later tokens."""
    past = weight.shape[-1] - 1
    weight = weight.flip(-1) if backwards else weight
    padded = F.pad(x, (0, past) if backwards else (past, 0))
    return F.silu(F.conv1d(padded, weight.unsqueeze(1), bias, groups=weight.shape[0]))


def mamba_inner_fwd(
    scan_2d: Callable[..., Tensor],
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    scale: float,
) -> Tensor:
    """Compute `mamba_inner`, whose shapes these are, with any scan.

    Args:
        scan_2d: Called as the operator `selective_scan_2d`, by keyword, with all but `backend`.
        xz: As all others, an argument of `mamba_inner`.
        conv_weight: See there.
        conv_bias: See there.
        x_proj: See there.
        dt_weight: See there.
        dt_bias: See there.
        A: See there.
        D: See there.
        scale: See there.
    """
    sequences, channels, states = A.shape
    x, z = xz.chunk(2, dim=-1)
    weight = conv_weight.view(sequences, channels, -1)
    bias = None if conv_bias is None else conv_bias.view(sequences, channels)
    x = x.transpose(1, 2)
    u = [_convolve(x, weight[k], None if bias is None else bias[k], k == 1) for k in range(sequences)]
    u = torch.stack(u, dim=1).movedim(3, 1)  # (Bt, L, K, D)
    projected = torch.einsum("blkd,kod->blko", u, x_proj).unsqueeze(1)
    dt, B, C = projected.split([dt_weight.shape[2], states, states], dim=-1)
    y = scan_2d(
        u=u.unsqueeze(1),
        dt=dt,
        A=A,
        B=B,
        C=C,
        D=D,
        delta_bias=dt_bias,
        dt_weight=dt_weight,
        routes=list(DIRECTIONS[sequences - 1]),
        delta_softplus=True,
        merge=True,
        out_dtype=None,
    ).squeeze(1)
    return y.to(xz.dtype) * F.silu(z) * scale
