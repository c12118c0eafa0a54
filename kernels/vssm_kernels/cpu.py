"""Binds the compiled CPU library built from kernels/csrc, a plain C ABI that is reached through ctypes.

The library is optional: without a compiler at installation it is not there, and `unavailable_reason` says so. Nothing
is loaded before the first use. The 1-D functions take what those of `reference.py` take, float64 excepted, with B and C
always (Bt, G, N, L); the 2-D ones take what those of `scan_2d.py` take.
"""

import ctypes
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .cpu_structs import Deform, Depthwise, DepthwiseGrad, Mamba, Map, Norm, Scan2d
from .install import how_to_build
from .mamba import DIRECTIONS
from .routes import route_table
from .tables import keep_tables

ABI_VERSION = 7
_INSTALL = f"install a C++ compiler (GCC or Clang) and reinstall: {how_to_build()}"
if sys.platform == "win32":
    _INSTALL = "it is not built on Windows"
_HALVES = (torch.bfloat16, torch.float16)
# Numbered as in kernels/csrc/scan_args.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_reason: str | None = None


def _library_files() -> list[Path]:
    """The newest first: earlier versions kept one per Python version, and those may still lie beside it."""
    found = (p for p in Path(__file__).parent.glob("_cpu_scan*") if p.suffix in (".so", ".dylib", ".dll", ".pyd"))
    return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)


def _gomp_parallel() -> ctypes.c_void_p:
    """The entry point of the OpenMP runtime that PyTorch runs on, so that both share one pool of threads.

    Asked of PyTorch's own extension module: the dynamic linker searches what that module depends on, no other copy.
    """
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError):
        return ctypes.c_void_p(None)


def _open(path: Path) -> ctypes.CDLL:
    """Raises OSError, with a message for the user, for a library that cannot be used."""
    library = ctypes.CDLL(str(path))
    version = getattr(library, "vssm_abi_version", lambda: None)()
    if version != ABI_VERSION:
        raise OSError(f"it has interface version {version} where this package needs {ABI_VERSION}")
    library.vssm_selective_scan_fwd.argtypes = [ctypes.c_void_p] * 9 + [ctypes.c_int64] * 5 + [ctypes.c_int] * 2
    library.vssm_selective_scan_bwd.argtypes = [ctypes.c_void_p] * 16 + [ctypes.c_int64] * 5 + [ctypes.c_int] * 2
    library.vssm_scan_2d_fwd.argtypes = [ctypes.POINTER(Scan2d), ctypes.c_void_p, ctypes.c_int]
    library.vssm_scan_2d_bwd.argtypes = [ctypes.POINTER(Scan2d)] + [ctypes.c_void_p] * 9 + [ctypes.c_int]
    library.vssm_mamba_fwd.argtypes = [ctypes.POINTER(Mamba), ctypes.c_void_p, ctypes.c_int]
    library.vssm_depthwise.argtypes = [ctypes.POINTER(Depthwise), ctypes.c_int]
    library.vssm_depthwise_grad.argtypes = [ctypes.POINTER(DepthwiseGrad), ctypes.c_int]
    library.vssm_deform.argtypes = [ctypes.POINTER(Deform), ctypes.c_int]
    library.vssm_norm.argtypes = [ctypes.POINTER(Norm), ctypes.c_int]
    library.vssm_set_gomp_parallel.argtypes = [ctypes.c_void_p]
    library.vssm_set_gomp_parallel.restype = None
    library.vssm_variant.restype = ctypes.c_char_p
    library.vssm_set_variant.argtypes = [ctypes.c_char_p]
    library.vssm_set_gomp_parallel(_gomp_parallel())
    return library


def _load() -> None:
    global _library, _reason
    with _lock:
        if _library is not None or _reason is not None:
            return
        reason = f"the compiled library is not there: {_INSTALL}"
        for path in _library_files():
            try:
                _library = _open(path)
                return
            except OSError as error:
                reason = f"the compiled library {path.name} cannot be used ({error}): {_INSTALL}"
        _reason = reason


