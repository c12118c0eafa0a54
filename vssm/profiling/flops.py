"""FLOPs as the papers print them: fvcore's count plus the scans.

fvcore counts a multiply-add of a convolution or matrix product as one and a layer norm as five per element; the papers
add 9 N + 1 per (position, channel) of a selective scan (see `vssm_kernels.flops`). The two units are mixed in the
published figures, so they are mixed here.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from vssm_kernels import selective_scan_2d_flops, selective_scan_flops, ssd_flops
from vssm_kernels.scan_2d import sequence_lengths

from .._optional import require

__all__ = ["paper_flops"]


def _shape(value) -> list[int] | None:
    """Sizes of a traced tensor; None for an argument that was not given."""
    return value.type().sizes() if value.isCompleteTensor() else None


def _selective_scan(inputs, outputs) -> int:
    u, _, A, _, _, D, z, *_ = map(_shape, inputs)
    return selective_scan_flops(u[0], u[2], u[1], A[1], with_D=D is not None, with_z=z is not None)


def _selective_scan_2d(inputs, outputs) -> int:
    u, _, A, _, C, D, _, dt_weight = map(_shape, inputs[:8])
    routes = [value.toIValue() for value in inputs[8].node().inputs()]
    lengths = sequence_lengths(routes, u[1], u[2])
    rank = None if dt_weight is None else dt_weight[2]
    return selective_scan_2d_flops(u[0], lengths, u[-1], A[2], rank, C is not None, D is not None)


def _ssd(inputs, outputs) -> int:
    x, _, _, B, _, D, *_ = map(_shape, inputs)
    return ssd_flops(*x, B[3], with_D=D is not None)


def _attention(inputs, outputs) -> int:
    q, k, v = map(_shape, inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # its two matrix products; fvcore skips the fused op


def paper_flops(
    model: nn.Module, input_size: Sequence[int] = (3, 224, 224), uncounted: Sequence[str] | None = None
) -> int:
    """Operations of one forward pass over one image, counted as in the papers' tables.

    Where an official counter is known to give another number than the operations that run here, the module concerned
    says so: its `paper_flops_offset(x)`, of its first input, is added.

    Args:
        model: any model that takes images (1, C, H, W); counted in eval mode, left in the mode it was in.
        input_size: (C, H, W).
        uncounted: operators to leave out. A paper leaves out what its code has in a form that fvcore does not know;
            when None, the model's class says what (`uncounted_operators`), if anything.

    Returns:
        The count; divide by 1e9 for the GFLOPs of a table.

    Raises:
        ImportError: fvcore is not installed (the extra [profile]).
    """
    fvcore = require("fvcore.nn", "profile")
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device)
    offset = 0

    def add_offset(module: nn.Module, inputs: tuple, output) -> None:
        nonlocal offset
        offset += module.paper_flops_offset(inputs[0])

    hooks = [m.register_forward_hook(add_offset) for m in model.modules() if hasattr(m, "paper_flops_offset")]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            analysis = fvcore.FlopCountAnalysis(model, image)
            analysis.set_op_handle("vssm::selective_scan", _selective_scan)
            analysis.set_op_handle("vssm::selective_scan_2d", _selective_scan_2d)
            analysis.set_op_handle("vssm::ssd", _ssd)
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
            # fvcore counts a pooling layer one per input element; over a channels-last map the pool is a mean.
            analysis.set_op_handle("aten::mean", lambda inputs, outputs: math.prod(_shape(inputs[0])))
            if uncounted is None:
                uncounted = getattr(model, "uncounted_operators", ())
            for name in uncounted:
                analysis.set_op_handle(name, lambda inputs, outputs: 0)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            return int(analysis.total()) + int(offset)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
