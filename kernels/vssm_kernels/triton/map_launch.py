"""The launches of the kernels of maps: blocks, chunks, inputs as the kernels take them, scratch memory."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..routes import decode_routes
from .launch import Blocks, in_float32
from .map_forward import scan_2d_kernel
from .map_tables import walk_tables

__all__ = ["MAX_RANK", "Launch", "as_map", "choose_blocks_2d", "fills_a_device", "fits"]

# Above this rank the step size is expanded by a matrix product before the scan.
MAX_RANK = 32
# The two-pass form is for fewer programs than this; it then makes about as many.
FEW_PROGRAMS = 1024
# A chunk has at least this many tiles; shorter ones would not repay their pass.
TILES_PER_CHUNK = 4


def fills_a_device(programs: int) -> bool:
    """Tell whether there are enough programs to keep a GPU busy without the two-pass form."""
    return programs >= FEW_PROGRAMS


def choose_blocks_2d(channels: int, states: int, backward: bool = False) -> Blocks:
    """Choose blocks, by the code compiled for sm_90 (registers, spills, instructions); not timed on a device.

    16 positions are the least that a matrix product takes, with which a low-rank step size is expanded. Threads hold 16
    values of a tile for few states, 32 for many; all the positions of a run stay in one thread.
    """
    block_n = triton.next_power_of_2(states)
    block_d = 16 if backward and block_n >= 8 else min(32, max(16, triton.next_power_of_2(channels)))
    run = 16 if block_n <= 32 else max(2, 512 // block_n)
    few = backward and block_n < 8
    num_warps = min(16, max(1, block_n * block_d // (32 if few else 64)))
    return Blocks(block_d, block_n, run, 1, num_warps)


def as_map(x: Tensor | None) -> tuple[Tensor | None, tuple[int, int, int]]:
    """Give a map as the kernels take it: rows, columns and images one stride apart each, or else a copy.

    Args:
        x: (Bt, H, W, [K,] C), or None.

    Returns:
        The map, and three strides: the pixels from an image to the next, the numbers from a pixel and from a sequence
        to the next.
    """
    if x is None:
        return None, (0, 0, 0)
    images, height, width = x.shape[:3]
    image, down, right, *_ = x.stride()
    pixel = right if width > 1 else down
    rows_apart = height > 1 and width > 1 and down != width * right
    if (x.shape[-1] > 1 and x.stride(-1) != 1) or rows_apart or (images > 1 and (pixel == 0 or image % pixel)):
        return as_map(x.clone(memory_format=torch.contiguous_format))
    return x, (image // pixel if images > 1 else 0, pixel, x.stride(3) if x.dim() == 5 else 0)


def fits(code: Sequence[int], u: Tensor, *maps: Tensor | None) -> bool:
    """Tell whether offsets within an image stay below 32 bits, which halves the kernels' integer arithmetic."""
    maps = (u, *(x for x in maps if x is not None))
    routes = sum(map(len, decode_routes(code)))
    written = u.shape[1] * u.shape[2] * routes * max(x.shape[-1] for x in maps)
    # A view's pixels may lie further apart than a copy's.
    furthest = [sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in maps]
    return max(written, *furthest) < 2**31


