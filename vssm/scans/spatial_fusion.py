"""The structure-aware state space of Spatial-Mamba (arXiv 2410.15091, section 4): one scan, its states fused in 2-D.

Letters: B batch, H x W map, C width of the block, D inner width.
"""

from typing import Any, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.depthwise import depthwise_conv2d
from vssm_kernels.fusion import fusion_here
from vssm_kernels.passes import fusion_pass

from ._state_space import at_least_float32, outside_autocast
from .cross import SS2D
from .linear import LinearScan
from .routes import Route

__all__ = ["FusedStateFusion", "SpatialFusionSS2D", "StateFusion"]

torch.fx.wrap("at_least_float32")
torch.fx.wrap("replicate_conv")
torch.fx.wrap("sum_of_neighbours")


def replicate_conv(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Correlate depth-wise; pixels outside the map repeat its edge; float32 or better.

    Args:
        x: (B, H, W, D), of any size; half dtypes are raised to float32.
        weight: (D, 1, k, k), k odd.
        dilation: Pixels between two taps.

    Returns:
        (B, H, W, D). Autocast does not lower it (TorchScript cannot leave autocast, so a scripted model should not run
        under a float16 one): the states are not normalised and their sums leave the range of float16.
    """
    padding = dilation * (weight.shape[-1] // 2)
    x = F.pad(at_least_float32(x).permute(0, 3, 1, 2), [padding, padding, padding, padding], mode="replicate")
    weight = weight.to(x.dtype)
    if torch.jit.is_scripting():
        x = F.conv2d(x, weight, dilation=dilation, groups=x.shape[1])
    else:
        with outside_autocast(x):
            x = depthwise_conv2d(x, weight, dilation=(dilation, dilation))
    return x.permute(0, 2, 3, 1)


def sum_of_neighbours(x: Tensor, kernels: List[Tensor], dilations: List[int]) -> Tensor:
    """Correlate (B, H, W, D) with several kernels as `replicate_conv` does, and add the results."""
    if not torch.jit.is_scripting():
        fused = fusion_here(at_least_float32(x), kernels, dilations)
        if fused is not None:
            return fused
    y = replicate_conv(x, kernels[0], dilations[0])
    for i in range(1, len(kernels)):
        y = y + replicate_conv(x, kernels[i], dilations[i])
    return y


class StateFusion(nn.Module):
    """Adds to every state its neighbours': three depth-wise 3 x 3 kernels, of dilation 1, 3 and 5, each with a scale.

    (B, H, W, D) to the same, with the edges repeated. Nothing is cached; `fuse` merges the kernels for deployment.

    Args:
        dim: Channels D.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.kernel1 = nn.Parameter(torch.empty(dim, 1, 3, 3, **dd))
        self.kernel3 = nn.Parameter(torch.empty(dim, 1, 3, 3, **dd))
        self.kernel5 = nn.Parameter(torch.empty(dim, 1, 3, 3, **dd))
        self.alpha = nn.Parameter(torch.empty(3, **dd))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start with ones, as the official code does: a plain sum of 27 taps."""
        for parameter in self.parameters():
            parameter.fill_(1)

    def kernels(self) -> Tuple[List[Tensor], List[int]]:
        """Give the scaled kernels and their dilations."""
        alpha = at_least_float32(self.alpha)
        return [alpha[0] * self.kernel1, alpha[1] * self.kernel3, alpha[2] * self.kernel5], [1, 3, 5]

    def forward(self, h: Tensor) -> Tensor:
        """Fuse the states (B, H, W, D)."""
        # Scaling the kernels rather than the maps gives the same sum for three small products.
        kernels, dilations = self.kernels()
        return sum_of_neighbours(h, kernels, dilations)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Give the same function with one 11 x 11 kernel as a new module, for timm's `reparameterize_model`."""
        merged = torch.zeros_like(self.kernel1, dtype=at_least_float32(self.alpha).dtype).repeat(1, 1, 4, 4)
        merged = merged[:, :, :11, :11].contiguous()
        for scale, kernel, dilation in zip(
            self.alpha, (self.kernel1, self.kernel3, self.kernel5), (1, 3, 5), strict=True
        ):
            taps = slice(5 - dilation, 6 + dilation, dilation)
            merged[:, :, taps, taps] += at_least_float32(scale) * kernel
        return FusedStateFusion(merged).train(self.training)


class FusedStateFusion(nn.Module):
    """A `StateFusion` with its kernels merged into one, (D, 1, 11, 11), which can be trained on."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def kernels(self) -> Tuple[List[Tensor], List[int]]:
        """Give the kernel and its dilation; see `StateFusion.kernels`."""
        return [self.weight], [1]

    def forward(self, h: Tensor) -> Tensor:
        """Fuse the states (B, H, W, D)."""
        return replicate_conv(h, self.weight, 1)


class SpatialFusionSS2D(SS2D):
    """Spatial-Mamba's mixer: a row-by-row scan of one state a channel; the states are fused in 2-D, then read by C.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t along the rows; y = C fusion(h) + D u; LayerNorm, gate, projection.

    Args:
        dim: Width C of the input and output.
        ssm_ratio: Inner width D as a multiple of C.
        dt_rank: Rank of the step size; ceil(C / 16) when None.
        d_conv: Kernel size of the depth-wise convolution; below 2 there is none.
        A_init: How A starts, see `vssm.scans.init_state_matrix`; there is one state, so "real" is -1.
        device: Of the parameters.
        dtype: Of the parameters.

    There is one state a channel, because the fusion takes a map a channel; `SS2D` documents the rest.
    """

    def __init__(
        self,
        dim: int,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        A_init: str | float = "real",
        device=None,
        dtype=None,
    ):
        super().__init__(
            dim,
            d_state=1,
            ssm_ratio=ssm_ratio,
            dt_rank=dt_rank,
            d_conv=d_conv,
            conv_bias=True,
            gate=True,
            routes=(Route(),),
            A_init=A_init,
            device=device,
            dtype=dtype,
        )
        self.fusion: nn.Module = StateFusion(self.d_inner, device=device, dtype=dtype)

    def mix(self, x: Tensor) -> Tensor:
        """Scans, fuses and reads the states: (B, H, W, D) to (B, H, W, D)."""
        dt, B, C = self.project(x)
        # Without C the op gives the states; half in, float out, because they are summed before a norm sees them.
        skip = at_least_float32(self.Ds)
        h = self.scan(x, dt, B, None, self.route_code, skip=False, out_dtype=skip.dtype)
        if not torch.jit.is_scripting():
            y = self.read_states(h, C, skip, x)
            if y is not None:
                return y
        y = C[:, :, :, 0] * self.fusion(h) + skip * x
        return y.to(self.out_norm.weight.dtype)

    @torch.jit.ignore
    def read_states(self, h: Tensor, C: Tensor, skip: Tensor, x: Tensor) -> Tensor | None:
        """Fuse and read the states in one pass; None where the layers have to run."""
        fusion: Any = self.fusion
        if type(fusion) not in (StateFusion, FusedStateFusion) or fusion._forward_hooks or fusion._forward_pre_hooks:
            return None
        weights, dilations = fusion.kernels()
        return fusion_pass(h, weights, dilations, C[:, :, :, 0, 0], skip, x, h.dtype)

    def fuse(self) -> nn.Module:
        """Merge the three fusion kernels into one, in place, for inference; see `StateFusion.fuse`."""
        if isinstance(self.fusion, StateFusion):
            self.fusion = self.fusion.fuse()
        return self

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        The fusion of the states with their neighbours' and their reading by C belong to the scan.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        source = self.convolve(self.in_proj(x)[..., : self.d_inner])
        dt, B, C = self.project(source)
        states = self.linear_part(dt, B, None, self.route_code)

        def apply(u: Tensor) -> Tensor:
            return (C[:, :, :, 0] * self.fusion(states(u)[:, :, :, 0])).unsqueeze(3)

        return [LinearScan(source, apply, ("rows, fused with neighbours",), self.d_inner)]
