"""The structure-aware state space of Spatial-Mamba (arXiv 2410.15091, section 4): one scan, its states fused in 2-D.

Letters: B batch, H x W map, C width of the block, D inner width.
"""

from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ._parameters import at_least_float32, outside_autocast
from .cross import SS2D
from .routes import Route

__all__ = ["FusedStateFusion", "SpatialFusionSS2D", "StateFusion"]

torch.fx.wrap("at_least_float32")
torch.fx.wrap("replicate_conv")


def replicate_conv(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Depth-wise cross-correlation in which pixels outside the map repeat its edge; float32 or better.

    Args:
        x: (B, H, W, D), of any size; half dtypes are raised to float32.
        weight: (D, 1, k, k), k odd.
        dilation: pixels between two taps.

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
            x = F.conv2d(x, weight, dilation=dilation, groups=x.shape[1])
    return x.permute(0, 2, 3, 1)


class StateFusion(nn.Module):
    """Adds to every state its neighbours': three depth-wise 3 x 3 kernels, of dilation 1, 3 and 5, each with a scale.

    (B, H, W, D) to the same, with the edges repeated. Nothing is cached; `fuse` merges the kernels for deployment.
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
        """Ones, as the official code: a plain sum of 27 taps."""
        for parameter in self.parameters():
            parameter.fill_(1)

    def forward(self, h: Tensor) -> Tensor:
        # Scaling the kernels rather than the maps gives the same sum for three small products.
        alpha = at_least_float32(self.alpha)
        y = replicate_conv(h, alpha[0] * self.kernel1, 1)
        y = y + replicate_conv(h, alpha[1] * self.kernel3, 3)
        return y + replicate_conv(h, alpha[2] * self.kernel5, 5)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The same function with one 11 x 11 kernel, as a new module (timm's `reparameterize_model` puts it in)."""
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

    def forward(self, h: Tensor) -> Tensor:
        return replicate_conv(h, self.weight, 1)


class SpatialFusionSS2D(SS2D):
    """Spatial-Mamba's mixer: a row-by-row scan of one state a channel; the states are fused in 2-D, then read by C.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t along the rows; y = C fusion(h) + D u; LayerNorm, gate, projection.

    Args:
        dim: width C of the input and output.
        ssm_ratio: inner width D as a multiple of C.
        dt_rank: rank of the step size; ceil(C / 16) when None.
        d_conv: kernel size of the depth-wise convolution; below 2 there is none.

    There is one state a channel, because the fusion takes a map a channel; `SS2D` documents the rest.
    """

    def __init__(
        self,
        dim: int,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
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
            device=device,
            dtype=dtype,
        )
        self.fusion = StateFusion(self.d_inner, device=device, dtype=dtype)

    def _states(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """(B, H, W, D) to the states (B, H, W, D), float32 or better, and C (B, H, W, 1)."""
        dt, B, C = self._project(x)
        A = -torch.exp(at_least_float32(self.A_logs)).unsqueeze(0)
        # Without C the op gives the states; half in, float out, because they are summed before a norm sees them.
        h = torch.ops.vssm.selective_scan_2d(
            x,
            dt,
            A,
            B,
            None,
            None,
            self.dt_projs_bias,
            self.dt_projs_weight,
            self.route_code,
            True,
            True,
            A.dtype,
            "auto",
        )
        return h, C[:, :, :, 0]

    def mix(self, x: Tensor) -> Tensor:
        """Scan, fuse and read the states: (B, H, W, D) to (B, H, W, D)."""
        h, C = self._states(x)
        y = C * self.fusion(h) + at_least_float32(self.Ds) * x
        return y.to(self.out_norm.weight.dtype)

    def fuse(self) -> nn.Module:
        """Merge the three fusion kernels into one, in place, for inference; see `StateFusion.fuse`."""
        if isinstance(self.fusion, StateFusion):
            self.fusion = self.fusion.fuse()
        return self
