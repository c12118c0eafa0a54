"""The non-causal state-space dual of VSSD (arXiv 2407.18559, section 3): every token sees one state made of all tokens.

Letters: B batch, H x W map, L = H W tokens, C width of the block, D inner width, M heads, N states.
"""

from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.passes import conv_pass, norm_pass, run_linear

from ._state_space import at_least_float32, init_linear, init_state_matrix, init_step_bias, outside_autocast
from .linear import LinearScan

__all__ = ["NonCausalSSD2D", "noncausal_ssd"]

torch.fx.wrap("at_least_float32")
torch.fx.wrap("noncausal_ssd")


def noncausal_ssd(v: Tensor, weight: Tensor, k: Tensor, q: Tensor, skip: Tensor) -> Tensor:
    """Compute y_l = q_l S + skip v_l, with the one state S = sum over all tokens t of k_t^T (weight_t v_t).

    The heads differ only in `weight` and `skip`, so the values are scaled by these and all heads share one product.

    Args:
        v: Values (B, L, D), D = M heads of D / M channels each.
        weight: Of each token for each head, (B, L, M).
        k: Keys (B, L, N), shared by the heads.
        q: Queries (B, L, N), shared by the heads.
        skip: (M,).

    Returns:
        (B, L, D). Float16 inputs are raised to float32, and autocast does not lower the two products: S grows with the
        number of tokens and leaves the range of float16 (TorchScript cannot leave autocast, so a scripted model should
        not run under a float16 one). Bfloat16 has float32's range, so its products stay in bfloat16.
    """
    if v.dtype == torch.float16:
        v, k, q = v.float(), k.float(), q.float()
    heads = weight.shape[-1]
    per_head = v.unflatten(-1, (heads, -1))
    # In the dtype of v: maps that are raised to float32 and back take longer than the products.
    weighted = (per_head * weight.to(v.dtype).unsqueeze(-1)).flatten(-2)
    if torch.jit.is_scripting():
        y = q @ (k.transpose(-2, -1) @ weighted)
    else:
        with outside_autocast(v):
            y = q @ (k.transpose(-2, -1) @ weighted)
    return torch.addcmul(y.unflatten(-1, (heads, -1)), per_head, skip.to(v.dtype).unsqueeze(-1)).flatten(-2)


class NonCausalSSD2D(nn.Module):
    """VSSD's mixer: Mamba-2's parameters, but one state summed over all tokens, without decay, order or mask.

    One projection gives the gate z, the values x, keys B, queries C and the steps. A depth-wise convolution and SiLU go
    over x, B and C together. A token weighs step * exp(A_log) > 0. The result is normalised, then gated with the raw z.

    Args:
        dim: Width C of the input and output.
        num_heads: Heads M, which must divide the inner width.
        d_state: States N.
        ssm_ratio: Inner width D as a multiple of C.
        d_conv: Kernel size of the depth-wise convolution, odd.
        A_init: How A starts, see `vssm.scans.init_state_matrix`; there is one A a head.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: The heads do not divide the inner width.
    """

    quant_points = ("u", "B", "C")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        d_state: int = 64,
        ssm_ratio: float = 2.0,
        d_conv: int = 3,
        A_init: str | float = "uniform",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.d_inner = int(ssm_ratio * dim)
        self.d_state = d_state
        self.num_heads = num_heads
        self.A_init = A_init
        if self.d_inner % num_heads:
            raise ValueError(f"NonCausalSSD2D: the inner width {self.d_inner} is not divisible by {num_heads} heads")
        inner, convolved = self.d_inner, self.d_inner + 2 * d_state

        self.in_proj = nn.Linear(dim, inner + convolved + num_heads, bias=False, **dd)
        self.conv = nn.Conv2d(convolved, convolved, d_conv, padding=d_conv // 2, groups=convolved, **dd)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.empty(num_heads, **dd))
        self.A_log = nn.Parameter(torch.empty(num_heads, **dd))
        self.D = nn.Parameter(torch.empty(num_heads, **dd))
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as the official code does, which is Mamba-2's way."""
        init_linear(self.in_proj.weight, self.out_proj.weight)
        init_step_bias(self.dt_bias)
        init_state_matrix(self.A_log.unsqueeze(-1), self.A_init)
        self.D.fill_(1)

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Project (B, H, W, C) to what the state is made of and read with, in the order of the H W positions.

        Returns:
            The gate z (B, H, W, D), the values v (B, L, D), the weight of each token for each head (B, L, M), the keys
            k and the queries q (B, L, N).
        """
        convolved = self.d_inner + 2 * self.d_state
        x = self.in_proj(x) if torch.jit.is_scripting() else run_linear(self.in_proj, x)
        z, x, dt = x.split([self.d_inner, convolved, self.num_heads], dim=-1)
        x = self.convolve(x).flatten(1, 2)
        v, k, q = x.split([self.d_inner, self.d_state, self.d_state], dim=-1)
        weight = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias)).flatten(1, 2)
        weight = weight * torch.exp(at_least_float32(self.A_log))
        return z, v, weight, k, q

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve and activate (B, H, W, D + 2 N)."""
        if not torch.jit.is_scripting():
            y = conv_pass(self.conv, x, self.act)
            if y is not None:
                return y
        return self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def scan(self, u: Tensor, weight: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Make the state of all positions and read it, see `noncausal_ssd`: values u, keys B, queries C."""
        return noncausal_ssd(u, weight, B, C, self.D)

    def normalise(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise the result and gate it, (B, H, W, D) each."""
        if not torch.jit.is_scripting():
            gated = norm_pass(self.out_norm, y, z.dtype, z)
            if gated is not None:
                return gated
        # In the dtype of y, not of the parameters: this norm is what brings y back into the range of float16.
        norm_weight, norm_bias = self.out_norm.weight.to(y.dtype), self.out_norm.bias.to(y.dtype)
        y = F.layer_norm(y, [self.d_inner], norm_weight, norm_bias, self.out_norm.eps)
        return y.to(z.dtype) * z

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) to (B, H, W, C)."""
        height = x.shape[1]
        width = x.shape[2]
        z, v, weight, k, q = self.project(x)
        y = self.scan(v, weight, k, q).unflatten(1, (height, width))
        y = self.normalise(y, z)
        return self.out_proj(y) if torch.jit.is_scripting() else run_linear(self.out_proj, y)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        size = x.shape[1:3]
        _, v, weight, k, q = self.project(x)

        def apply(u: Tensor) -> Tensor:
            y = noncausal_ssd(u.flatten(1, 2), weight, k, q, torch.zeros_like(self.D))
            return y.unflatten(1, size).unsqueeze(3)

        return [LinearScan(v.unflatten(1, size), apply, ("all positions at once",), self.d_inner)]

    def paper_flops_offset(self, x: Tensor) -> int:
        """Give the difference to the official count, where a product broadcast over heads counts for one head."""
        tokens, head_dim = int(x.shape[1]) * int(x.shape[2]), self.d_inner // self.num_heads
        return -2 * tokens * self.d_state * (self.d_inner - head_dim)
