"""The hidden-state mixer of EfficientViM, HSM-SSD (arXiv 2411.15241, section 3.2 and algorithm 1).

Letters: B batch, H x W map of L = H * W positions, C width of the block, D inner width, N states.
"""

from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.passes import run_linear

from ._state_space import at_least_float32
from .linear import LinearScan

__all__ = ["HiddenStateMixer"]

torch.fx.wrap("at_least_float32")


class HiddenStateMixer(nn.Module):
    """Non-causal state-space dual with one head, whose channels are mixed in the N states and not in the L positions.

    h = (softmax_L(dt + A) * B)^T x, the states as weighted sums over all positions; h <- out_proj(h' * (silu(z) + D))
    with (h', z) = hz_proj(h); y = C h. B, C and dt are a projection of x and a depth-wise 3 x 3 convolution.

    Nothing here depends on the order of the positions but that convolution, so there are no routes and no scan.

    A has no effect: a constant for a state cancels in the softmax over the positions. The official checkpoints have it,
    and with it here the parameters are the same; its gradient is zero but for rounding.

    Args:
        dim: Width C of the input and output.
        d_state: States N.
        ssm_ratio: Inner width D as a multiple of C.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: There is no state, or the inner width is 0.

    The input is a map (B, H, W, C) of any size, which the caller has normalised, in the dtype of the parameters (or any
    under autocast). The weights of the positions are computed in float32 at least.
    """

    def __init__(self, dim: int, d_state: int = 64, ssm_ratio: float = 1.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.d_state = d_state
        self.d_inner = int(ssm_ratio * dim)
        if self.d_state < 1 or self.d_inner < 1:
            raise ValueError(
                f"HiddenStateMixer: d_state and the inner width must be at least 1, got {self.d_state} and "
                f"{self.d_inner} (ssm_ratio {ssm_ratio} of width {dim})"
            )
        self.bcdt_proj = nn.Linear(dim, 3 * d_state, bias=False, **dd)
        self.conv = nn.Conv2d(3 * d_state, 3 * d_state, 3, padding=1, groups=3 * d_state, bias=False, **dd)
        self.hz_proj = nn.Linear(dim, 2 * self.d_inner, bias=False, **dd)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, **dd)
        self.A = nn.Parameter(torch.empty(d_state, **dd))
        self.D = nn.Parameter(torch.empty(1, **dd))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as the official code does: PyTorch's way for projections, A in [1, 16], D = 1."""
        for layer in (self.bcdt_proj, self.conv, self.hz_proj, self.out_proj):
            layer.reset_parameters()
        self.A.uniform_(1, 16)
        self.D.fill_(1)

    def positions(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Compute of (B, H, W, C) what every position gives to the states and takes from them, (B, L, N) each."""
        bcdt = self.bcdt_proj(x) if torch.jit.is_scripting() else run_linear(self.bcdt_proj, x)
        bcdt = self.conv(bcdt.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        B, C, dt = bcdt.flatten(1, 2).split(self.d_state, dim=-1)
        weights = (dt + at_least_float32(self.A)).softmax(dim=1).to(B.dtype)
        return weights * B, C

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Mix (B, H, W, C) to a map (B, H, W, C), and give its states (B, N, C) too."""
        given, C = self.positions(x)
        h = given.transpose(1, 2) @ x.flatten(1, 2)
        hz = self.hz_proj(h) if torch.jit.is_scripting() else run_linear(self.hz_proj, h)
        h, z = hz.chunk(2, dim=-1)
        h = h * (F.silu(z) + self.D)
        h = self.out_proj(h) if torch.jit.is_scripting() else run_linear(self.out_proj, h)
        y = C @ h
        return y.view(x.shape), h

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        From positions to states and back; what mixes the channels of the states in between is left out.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        size = x.shape[1:3]
        given, taken = self.positions(x)

        def apply(u: Tensor) -> Tensor:
            y = taken @ (given.transpose(1, 2) @ u.flatten(1, 2))
            return y.unflatten(1, size).unsqueeze(3)

        return [LinearScan(x.detach(), apply, ("all positions at once",), x.shape[-1])]
