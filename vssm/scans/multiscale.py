"""The multi-scale scan of MSVMamba: one direction at full resolution, three at half (arXiv 2405.14174).

Letters: B batch, H x W map, h x w = ceil(H / 2) x ceil(W / 2), C width of the block, D inner width, N states, R rank of
the step size.
"""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor

from vssm_kernels.depthwise import DepthwiseConv2d
from vssm_kernels.passes import conv_pass, run_excite

from ._state_space import init_linear, split_projection
from .cross import SS2D
from .linear import LinearScan, route_names
from .routes import MULTISCALE, encode_routes

__all__ = ["MultiScaleSS2D"]


class MultiScaleSS2D(SS2D):
    """Two branches of one projection: rows of the H x W map, and the other directions of an h x w map.

    The full branch convolves 3 x 3 and scans the rows. The half branch convolves 7 x 7 with stride 2 and scans one
    sequence of length 3 h w: the rows backwards, then the columns, then the columns backwards. The state is not reset
    between the three, and they share one set of parameters. The half branch's three results are summed, resized to
    H x W and added to the full branch's; squeeze-and-excitation follows. 1.75 H W positions are scanned, where the
    cross-scan has 4 H W.

    Index 0 of the stacked parameters (`dt_projs_weight`, ...; the first half of `A_logs`) is the full branch, index 1
    the half branch.

    Args:
        dim: Width C of the input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width D as a multiple of C.
        dt_rank: Rank R of the step size; ceil(C / 16) when None.
        gate: Multiply the result by an activated second projection of the input.
        norm_before_merge: Normalise every scanned position of each branch (the arXiv version); else the merged map.
        upsample_mode: "bilinear" (pixel centres aligned, not corners) or "nearest", for the half branch.
        scan_float32: Give the result of a scan in float32 or better. It is computed in that whatever the inputs are.
        A_init: How A starts, see `vssm.scans.init_state_matrix`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: Another `upsample_mode`.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        gate: bool = True,
        norm_before_merge: bool = True,
        upsample_mode: str = "bilinear",
        scan_float32: bool = True,
        A_init: str | float = "real",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if upsample_mode not in ("bilinear", "nearest"):
            raise ValueError(f"MultiScaleSS2D: upsample_mode must be bilinear or nearest, got {upsample_mode!r}")
        super().__init__(
            dim,
            d_state=d_state,
            ssm_ratio=ssm_ratio,
            dt_rank=dt_rank,
            conv_bias=True,
            gate=gate,
            routes=MULTISCALE,
            scan_float32=scan_float32,
            A_init=A_init,
            **dd,
        )
        self.norm_before_merge = norm_before_merge
        self.upsample_mode = upsample_mode
        self.full_code: List[int] = encode_routes(MULTISCALE[:1])
        self.half_code: List[int] = encode_routes(MULTISCALE[1:])
        inner = self.d_inner
        self.conv_half = DepthwiseConv2d(inner, 7, stride=2, padding=3, **dd)
        self.se = SqueezeExcite(inner, rd_channels=max(inner // 8, 1), bias=False, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start the parameters as `SS2D` does, and the squeeze-and-excitation like the linear layers."""
        super().init_weights()
        init_linear(self.se.fc1.weight, self.se.fc2.weight)

    def branches(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Convolve (B, H, W, D) to the maps that are scanned, (B, H, W, D) and (B, h, w, D)."""
        if not torch.jit.is_scripting():
            full, half = conv_pass(self.conv, x, self.act), conv_pass(self.conv_half, x, self.act)
            if full is not None and half is not None:
                return full, half
        x = x.permute(0, 3, 1, 2)
        return self.act(self.conv(x).permute(0, 2, 3, 1)), self.act(self.conv_half(x).permute(0, 2, 3, 1))

    def project_branch(self, x: Tensor, branch: int) -> Tuple[Tensor, Tensor, Tensor]:
        """Project the map of a branch, (B, H, W, D), to its low-rank step (B, H, W, 1, R), B and C (B, H, W, 1, N)."""
        weight = self.x_proj.weight.unflatten(0, (self.num_routes, -1))[branch]
        return split_projection(F.linear(x, weight).unsqueeze(3), self.dt_rank, self.d_state)

    def scan_branch(self, x: Tensor, branch: int, code: List[int], merge: bool) -> Tensor:
        """Scan the map of a branch, (B, H, W, D), with its own parameters; see `scan` for the result."""
        dt, B, C = self.project_branch(x, branch)
        out_dtype = self.out_norm.weight.dtype
        return self.scan(x, dt, B, C, code, merge=merge, out_dtype=out_dtype, sequences=(branch, branch + 1))

    def excite(self, x: Tensor) -> Tensor:
        """Weigh the channels of a map (B, H, W, D) by squeeze and excitation."""
        if torch.jit.is_scripting():
            return self.se(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return run_excite(self.se, SqueezeExcite, x)

    def core(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Do what stands between the projections, see `SS2D.core`: (B, H, W, D) to (B, H, W, D)."""
        dtype = x.dtype
        height = x.shape[1]
        width = x.shape[2]
        full, half = self.branches(x)
        full = self.scan_branch(full, 0, self.full_code, True)
        half = self.scan_branch(half, 1, self.half_code, not self.norm_before_merge)
        if self.norm_before_merge:
            full = self.out_norm(full)
            half = self.out_norm(half).sum(3)  # three results for every pixel
        half = F.interpolate(half.permute(0, 3, 1, 2), size=[height, width], mode=self.upsample_mode)
        y = full + half.permute(0, 2, 3, 1)
        if not self.norm_before_merge:
            y = self.out_norm(y)
        y = self.excite(y).to(dtype)
        return y if z is None else y * self.act(z)

    @torch.no_grad()
    def linear_scans(self, x: Tensor) -> List[LinearScan]:
        """Say how the mixer is linear: one scan for each branch, the full one first; see `vssm.scans.linear`.

        The results of the half branch are resized as in the forward. The norms between scan and merging are left out.

        Args:
            x: The input of the mixer for one image, (1, H, W, C).
        """
        size = list(x.shape[1:3])
        full, half = self.branches(self.in_proj(x)[..., : self.d_inner])
        over_full = self.linear_part(*self.project_branch(full, 0), self.full_code, (0, 1))
        over_half = self.linear_part(*self.project_branch(half, 1), self.half_code, (1, 2))

        def resized(u: Tensor) -> Tensor:
            y = over_half(u).permute(0, 3, 4, 1, 2)
            y = F.interpolate(y.flatten(1, 2), size=size, mode=self.upsample_mode).unflatten(1, y.shape[1:3])
            return y.permute(0, 3, 4, 1, 2)

        halves = tuple(f"half: {name}" for name in route_names(self.half_code))
        return [
            LinearScan(full, over_full, route_names(self.full_code), self.d_inner),
            LinearScan(half, resized, halves, self.d_inner),
        ]

    def paper_flops_offset(self, x: Tensor) -> int:
        """Give the difference to the official count: it projects each of the half branch's three directions."""
        height, width = (int(size + 1) // 2 for size in x.shape[1:3])
        return 2 * height * width * self.d_inner * (self.dt_rank + 2 * self.d_state)
