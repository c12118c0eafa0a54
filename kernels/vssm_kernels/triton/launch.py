"""Shared by the launches of all scans, on the host."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Blocks", "check_dtypes", "in_float32", "on_device_of"]

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


def in_float32(x: Tensor | None) -> Tensor | None:
    """Give a parameter as the kernels take it."""
    return None if x is None else x.to(torch.float32).contiguous()


def check_dtypes(**tensors: Tensor) -> None:
    """Refuse dtypes that the kernels do not take."""
    for name, x in tensors.items():
        if x.dtype not in _IO_DTYPES:
            raise TypeError(f"The Triton selective scan takes float32, bfloat16 or float16, but {name} is {x.dtype}.")


def on_device_of(x: Tensor):
    """Make the tensor's device the current one, on which Triton launches; do nothing for a CPU tensor."""
    return torch.xpu.device_of(x) if x.device.type == "xpu" else torch.cuda.device_of(x)
