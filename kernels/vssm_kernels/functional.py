"""The forward of every op without a loop over positions and without writing in place: what an exporter needs.

A file for another runtime holds PyTorch's own operators only. Sizes may be symbolic, so the number of steps never
depends on one.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import torch

from . import chunked
from .after_import import call_after_import
from .mamba import mamba_inner_fwd
from .neighborhood.tiles import attention_in_one_graph
from .one_graph import MAX_LENGTH, selective_scan_2d_fwd, selective_scan_fwd
from .ops import arguments, gated_scan
from .routes import on_flat_maps, read_map_by_slices, write_map_by_slices

__all__ = ["MAX_LENGTH", "decompositions", "selective_scan_fwd"]


def _scan(*, backend, **inputs):
    return gated_scan(selective_scan_fwd, **inputs)


def _scan_2d(*, u, routes, out_dtype, backend, **inputs):
    scan = on_flat_maps(selective_scan_2d_fwd, ("u", "dt", "B", "C"))
    return scan(u=u, code=routes, out_dtype=out_dtype or u.dtype, **inputs)


def _mamba(*, backend, **inputs):
    return mamba_inner_fwd(functools.partial(_scan_2d, backend=backend), **inputs)


def _ssd(*, backend, **inputs):
    return chunked.ssd_fwd(**inputs)


def _read_map(*, x, routes, per_sequence):
    return read_map_by_slices(x, routes, per_sequence)


def _write_map(*, y, routes, height, width, merge, outer):
    return write_map_by_slices(y, routes, *outer, height, width, merge=merge)


def _attention(*, q, scale, backend, **inputs):
    return attention_in_one_graph(q, scale=q.shape[-1] ** -0.5 if scale is None else scale, **inputs)


def _weights(*, q, **inputs):
    return q.new_empty(q.shape[0], 0)  # a program computes them where it sums


def _sum(*, weights, q, k, v, **inputs):
    dtype = torch.promote_types(q.dtype, v.dtype)
    return _attention(q=q.to(dtype), k=k.to(dtype), v=v.to(dtype), **inputs).to(v.dtype)


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """Each op's forward as PyTorch's own operators, for `torch.export.ExportedProgram.run_decompositions`.

    The program then needs nothing of this package, and `torch.onnx.export` takes it. Sizes that were exported as
    dynamic stay so, up to `MAX_LENGTH` positions a sequence, for raster routes.

    Returns:
        Operator to function of the operator's arguments, positional or by keyword; the schema's defaults hold.
    """
    ops = torch.ops.vssm
    forms: dict[torch._ops.OpOverload, Callable] = {
        ops.selective_scan.default: _scan,
        ops.selective_scan_2d.default: _scan_2d,
        ops.mamba_inner.default: _mamba,
        ops.ssd.default: _ssd,
        ops.neighborhood_attention.default: _attention,
        ops.neighborhood_weights.default: _weights,
        ops.neighborhood_sum.default: _sum,
        ops.read_map.default: _read_map,
        ops.write_map.default: _write_map,
    }

    def by_keyword(op: torch._ops.OpOverload, form: Callable) -> Callable:
        return lambda *args, **kwargs: form(**arguments(op, args, kwargs))

    return {op: by_keyword(op, form) for op, form in forms.items()}


def _offer_decompositions(exporter: ModuleType) -> None:
    """Add the forms to those that `torch.onnx.export(model, inputs, dynamo=True)` applies.

    They are not put into PyTorch's global table: `torch.compile` would take them for its own, and PyTorch asks that
    table for the shapes of results where sizes are symbolic.
    """
    create = exporter.create_onnx_friendly_decomposition_table

    @functools.wraps(create)
    def create_with_ours(*args, **kwargs):
        return {**decompositions(), **create(*args, **kwargs)}

    vars(exporter)[create.__name__] = create_with_ours


call_after_import("torch.onnx._internal.exporter._decomp", _offer_decompositions)
