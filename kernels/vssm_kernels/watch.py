"""Whether something looks on while a model runs, so that its layers have to run as they are."""

import os

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from . import cpu_library

__all__ = ["FLOATS", "is_compiled_for_here", "is_followed", "is_transformed", "runs_here", "unwatched"]

# What the compiled library takes.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def is_transformed() -> bool:
    """Whether a transform of `torch.func`, or forward mode, is under way."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def is_followed() -> bool:
    """Whether something but autograd records, compiles, transforms or traces what is computed now."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed()
        or bool(_get_current_dispatch_mode_stack())
        or bool(torch.overrides._get_current_function_mode_stack())
    )


def unwatched() -> bool:
    """Whether nothing records, traces or differentiates what is computed now."""
    return not (torch.is_grad_enabled() or is_followed() or nn.modules.module._has_any_global_hook())


def is_compiled_for_here() -> bool:
    """Whether `torch.compile` follows inference: what it compiles runs in this process, and may hold ops of ours."""
    exporting = getattr(torch.compiler, "is_exporting", None)  # PyTorch 2.7
    return (
        torch.compiler.is_dynamo_compiling()
        and exporting is not None
        and not exporting()
        and not torch.is_grad_enabled()
    )


@torch.compiler.assume_constant_result
def _has_library() -> bool:
    return os.environ.get("VSSM_BACKEND", "auto") in ("auto", "cpp") and cpu_library.unavailable_reason() is None


def runs_here(*tensors: Tensor | None) -> bool:
    """Whether the library takes these tensors."""
    for x in tensors:
        if x is not None and not (type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.dtype in FLOATS and x.numel()):
            return False
    return _has_library()
