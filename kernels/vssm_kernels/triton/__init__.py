"""The Triton backends. triton may be absent and is slow to import: only the modules with kernels do so.

The 2-D scan times a few forms of itself at the first call of a kind, which takes seconds, and keeps the result in
Triton's cache directory. `VSSM_TRITON_AUTOTUNE=0` takes the default form instead, and so does
`torch.use_deterministic_algorithms(True)`: other forms add in another order.
"""

import os

import torch


def unavailable_reason(device: torch.device) -> str | None:
    """Why the Triton kernels cannot take tensors on `device`, as one sentence; None when they can."""
    # Triton decides when a kernel is decorated; the same words count as "on" there.
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    if not interpreted and device.type not in ("cuda", "xpu"):
        return (
            f"The Triton kernels need a CUDA, ROCm or XPU device, not {device.type} "
            "(set TRITON_INTERPRET=1 before the first use to run them, slowly, on a CPU)."
        )
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"The Triton kernels need the package triton, which cannot be imported ({error}): pip install triton."
    return None
