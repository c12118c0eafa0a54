"""Let fvcore count the scans: a plain `FlopCountAnalysis(model, x)` of a user then knows our operators."""

from types import ModuleType

import torch

from vssm_kernels import neighborhood_attention_macs, selective_scan_2d_flops, selective_scan_flops, ssd_flops
from vssm_kernels.after_import import call_after_import
from vssm_kernels.routes import map_rank, sequence_lengths

__all__ = ["HANDLES", "offer_handles", "traced_shape"]


def traced_shape(value: torch._C.Value) -> list[int] | None:
    """Sizes of a traced tensor; None for an argument that was not given."""
    return value.type().sizes() if value.isCompleteTensor() else None


def _named(op: torch._ops.OpOverload, inputs) -> dict[str, torch._C.Value]:
    """The traced inputs of one of our operators by name; a trace holds all of them, defaults too."""
    return dict(zip((argument.name for argument in op._schema.arguments), inputs, strict=True))


def _selective_scan(inputs, outputs) -> int:
    given = _named(torch.ops.vssm.selective_scan.default, inputs)
    u, A, D, z = (traced_shape(given[name]) for name in ("u", "A", "D", "z"))
    return selective_scan_flops(u[0], u[2], u[1], A[1], with_D=D is not None, with_z=z is not None)


def _selective_scan_2d(inputs, outputs) -> int:
    given = _named(torch.ops.vssm.selective_scan_2d.default, inputs)
    u, A, C, D, dt_weight = (traced_shape(given[name]) for name in ("u", "A", "C", "D", "dt_weight"))
    routes = [value.toIValue() for value in given["routes"].node().inputs()]
    lengths = sequence_lengths(routes, *u[1 : 1 + map_rank(routes)])
    rank = None if dt_weight is None else dt_weight[2]
    return selective_scan_2d_flops(u[0], lengths, u[-1], A[2], rank, C is not None, D is not None)


def _ssd(inputs, outputs) -> int:
    given = _named(torch.ops.vssm.ssd.default, inputs)
    x, B, D = (traced_shape(given[name]) for name in ("x", "B", "D"))
    return ssd_flops(*x, B[3], with_D=D is not None)


def _attention_part(given: dict[str, torch._C.Value], head_dims: str) -> int:
    """Of the maps named; to the product with the keys NATTEN's counter adds one for each pair and head."""
    shapes = {name: traced_shape(given[name]) for name in head_dims}
    window = given["kernel_size"].toIValue() or [value.toIValue() for value in given["kernel_size"].node().inputs()]
    channels = sum(shape[-1] for shape in shapes.values()) + ("q" in shapes)
    return neighborhood_attention_macs(*shapes[head_dims[0]][:-1], channels, 0, window)


def _neighborhood_attention(inputs, outputs) -> int:
    return _attention_part(_named(torch.ops.vssm.neighborhood_attention.default, inputs), "qv")


def _neighborhood_weights(inputs, outputs) -> int:
    return _attention_part(_named(torch.ops.vssm.neighborhood_weights.default, inputs), "q")


def _neighborhood_sum(inputs, outputs) -> int:
    return _attention_part(_named(torch.ops.vssm.neighborhood_sum.default, inputs), "v")


# fvcore's handles, by operator: functions of the traced inputs and outputs.
HANDLES = {
    "vssm::selective_scan": _selective_scan,
    "vssm::selective_scan_2d": _selective_scan_2d,
    "vssm::ssd": _ssd,
    "vssm::neighborhood_attention": _neighborhood_attention,
    "vssm::neighborhood_weights": _neighborhood_weights,
    "vssm::neighborhood_sum": _neighborhood_sum,
}


def _add_handles(module: ModuleType) -> None:
    for name, handle in HANDLES.items():
        module._DEFAULT_SUPPORTED_OPS.setdefault(name, handle)


def offer_handles() -> None:
    """Add the handles to fvcore's own when it is imported, or now if it has been already."""
    call_after_import("fvcore.nn.flop_count", _add_handles)
