"""The scans of the compiled CPU library, see `cpu_library`.

The 1-D functions take what those of `reference.py` take, float64 excepted, with B and C always (Bt, G, N, L); the 2-D
ones take what those of `scan_2d.py` take. All compute in float32.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .cpu_library import DTYPES, as_float32, call, get_library, pointers, unavailable_reason
from .cpu_structs import Mamba, Map, Scan2d, Ssd
from .mamba import DIRECTIONS
from .routes import route_table
from .tables import keep_tables

__all__ = [
    "mamba_inner_fwd",
    "selective_scan_2d_bwd",
    "selective_scan_2d_fwd",
    "selective_scan_bwd",
    "selective_scan_fwd",
    "ssd_bwd",
    "ssd_fwd",
    "unavailable_reason",
]


def selective_scan_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.selective_scan_fwd`; computed in float32."""
    library = get_library()
    out_dtype = out_dtype or u.dtype
    inputs = [as_float32(x) for x in (u, delta, A, B, C, D, delta_bias)]
    batch, channels, length = u.shape
    y = torch.empty((batch, channels, length), dtype=torch.float32)
    last_state = torch.empty((batch, channels, A.shape[1]), dtype=torch.float32)
    sizes = (batch, channels, B.shape[1], A.shape[1], length)
    call(library.vssm_selective_scan_fwd, *pointers(*inputs, y, last_state), *sizes, delta_softplus)
    return y.to(out_dtype), last_state


