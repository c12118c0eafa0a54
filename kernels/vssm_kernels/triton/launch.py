"""Shared by the launches of all scans, on the host."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

__all__ = ["Blocks", "Form", "check_dtypes", "in_float32", "launch", "on_device_of"]

# From here on a compiled kernel takes all arguments of its function, constants too. Checked for 3.6 and 3.8.
_TAKES_ALL = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)
_IO_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Blocks(NamedTuple):
    """How a scan is cut up: a tile is [run, block_n states, block_d channels, lanes], run * lanes positions."""

    block_d: int
    block_n: int
    run: int
    lanes: int
    num_warps: int

    @property
    def tile(self) -> int:
        """Positions a tile."""
        return self.run * self.lanes


class Form(NamedTuple):
    """How a scan of maps is made.

    Attributes:
        blocks: How it is cut up.
        paired: Whether the sum of a pair of sequences is made in one program.
        ahead: Whether the pixels of the next tile are looked up while a tile is scanned.
    """

    blocks: Blocks
    paired: bool = False
    ahead: bool = False


def in_float32(x: Tensor | None) -> Tensor | None:
    """Give a parameter as the kernels take it."""
    if x is None or (x.dtype is torch.float32 and x.is_contiguous()):
        return x
    return x.to(torch.float32).contiguous()


def check_dtypes(**tensors: Tensor) -> None:
    """Refuse dtypes that the kernels do not take."""
    for name, x in tensors.items():
        if x.dtype not in _IO_DTYPES:
            raise TypeError(f"The Triton selective scan takes float32, bfloat16 or float16, but {name} is {x.dtype}.")


def on_device_of(x: Tensor):
    """Make the tensor's device the current one, on which Triton launches; do nothing for a CPU tensor."""
    return torch.xpu.device_of(x) if x.device.type == "xpu" else torch.cuda.device_of(x)


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    constants: Mapping[str, Any],
    options: Mapping[str, int],
    kept: dict[tuple, Callable],
) -> None:
    """Launch a kernel whose arguments are tensors, numbers and constants, in this order.

    Triton looks at every argument at every launch, which takes longer than the launch itself. What a kernel is compiled
    for does not change as long as dtypes, numbers and constants do not, except by the alignment of tensors.

    Args:
        kernel: The function under `triton.jit`.
        grid: The number of programs.
        tensors: The first arguments.
        numbers: The arguments that follow.
        constants: The last arguments, in order.
        options: Of the compiler.
        kept: Launches already prepared, of a plan that fixes all the above but where tensors lie and which are given.
    """
    given = tuple(None if x is None else x.data_ptr() % 16 == 0 for x in tensors)
    key = (kernel, given, *constants.values())
    run = kept.get(key)
    if run is not None:
        run(*tensors, *numbers, *constants.values())
        return
    compiled = kernel[grid](*tensors, *numbers, **constants, **options)
    if _TAKES_ALL and isinstance(compiled, CompiledKernel):  # the interpreter gives none
        kept[key] = compiled[grid]
