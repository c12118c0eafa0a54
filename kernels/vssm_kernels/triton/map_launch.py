"""The launches of the kernels of maps: blocks, chunks, inputs as the kernels take them, scratch memory."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import isqrt
from typing import Any

import torch
import triton
from torch import Tensor

from ..routes import decode_routes
from .launch import Blocks, Form, in_float32, launch
from .map_forward import scan_2d_kernel
from .map_tables import walk_tables

__all__ = ["MAX_RANK", "Launch", "choose_blocks_2d", "fills_a_device", "fits", "map_strides"]

# Above this rank the step size is expanded by a matrix product before the scan.
MAX_RANK = 32
# The two-pass form is for fewer warps than this, four for each scheduler of a large GPU; it then makes about as many.
FEW_WARPS = 2048
# A chunk has at least this many tiles; shorter ones would not repay their pass.
TILES_PER_CHUNK = 2
# A program begins with the totals of all chunks before its own. If a tile takes nine times as long as one of those (a
# guess), more chunks than this times the root of the number of tiles take longer.
CHUNKS_OF_ROOT = 6


def fills_a_device(programs: int, blocks: Blocks) -> bool:
    """Tell whether there are enough programs to keep a GPU busy without the two-pass form."""
    return programs * blocks.num_warps >= FEW_WARPS


def choose_blocks_2d(channels: int, states: int, backward: bool = False) -> Blocks:
    """Choose blocks, by the code compiled for sm_90 (registers, spills, instructions); not timed on a device.

    16 positions are the least that a matrix product takes, with which a low-rank step size is expanded. Threads hold 16
    values of a tile for few states, 32 for many; all the positions of a run stay in one thread.
    """
    block_n = triton.next_power_of_2(states)
    block_d = 16 if backward and block_n >= 2 else min(32, max(16, triton.next_power_of_2(channels)))
    run = 16 if block_n <= 32 else max(2, 512 // block_n)
    few = backward and block_n < 8
    num_warps = min(16, max(1, block_n * block_d // (32 if few else 64)))
    return Blocks(block_d, block_n, run, 1, num_warps)


def map_strides(x: Tensor | None) -> tuple[int, int, int] | None:
    """Tell how a map lies in memory, if rows, columns and images are one stride apart each; else None.

    Args:
        x: (Bt, H, W, [K,] C), or None.

    Returns:
        Pixels from an image to the next, numbers from a pixel and from a sequence to the next; zeros for no map.
    """
    if x is None:
        return 0, 0, 0
    images, height, width = x.shape[:3]
    image, down, right, *_ = x.stride()
    pixel = right if width > 1 else down
    rows_apart = height > 1 and width > 1 and down != width * right
    if (x.shape[-1] > 1 and x.stride(-1) != 1) or rows_apart or (images > 1 and (pixel == 0 or image % pixel)):
        return None
    return image // pixel if images > 1 else 0, pixel, x.stride(3) if x.dim() == 5 else 0


def fits(code: Sequence[int], u: Tensor, *maps: Tensor | None) -> bool:
    """Tell whether offsets within an image stay below 32 bits, which halves the kernels' integer arithmetic.

    Args:
        code: The routes, by `encode_routes`.
        u: The input.
        maps: All else that is read pixel by pixel; in the backward the gradient of the results, too.
    """
    maps = (u, *(x for x in maps if x is not None))
    routes = sum(map(len, decode_routes(code)))
    written = u.shape[1] * u.shape[2] * routes * max(x.shape[-1] for x in maps)
    # A view's pixels may lie further apart than a copy's.
    furthest = [sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in maps]
    return max(written, *furthest) < 2**31


class Launch:
    """The passes of one kind of scan: blocks, chunks, tables, strides. No tensors but tables, so that it can be kept.

    Args:
        tensors: The eight tensors of a scan of this kind.
        code: The routes, by `encode_routes`.
        softplus: Whether the step size goes through a softplus.
        backward: Whether these are the passes of the backward.
        form: How the scan is made; as the blocks compile best when None.
        chunks: Into how many chunks sequences are cut; chosen when None.
        grad: The gradient of the results, in the backward.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor | None],
        code: Sequence[int],
        softplus: bool,
        backward: bool,
        form: Form | None = None,
        chunks: int | None = None,
        grad: Tensor | None = None,
    ):
        u, dt, A, B, C, _D, _bias, weight = tensors
        self.batch, self.height, self.width = u.shape[:3]
        self.channels, self.states, self.sequences = u.shape[-1], A.shape[2], A.shape[0]
        self.form = form or Form(choose_blocks_2d(self.channels, self.states, backward))
        self.blocks = self.form.blocks
        self.dt_is_low_rank = weight is not None and weight.shape[2] <= MAX_RANK and self.blocks.run >= 16
        self.expands = weight is not None and not self.dt_is_low_rank
        self.rank = weight.shape[2] if self.dt_is_low_rank else 0
        if self.expands:
            dt = _expanded(dt.shape, weight.shape, "meta")
        maps = (u, dt, B, C, grad)
        strides = [map_strides(x) for x in maps]
        self.copied = [stride is None for stride in strides]
        strides = [
            map_strides(torch.empty(x.shape, device="meta")) if stride is None else stride
            for x, stride in zip(maps, strides, strict=True)
        ]
        self.strides, self.grad_stride = tuple(chain(*strides[:4])), strides[4]
        self.own_input, self.device = u.dim() == 5, u.device
        self.tables = (tuple(code), self.height, self.width, self.blocks.run, self.form.paired, u.device)
        self.walk = walk_tables(*self.tables)
        self.pixels = self.height * self.width
        self.d_blocks = triton.cdiv(self.channels, self.blocks.block_d)
        self.slots = self.sequences
        if self.form.paired:
            if self.walk.pairs is None or self.own_input:
                raise ValueError("only sequences that visit the same pixels of one map in opposite order can be paired")
            self.slots, chunks = self.sequences // 2, 1
        programs = self.batch * self.slots * self.d_blocks
        if chunks is None:
            most = min(triton.cdiv(self.walk.tiles, TILES_PER_CHUNK), CHUNKS_OF_ROOT * isqrt(self.walk.tiles))
            chunks = min(triton.cdiv(FEW_WARPS, programs * self.blocks.num_warps), most)
            if chunks == 2:  # two passes over halves take as long as one over the whole
                chunks = 1
        self.tiles_per_chunk = max(1, triton.cdiv(self.walk.tiles, max(1, chunks)))
        self.chunks = max(1, triton.cdiv(self.walk.tiles, self.tiles_per_chunk))
        self.grid = (programs * self.chunks, 1, 1)
        self.constants = {
            "SOFTPLUS": softplus,
            "BLOCK_D": self.blocks.block_d,
            "BLOCK_N": self.blocks.block_n,
            "BLOCK_R": max(16, triton.next_power_of_2(self.rank)),
            "RUN": self.blocks.run,
        }
        self.options = {"num_warps": self.blocks.num_warps, "num_stages": 1}
        # The sizes that depend on the map, in the order of `SIZES`.
        self.sizes = (self.pixels, self.chunks, self.walk.tiles, self.tiles_per_chunk)
        self.compiled: dict[tuple, Callable] = {}

    def expanded_step_fits(self) -> bool:
        """Tell whether offsets in the step size stay below 32 bits where it is expanded: there K lies outermost."""
        return not self.expands or (self.sequences - 1) * self.strides[5] < 2**31

    def hold(self) -> None:
        """Keep the tables for a graph that is captured."""
        walk_tables(*self.tables)

    def inputs(
        self, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor | None, *parameters: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Give the eight tensors as the kernels take them."""
        D, bias, weight = parameters
        if self.expands:
            dt, weight = _expand(dt, weight), None
        u, dt, B, C = map(self._as_map, (u, dt, B, C), self.copied)
        return u, dt, in_float32(A), B, C, in_float32(D), in_float32(bias), in_float32(weight)

    def gradient(self, grad: Tensor) -> Tensor:
        """Give the gradient of the results as the kernels take it."""
        return self._as_map(grad, self.copied[4])

    @staticmethod
    def _as_map(x: Tensor | None, copied: bool) -> Tensor | None:
        return x.clone(memory_format=torch.contiguous_format) if copied else x

    def scratch(self, *shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
        """Make a tensor for results, filled with zeros where the kernels leave some of it out."""
        return (torch.zeros if zeros else torch.empty)(shape, dtype=dtype, device=self.device)

    def totals(self, inputs: Sequence[Tensor | None], grad: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Make for each chunk the sum of the step sizes, the state at its end and, for `grad`, what `starts` needs."""
        if self.chunks == 1:
            return None, None, None
        shape = (self.batch, self.sequences, self.chunks)
        steps = self.scratch(*shape, self.channels)
        ends = self.scratch(*shape, self.states, self.channels)
        starts = None if grad is None else self.scratch(*shape, self.states, self.channels)
        self.scan(inputs, steps=steps, ends=ends, starts=starts, grad=grad, totals=True)
        return steps, ends, starts

    def scan(
        self,
        inputs: Sequence[Tensor | None],
        y: Tensor | None = None,
        edges: Tensor | None = None,
        steps: Tensor | None = None,
        ends: Tensor | None = None,
        starts: Tensor | None = None,
        grad: Tensor | None = None,
        maps: int = 0,
        merge: bool = False,
        totals: bool = False,
        members: Tensor | None = None,
        twins: Tensor | None = None,
    ) -> None:
        """Launch `scan_2d_kernel`, which says what the arguments are."""
        walk = self.walk
        tensors = (*inputs, grad, y, edges, steps, ends, starts, walk.order, walk.table, walk.first_route)
        numbers = (self.slots, self.channels, self.states, self.rank, maps, *self.sizes, *self.strides)
        constants = {"MERGE": merge, "TOTALS": totals, **self.constants, "AHEAD": self.form.ahead}
        numbers = (*numbers, *(self.grad_stride if grad is not None else (0, 0, 0)))
        self.launch(scan_2d_kernel, (*tensors, members, twins), numbers, constants)

    def launch(self, kernel: Any, tensors: tuple, numbers: tuple[int, ...], constants: Mapping[str, Any]) -> None:
        """Launch a kernel with all its arguments."""
        launch(kernel, self.grid, tensors, numbers, constants, self.options, self.compiled)


def _expanded(shape: Sequence[int], weight_shape: Sequence[int], device: str) -> Tensor:
    """Make a tensor (Bt, H, W, K, D) for the step size in full; K lies outermost in memory."""
    return torch.empty(shape[3], *shape[:3], weight_shape[1], device=device, dtype=torch.float32).permute(1, 2, 3, 0, 4)


def _expand(dt: Tensor, weight: Tensor) -> Tensor:
    """The step size of the low-rank one (Bt, H, W, K, R) in float32, which lies as `_expanded` does."""
    low_rank = dt.flatten(0, 2).transpose(0, 1).float()
    return torch.bmm(low_rank, weight.float().mT).unflatten(1, dt.shape[:3]).permute(1, 2, 3, 0, 4)