class Launch:
    """The passes of one scan: inputs as the kernels take them, blocks, chunks."""

    def __init__(self, u, dt, A, B, C, D, bias, weight, code, softplus, backward, blocks, chunks, paired=False):
        self.batch, self.height, self.width = u.shape[:3]
        self.channels, self.states, self.sequences = u.shape[-1], A.shape[2], A.shape[0]
        self.blocks = blocks or choose_blocks_2d(self.channels, self.states, backward)
        self.dt_is_low_rank = weight is not None and weight.shape[2] <= MAX_RANK and self.blocks.run >= 16
        if weight is not None and not self.dt_is_low_rank:
            dt, weight = _expand(dt, weight), None
        self.rank = 0 if weight is None else weight.shape[2]
        (u, u_stride), (dt, dt_stride), (B, B_stride), (C, C_stride) = map(as_map, (u, dt, B, C))
        self.maps = (u, dt, in_float32(A), B, C, in_float32(D), in_float32(bias), in_float32(weight))
        self.strides = (*u_stride, *dt_stride, *B_stride, *C_stride)
        self.own_input, self.device = u.dim() == 5, u.device
        self.walk = walk_tables(tuple(code), self.height, self.width, self.blocks.run, paired, u.device)
        self.pixels = self.height * self.width
        self.d_blocks = triton.cdiv(self.channels, self.blocks.block_d)
        self.slots = self.sequences
        if paired:
            if self.walk.pairs is None or self.own_input:
                raise ValueError("only sequences that visit the same pixels of one map in opposite order can be paired")
            self.slots, chunks = self.sequences // 2, 1
        programs = self.batch * self.slots * self.d_blocks
        if chunks is None:
            chunks = min(triton.cdiv(FEW_PROGRAMS, programs), self.walk.tiles // TILES_PER_CHUNK)
        self.tiles_per_chunk = max(1, triton.cdiv(self.walk.tiles, max(1, chunks)))
        self.chunks = max(1, triton.cdiv(self.walk.tiles, self.tiles_per_chunk))
        self.grid = (programs * self.chunks,)
        self.constants = {
            "SOFTPLUS": softplus,
            "BLOCK_D": self.blocks.block_d,
            "BLOCK_N": self.blocks.block_n,
            "BLOCK_R": max(16, triton.next_power_of_2(self.rank)),
            "RUN": self.blocks.run,
            "num_warps": self.blocks.num_warps,
            "num_stages": 1,
        }

    def scratch(self, *shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
        """Make a tensor for results, filled with zeros where the kernels leave some of it out."""
        return (torch.zeros if zeros else torch.empty)(shape, dtype=dtype, device=self.device)

    def sizes(self) -> tuple[int, ...]:
        """Give the sizes that depend on the map, in the order of `SIZES`."""
        return self.pixels, self.chunks, self.walk.tiles, self.tiles_per_chunk

    def totals(self, grad: Tensor | None = None, grad_stride: tuple[int, ...] = (0, 0, 0)) -> tuple[Tensor | None, ...]:
        """Make for each chunk the sum of the step sizes, the state at its end and, for `grad`, what `starts` needs."""
        if self.chunks == 1:
            return None, None, None
        shape = (self.batch, self.sequences, self.chunks)
        steps = self.scratch(*shape, self.channels)
        ends = self.scratch(*shape, self.states, self.channels)
        starts = None if grad is None else self.scratch(*shape, self.states, self.channels)
        self.scan(steps=steps, ends=ends, starts=starts, grad=grad, grad_stride=grad_stride, totals=True)
        return steps, ends, starts

    def scan(
        self,
        y=None,
        edges=None,
        steps=None,
        ends=None,
        starts=None,
        grad=None,
        grad_stride=(0, 0, 0),
        maps=0,
        merge=False,
        totals=False,
        members=None,
        twins=None,
    ) -> None:
        """Launch `scan_2d_kernel`, which says what the arguments are."""
        scan_2d_kernel[self.grid](
            *self.maps,
            grad,
            y,
            edges,
            steps,
            ends,
            starts,
            self.walk.order,
            self.walk.table,
            self.walk.first_route,
            members,
            twins,
            self.slots,
            self.channels,
            self.states,
            self.rank,
            maps,
            *self.sizes(),
            *self.strides,
            *grad_stride,
            MERGE=merge,
            TOTALS=totals,
            **self.constants,
        )


def _expand(dt: Tensor, weight: Tensor) -> Tensor:
    """The step size (Bt, H, W, K, D) of the low-rank one (Bt, H, W, K, R) in float32; K lies outermost in memory."""
    low_rank = dt.flatten(0, 2).transpose(0, 1).float()
    return torch.bmm(low_rank, weight.float().mT).unflatten(1, dt.shape[:3]).permute(1, 2, 3, 0, 4)
