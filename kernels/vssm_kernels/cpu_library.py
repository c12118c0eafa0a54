"""Loads the compiled CPU library built from kernels/csrc, a plain C ABI that is reached through ctypes.

The library is optional: without a compiler at installation it is not there, and `unavailable_reason` says so. Nothing
is loaded before the first use.
"""

import ctypes
import sys
import threading
from pathlib import Path

import torch
from torch import Tensor

from .cpu_structs import Deform, Depthwise, DepthwiseGrad, Mamba, Neighborhood, Norm, Scan2d, Ssd
from .install import how_to_build

__all__ = [
    "ABI_VERSION",
    "DTYPES",
    "as_float32",
    "call",
    "get_library",
    "library_file",
    "pointers",
    "set_variant",
    "unavailable_reason",
    "variant",
]

ABI_VERSION = 8
_INSTALL = f"install a C++ compiler (GCC or Clang) and reinstall: {how_to_build()}"
if sys.platform == "win32":
    _INSTALL = "it is not built on Windows"
_HALVES = (torch.bfloat16, torch.float16)
# Numbered as in kernels/csrc/scan_args.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

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
    library.vssm_neighborhood.argtypes = [ctypes.POINTER(Neighborhood), ctypes.c_int]
    library.vssm_ssd.argtypes = [ctypes.POINTER(Ssd), ctypes.c_int]
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
    return get_library().vssm_variant().decode()


def set_variant(name: str = "") -> bool:
    """Pick the kernels of one instruction set (the best without a name), for tests; False where it cannot run."""
    return get_library().vssm_set_variant(name.encode()) == 0


def get_library() -> ctypes.CDLL:
    """Return the library.

    Raises:
        RuntimeError: It cannot be used; says what to do.
    """
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    return _library


def as_float32(x: Tensor | None) -> Tensor | None:
    """Return a tensor as the library reads it, float32 and contiguous.

    Raises:
        TypeError: It is not on the CPU, or of another dtype than float32, bfloat16 and float16.
    """
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


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Return where tensors lie in memory, None for None."""
    return [None if x is None else x.data_ptr() for x in tensors]


def call(function, *arguments) -> None:
    """Call a function of the library with as many threads as PyTorch takes.

    Raises:
        MemoryError: It could not have the memory that it works in.
    """
    if function(*arguments, torch.get_num_threads()) != 0:
        raise MemoryError("out of memory in the CPU library")