def unavailable_reason() -> str | None:
    """Say in one sentence why the compiled library cannot be used and what to do; None when it can."""
    if _library is None and _reason is None:
        _load()
    return _reason


def library_file() -> Path | None:
    """Return where the library that is used lies; None when there is none."""
    return None if unavailable_reason() else Path(_library._name)


def variant() -> str:
    """Name the instruction set whose kernels run: "avx512", "avx2" or "baseline"."""
    return _get_library().vssm_variant().decode()


def set_variant(name: str = "") -> bool:
    """Pick the kernels of one instruction set (the best without a name), for tests; False where it cannot run."""
    return _get_library().vssm_set_variant(name.encode()) == 0


def _get_library() -> ctypes.CDLL:
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    return _library


def _float32(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    # The usual case first: seven arguments through the checks and copies below cost as much as a small scan.
    if x.dtype == torch.float32 and x.is_cpu and x.is_contiguous():
        return x
    if x.device.type != "cpu":
        raise TypeError(f"the cpp backend takes CPU tensors, not one on {x.device}")
    if x.dtype != torch.float32 and x.dtype not in _HALVES:
        raise TypeError(f"the cpp backend computes in float32 and takes float32, bfloat16 or float16, not {x.dtype}")
    return x.detach().to(torch.float32).contiguous()


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if x is None else x.data_ptr() for x in tensors]


def _call(function, *arguments) -> None:
    if function(*arguments, torch.get_num_threads()) != 0:
        raise MemoryError("out of memory in the CPU library")


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
    library = _get_library()
    out_dtype = out_dtype or u.dtype
    inputs = [_float32(x) for x in (u, delta, A, B, C, D, delta_bias)]
    batch, channels, length = u.shape
    y = torch.empty((batch, channels, length), dtype=torch.float32)
    last_state = torch.empty((batch, channels, A.shape[1]), dtype=torch.float32)
    sizes = (batch, channels, B.shape[1], A.shape[1], length)
    _call(library.vssm_selective_scan_fwd, *_pointers(*inputs, y, last_state), *sizes, delta_softplus)
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
    library = _get_library()
    inputs = [_float32(x) for x in (grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias)]
    outputs = [
        None if x is None else torch.empty(x.shape, dtype=torch.float32) for x in (u, delta, A, B, C, D, delta_bias)
    ]
    batch, channels, length = u.shape
    sizes = (batch, channels, B.shape[1], A.shape[1], length)
    _call(library.vssm_selective_scan_bwd, *_pointers(*inputs, *outputs), *sizes, delta_softplus)
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
    if x.dtype not in _DTYPES or not x.is_cpu:
        x = _float32(x)  # refuses it
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
        parameters = [_float32(x) for x in (A, D, delta_bias, dt_weight)]
        self.kept = (walk, maps, parameters)
        sizes = (u.shape[0], height * width, u.shape[-1], A.shape[0], len(walk.covers), A.shape[2])
        rank = 0 if dt_weight is None else dt_weight.shape[2]
        flags = (delta_softplus, merge, u.dim() == 5, _DTYPES[u.dtype])
        self.struct = Scan2d(*sizes, rank, *flags, *_pointers(*walk), *(m for _, m in maps), *_pointers(*parameters))


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
    library = _get_library()
    inputs = _Inputs(u, dt, A, B, C, D, delta_bias, dt_weight, code, delta_softplus, merge)
    shape = (*u.shape[:3], u.shape[-1]) if merge else (*u.shape[:3], inputs.struct.routes, u.shape[-1])
    y = torch.empty(shape, dtype=torch.float32)
    _call(library.vssm_scan_2d_fwd, inputs.struct, y.data_ptr())
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
    library = _get_library()
    inputs = _Inputs(u, dt, A, B, C, D, delta_bias, dt_weight, code, delta_softplus, merge)
    grad = _float32(grad)
    given = (u, dt, A, B, C, D, delta_bias, dt_weight)
    grads = [None if x is None else torch.empty(x.shape, dtype=torch.float32) for x in given]
    _call(library.vssm_scan_2d_bwd, inputs.struct, *_pointers(grad, *grads))
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
    library = _get_library()
    given = (xz, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D)
    x, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D = [_float32(tensor) for tensor in given]
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
    flags = (True, True, True, _DTYPES[torch.float32])  # softplus, merged, inputs of their own
    scan = Scan2d(*sizes, *flags, *_pointers(*walk), *maps, *_pointers(A, D, dt_bias, dt_weight))
    conv = (conv_weight.shape[-1], *_pointers(conv_weight, conv_bias, x_proj, u, projected))
    _call(library.vssm_mamba_fwd, Mamba(ctypes.pointer(scan), x.data_ptr(), *conv, scale), y.data_ptr())
    return y.to(xz.dtype)


