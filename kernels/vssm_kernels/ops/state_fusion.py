"""The op `state_fusion`: the pass of Spatial-Mamba's states over their neighbours, for compiled models on CPUs."""

import torch
from torch import Tensor

from .. import cpu, cpu_maps
from ..backends import choose_backend
from ..fusion import fusion_by_taps
from .registration import check_devices, check_nonempty, check_out_dtype, check_tensor, register

__all__ = ["fuse_states"]


def fuse_states(
    h: Tensor,
    taps: Tensor,
    offsets: list[tuple[int, int]],
    scale: Tensor,
    skip: Tensor,
    other: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Compute scale sum(taps h) + skip other, where pixels outside the map repeat its edge.

    Args:
        h: (B, H, W, D).
        taps: (T, D).
        offsets: Rows and columns from a pixel to what a tap reads, T of them.
        scale: (B, H, W).
        skip: (D,).
        other: (B, H, W, D).
        dtype: Of the result.

    Returns:
        (B, H, W, D), contiguous. Summed in float32 or better.
    """
    if choose_backend("auto", h.device, h.dtype, 0) is cpu and dtype != torch.float64:
        size = (h.shape[1], h.shape[2])
        return cpu_maps.depthwise(
            h, taps, None, offsets, size, dtype, replicate=True, scale=scale, skip=skip, other=other
        )
    wide = torch.promote_types(h.dtype, torch.float32)
    h, taps, scale, skip, other = (x.to(wide) for x in (h, taps, scale, skip, other))
    y = scale.unsqueeze(-1) * fusion_by_taps(h, taps, offsets) + skip * other
    return y.to(dtype).contiguous()


def _check(h, taps, offsets, scale, skip, other, dtype) -> None:
    op = "state_fusion"
    check_out_dtype(op, dtype)
    check_tensor(op, "h", h, (None,) * 4)
    check_nonempty(op, h)
    if len(offsets) % 2 or not offsets:
        raise ValueError(f"{op}: offsets must be pairs of a row and a column, got {len(offsets)} numbers")
    check_tensor(op, "taps", taps, (len(offsets) // 2, h.shape[3]))
    check_tensor(op, "scale", scale, tuple(h.shape[:3]))
    check_tensor(op, "skip", skip, (h.shape[3],))
    check_tensor(op, "other", other, tuple(h.shape))
    check_devices(op, h=h, taps=taps, scale=scale, skip=skip, other=other)


def _kernel(h, taps, offsets, scale, skip, other, dtype) -> Tensor:
    _check(h, taps, offsets, scale, skip, other, dtype)
    pairs = list(zip(offsets[::2], offsets[1::2], strict=True))
    return fuse_states(h, taps, pairs, scale, skip, other, dtype)


def _fake(h, taps, offsets, scale, skip, other, dtype) -> Tensor:
    _check(h, taps, offsets, scale, skip, other, dtype)
    return h.new_empty(h.shape, dtype=dtype)


register(
    "state_fusion(Tensor h, Tensor taps, int[] offsets, Tensor scale, Tensor skip, Tensor other, ScalarType dtype) "
    "-> Tensor",
    _kernel,
    _fake,
)