def selective_scan_bwd(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `reference.selective_scan_bwd`. The same bits in every run and for every number of threads."""
    library = get_library()
    inputs = [as_float32(x) for x in (grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias)]
    outputs = [
        None if x is None else torch.empty(x.shape, dtype=torch.float32) for x in (u, delta, A, B, C, D, delta_bias)
    ]
    batch, channels, length = u.shape
    sizes = (batch, channels, B.shape[1], A.shape[1], length)
    call(library.vssm_selective_scan_bwd, *pointers(*inputs, *outputs), *sizes, delta_softplus)
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias = outputs
    halves = grad_u.to(u.dtype), grad_delta.to(delta.dtype), grad_B.to(B.dtype), grad_C.to(B.dtype)
    return *halves[:2], grad_A, *halves[2:], grad_D, grad_bias


class _Walk(NamedTuple):
    """The steps of all sequences on one size of map, as tables; see `Scan2d` of kernels/csrc/scan_args.h."""

    starts: Tensor
    first_route: Tensor
    visited: Tensor
    route_rows: Tensor
    covers: Tensor


@keep_tables
def _walk(code: tuple[int, ...], height: int, width: int, device: torch.device) -> _Walk:
    table = route_table(code, height, width, device=device)
    lengths = torch.tensor(table.starts).diff()
    routes = len(lengths)
    if height * width * routes > torch.iinfo(torch.int32).max:
        raise ValueError(f"the cpp backend cannot number {routes} routes on a map of {height} x {width}")
    route = torch.arange(routes, dtype=torch.int32).repeat_interleave(lengths)
    return _Walk(
        torch.tensor([table.starts[number] for number in table.first_route]),
        torch.tensor(table.first_route),
        table.positions,
        table.positions * routes + route,
        (lengths == height * width).to(torch.uint8),
    )


def _as_map(x: Tensor | None, height: int, width: int) -> tuple[Tensor | None, Map]:
    """`x` (Bt, H, W, [K,] C) as the library reads it; copied only where rows and columns are no one stride apart."""
    if x is None:
        return None, Map()
    if x.dtype not in DTYPES or not x.is_cpu:
        x = as_float32(x)  # refuses it
    batch, down, right, *_, last = x.stride()
    position = right if width > 1 else down
    if (x.shape[-1] > 1 and last != 1) or (height > 1 and width > 1 and down != width * right):
        x = x.contiguous()
        batch, _, position, *_ = x.stride()
        if width == 1:
            position = x.stride(1)
    return x, Map(x.data_ptr(), batch, position, x.stride(3) if x.dim() == 5 else 0)


class _Inputs:
    """The argument structure of the 2-D functions, and the tensors that it points into."""

    def __init__(self, u, dt, A, B, C, D, delta_bias, dt_weight, code, delta_softplus, merge):
        height, width = u.shape[1:3]
        walk = _walk(tuple(code), height, width, u.device)
        maps = [_as_map(x, height, width) for x in (u, dt, B, C)]
        parameters = [as_float32(x) for x in (A, D, delta_bias, dt_weight)]
        self.kept = (walk, maps, parameters)
        sizes = (u.shape[0], height * width, u.shape[-1], A.shape[0], len(walk.covers), A.shape[2])
        rank = 0 if dt_weight is None else dt_weight.shape[2]
        flags = (delta_softplus, merge, u.dim() == 5, DTYPES[u.dtype])
        self.struct = Scan2d(*sizes, rank, *flags, *pointers(*walk), *(m for _, m in maps), *pointers(*parameters))


def selective_scan_2d_fwd(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    code: Sequence[int],
    delta_softplus: bool,
    merge: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """See `scan_2d.scan_2d_fwd`. Nothing is laid out in sequences: the library walks the map by tables of positions."""
    library = get_library()
    inputs = _Inputs(u, dt, A, B, C, D, delta_bias, dt_weight, code, delta_softplus, merge)
    shape = (*u.shape[:3], u.shape[-1]) if merge else (*u.shape[:3], inputs.struct.routes, u.shape[-1])
    y = torch.empty(shape, dtype=torch.float32)
    call(library.vssm_scan_2d_fwd, inputs.struct, y.data_ptr())
    return y.to(out_dtype)


def selective_scan_2d_bwd(
    grad: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    code: Sequence[int],
    delta_softplus: bool,
    merge: bool,
) -> tuple[Tensor | None, ...]:
    """See `scan_2d.scan_2d_bwd`. The same bits in every run and for every number of threads."""
    library = get_library()
    inputs = _Inputs(u, dt, A, B, C, D, delta_bias, dt_weight, code, delta_softplus, merge)
    grad = as_float32(grad)
    given = (u, dt, A, B, C, D, delta_bias, dt_weight)
    grads = [None if x is None else torch.empty(x.shape, dtype=torch.float32) for x in given]
    call(library.vssm_scan_2d_bwd, inputs.struct, *pointers(grad, *grads))
    # Those of the parameters stay in float32.
    return tuple(
        g.to(x.dtype) if i in (0, 1, 3, 4) and g is not None else g
        for i, (g, x) in enumerate(zip(grads, given, strict=True))
    )


def mamba_inner_fwd(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    scale: float,
) -> Tensor:
    """See `mamba.mamba_inner_fwd`; computed in float32, in one call."""
    library = get_library()
    given = (xz, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D)
    x, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D = [as_float32(tensor) for tensor in given]
    batch, length, _ = x.shape
    sequences, channels, states = A.shape
    rank, outputs = dt_weight.shape[2], x_proj.shape[1]
    u = torch.empty((batch, length, sequences, channels), dtype=torch.float32)
    projected = torch.empty((batch, length, sequences, outputs), dtype=torch.float32)
    y = torch.empty((batch, length, channels), dtype=torch.float32)
    walk = _walk(DIRECTIONS[sequences - 1], 1, length, x.device)
    strides = (length * sequences * outputs, sequences * outputs, outputs)
    dt, B, C = (Map(projected.data_ptr() + 4 * first, *strides) for first in (0, rank, rank + states))
    maps = (Map(u.data_ptr(), length * sequences * channels, sequences * channels, channels), dt, B, C)
    sizes = (batch, length, channels, sequences, sequences, states, rank)
    flags = (True, True, True, DTYPES[torch.float32])  # softplus, merged, inputs of their own
    scan = Scan2d(*sizes, *flags, *pointers(*walk), *maps, *pointers(A, D, dt_bias, dt_weight))
    conv = (conv_weight.shape[-1], *pointers(conv_weight, conv_bias, x_proj, u, projected))
    call(library.vssm_mamba_fwd, Mamba(ctypes.pointer(scan), x.data_ptr(), *conv, scale), y.data_ptr())
    return y.to(xz.dtype)


def _ssd_inputs(x, dt, A, B, C, D, dt_bias, dt_softplus) -> tuple[list[Tensor | None], tuple[int, ...]]:
    """The tensors as the library reads them, and the sizes."""
    if D is not None:
        D = (D[:, None] if D.dim() == 1 else D).expand(x.shape[2:])
    sizes = (*x.shape, B.shape[2], B.shape[3], dt_softplus)
    return [as_float32(tensor) for tensor in (x, dt, A, B, C, D, dt_bias)], sizes


def ssd_fwd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """See `reference.ssd_fwd`."""
    inputs, sizes = _ssd_inputs(x, dt, A, B, C, D, dt_bias, dt_softplus)
    y = torch.empty(x.shape, dtype=torch.float32)
    call(get_library().vssm_ssd, Ssd(*sizes, *pointers(*inputs, y)))
    return y.to(x.dtype)


def ssd_bwd(
    grad_y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `chunked.ssd_bwd`. The same bits in every run and for every number of threads."""
    inputs, sizes = _ssd_inputs(x, dt, A, B, C, D, dt_bias, dt_softplus)
    grad_y = as_float32(grad_y)
    grad_x, grad_dt = (torch.empty(tensor.shape, dtype=torch.float32) for tensor in (x, dt))
    grad_B, grad_C = (torch.zeros(B.shape, dtype=torch.float32) for _ in range(2))
    grad_A = torch.empty(x.shape[0], *A.shape, dtype=torch.float64)
    gradients = (grad_x, grad_dt, grad_B, grad_C, grad_A)
    call(get_library().vssm_ssd, Ssd(*sizes, *pointers(*inputs, None, grad_y, *gradients)))
    return (
        grad_x.to(x.dtype),
        grad_dt.to(dt.dtype),
        grad_A.sum(0).float(),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        None if D is None else (grad_y * inputs[0]).sum((0, 1, 3) if D.dim() == 1 else (0, 1)),
        None if dt_bias is None else grad_dt.sum((0, 1)),
    )