def _columns(x: Tensor) -> Tensor:
    """`x` with its last dimension side by side in memory."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@lru_cache(maxsize=64)
def _places(offsets: tuple[tuple[int, int], ...]) -> tuple[Tensor, bool]:
    """The offsets as a table, and whether they are those of a 3 x 3 kernel around the pixel, row by row."""
    return torch.tensor(offsets, dtype=torch.int32), offsets == tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[tuple[int, int]],
    size: tuple[int, int],
    out_dtype: torch.dtype,
    *,
    stride: int = 1,
    replicate: bool = False,
    silu: bool = False,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """Convolve a channels-last map depth-wise: scale silu(bias + sum over taps of weight x) + skip other.

    Args:
        x: (B, H, W, D), not empty; float32 or a half dtype.
        weight: (T, D), one row for each tap.
        bias: (D,).
        offsets: Rows and columns from the pixel at the output's place to what a tap reads, T of them.
        size: Height and width of the result.
        out_dtype: Of the result.
        stride: Pixels between what neighbours of the result read.
        replicate: Pixels outside the map repeat its edge; else they are zero.
        silu: Apply SiLU.
        scale: One number for each pixel of the result, (B, H', W').
        skip: (D,); None: nothing is added.
        other: What is added, (B, H', W', D).

    Returns:
        (B, H', W', D), contiguous. Summed in float32.
    """
    library = _get_library()
    batch, height, width, channels = x.shape
    x = _columns(x)
    weight, bias, scale, skip = _float32(weight), _float32(bias), _float32(scale), _float32(skip)
    if other is not None:
        other = _columns(other.to(out_dtype))
    y = torch.empty((batch, *size, channels), dtype=out_dtype)
    places, dense = _places(tuple(offsets))
    struct = Depthwise(
        *(batch, height, width, *size, channels, stride, len(offsets)),
        *(dense, replicate, silu, _DTYPES[x.dtype], _DTYPES[out_dtype]),
        *_pointers(places, weight, bias, x),
        *x.stride()[:3],
        *_pointers(scale, skip, other),
        *((0, 0, 0) if other is None else other.stride()[:3]),
        y.data_ptr(),
    )
    _call(library.vssm_depthwise, struct)
    return y


# Parts of the rows whose sums are made apart: more than the threads of most machines; the sum does not depend on these.
_PARTS = 32


def depthwise_grad(x: Tensor, grad: Tensor, offsets: Sequence[tuple[int, int]], stride: int) -> Tensor:
    """Give the gradient of a depth-wise convolution's weight.

    Args:
        x: What was convolved, (B, H, W, D), not empty; float32 or a half dtype. Pixels outside it are zero.
        grad: Of the result, (B, H', W', D); float32 or a half dtype.
        offsets: As in `depthwise`.
        stride: As in `depthwise`.

    Returns:
        (T, D), float32.
    """
    library = _get_library()
    batch, height, width, channels = x.shape
    x, grad = _columns(x), _columns(grad)
    rows = batch * grad.shape[1]
    sums = torch.zeros(min(_PARTS, rows), len(offsets), channels)
    struct = DepthwiseGrad(
        *(batch, height, width, *grad.shape[1:3], channels, stride, len(offsets), len(sums)),
        *(_DTYPES[x.dtype], _DTYPES[grad.dtype]),
        *_pointers(_places(tuple(offsets))[0], x),
        *x.stride()[:3],
        grad.data_ptr(),
        *grad.stride()[:3],
        sums.data_ptr(),
    )
    _call(library.vssm_depthwise_grad, struct)
    return sums.sum(0)


def deform(x: Tensor, numbers: Tensor) -> Tensor:
    """Sum what groups of channels find at nine moved points, see `vssm_kernels.deform`.

    Args:
        x: (B, H, W, D), not empty; float32, contiguous.
        numbers: (B, H, W, G, 27), float32, contiguous; G divides D.

    Returns:
        As x.
    """
    y = torch.empty_like(x)
    struct = Deform(*x.shape[:3], numbers.shape[3], x.shape[3] // numbers.shape[3], *_pointers(x, numbers, y))
    _call(_get_library().vssm_deform, struct)
    return y


def deform_grad(grad: Tensor, x: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Give the gradients of `deform`, of x and of the numbers. The same bits for every number of threads.

    Args:
        grad: Of the result; as x.
        x: See `deform`.
        numbers: See `deform`.
    """
    grad_x, grad_numbers = torch.zeros_like(x), torch.empty_like(numbers)
    sizes = (*x.shape[:3], numbers.shape[3], x.shape[3] // numbers.shape[3])
    struct = Deform(*sizes, *_pointers(x, numbers, None, grad, grad_x, grad_numbers))
    _call(_get_library().vssm_deform, struct)
    return grad_x, grad_numbers


def _row_strides(x: Tensor, groups: int) -> tuple[Tensor, int, int]:
    """`x` (..., [G,] D) with the strides of its rows and of its groups, copied where the rows have no one stride."""
    x = _columns(x)
    rows = list(zip(x.shape, x.stride(), strict=True))[: -2 if groups > 1 else -1]
    rows = [(n, s) for n, s in rows if n > 1] or [(1, x.shape[-1] * groups)]
    if any(s != n * inner for (_, s), (n, inner) in zip(rows, rows[1:], strict=False)):
        x = x.contiguous()
        return x, x.shape[-1] * groups, x.shape[-1]
    return x, rows[-1][1], x.stride(-2) if groups > 1 else 0


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    *,
    groups: int = 1,
    gate: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Normalise rows, LayerNorm's way, and gate them.

    Args:
        x: (..., D), or (..., G, D) with `groups` G above 1; not empty; float32 or a half dtype.
        weight: (D,) or (G D,).
        bias: As weight.
        eps: Added to the variance.
        out_dtype: Of the result.
        groups: Rows that have weights of their own.
        gate: Multiplies the result; as x.
        silu: Apply SiLU to the gate.

    Returns:
        As x, contiguous. Computed in float32.
    """
    library = _get_library()
    x, row, group = _row_strides(x, groups)
    weight, bias = _float32(weight), _float32(bias)
    gate, *gate_strides = (None, 0, 0) if gate is None else _row_strides(gate.to(out_dtype), groups)
    y = torch.empty(x.shape, dtype=out_dtype)
    channels = x.shape[-1]
    struct = Norm(
        *(x.numel() // channels, groups, channels, silu, _DTYPES[x.dtype], _DTYPES[out_dtype]),
        *(x.data_ptr(), row, group),
        *_pointers(weight, bias, gate),
        *(*gate_strides, y.data_ptr(), eps),
    )
    _call(library.vssm_norm, struct)
    return y
