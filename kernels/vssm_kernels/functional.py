"""The forward of every op without a loop over positions and without writing in place: what an exporter needs.

A file for another runtime holds PyTorch's own operators only. Sizes may be symbolic, so the number of steps never
depends on one.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import chunked
from .after_import import call_after_import
from .neighborhood.tiles import attention_in_one_graph
from .ops import arguments, gated_scan
from .reference import compute_dtype
from .routes import on_flat_maps, read_map_by_slices, write_map_by_slices
from .scan_2d import scan_2d_fwd

__all__ = ["MAX_LENGTH", "decompositions", "linear_scan", "selective_scan_fwd"]

# A recurrence is cut into chunks of this many steps. The chunks' ends are a recurrence of their own, solved by
# doubling: few operators, on an eighth of the data.
_STEPS = 8
# For a length that is not known.
_DOUBLINGS = 15
MAX_LENGTH = _STEPS * (2**_DOUBLINGS - 2)  # 512 x 512 positions, less two chunks


def linear_scan(decay: Tensor, x: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + x_t along the last dimension, h_{-1} = 0. (..., L) each.

    Only products of decays are formed, never a quotient or the exponential of a positive sum. A symbolic L that turns
    out longer than `MAX_LENGTH` is an error of shapes that do not fit when the program runs.
    """
    length = x.shape[-1]
    known = isinstance(length, int)
    # At least two where it is not known: a symbolic size that may be one makes two programs of one.
    chunks = -(-length // _STEPS) if known else length // _STEPS + 2

    def cut(x: Tensor) -> tuple[Tensor, ...]:
        """(..., L) to `_STEPS` tensors (..., chunks), zeros at the end."""
        padded = F.pad(x, (0, chunks * _STEPS - length))
        return padded.unflatten(-1, (chunks, _STEPS)).movedim(-1, 0).contiguous().unbind(0)

    h: list[Tensor] = []
    since_start: list[Tensor] = []
    for decay_t, x_t in zip(cut(decay), cut(x), strict=True):
        h.append(decay_t * h[-1] + x_t if h else x_t)
        since_start.append(decay_t * since_start[-1] if since_start else decay_t)
    ends = _scan_by_doubling(since_start[-1], h[-1], (chunks - 1).bit_length() if known else None)
    states = torch.stack(h) + torch.stack(since_start) * _shift(ends, 1)
    return states.movedim(0, -1).flatten(-2)[..., :length]


def _shift(x: Tensor, count: int) -> Tensor:
    """Move (..., L) back by `count` positions, zeros in front; as long as before."""
    return F.pad(x, (count, 0))[..., : x.shape[-1]]


def _scan_by_doubling(decay: Tensor, h: Tensor, doublings: int | None) -> Tensor:
    """As `linear_scan`; after n doublings every position knows the 2^n before it. None: the length is symbolic."""
    if doublings is None:
        # A program that is to take any length cannot raise an error, but it can add this to a tensor of that length.
        doublings, length = _DOUBLINGS, h.shape[-1]
        h = h + F.pad(h.new_zeros(1).expand(length), (0, 2**doublings - length))[:length]
    for n in range(doublings):
        h = h + decay * _shift(h, 2**n)
        if n + 1 < doublings:
            decay = decay * _shift(decay, 2**n)
    return h


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
    """See `reference.selective_scan_fwd`. All states of all positions are held at once, Bt M N L numbers."""
    dtype, out_dtype, groups = compute_dtype(u), out_dtype or u.dtype, B.shape[1]

    def grouped(x: Tensor, dim: int) -> Tensor:
        """M channels to (G, M/G)."""
        return x.to(dtype).unflatten(dim, (groups, -1))

    u, step, A = grouped(u, 1), grouped(delta, 1), grouped(A, 0)
    B, C = B.to(dtype)[:, :, None], C.to(dtype)[:, :, None]
    if delta_bias is not None:
        step = step + grouped(delta_bias, 0)[..., None]
    if delta_softplus:
        step = F.softplus(step)
    h = linear_scan(torch.exp(step[:, :, :, None] * A[..., None]), (step * u)[:, :, :, None] * B)
    y = (h * C).sum(3)
    if D is not None:
        y = y + grouped(D, 0)[..., None] * u
    return y.flatten(1, 2).to(out_dtype), h[..., -1].flatten(1, 2)


def _scan(*, backend, **inputs):
    return gated_scan(selective_scan_fwd, **inputs)


def _scan_2d(*, u, routes, out_dtype, backend, **inputs):
    scan = on_flat_maps(functools.partial(scan_2d_fwd, selective_scan_fwd), ("u", "dt", "B", "C"))
    return scan(u=u, code=routes, out_dtype=out_dtype or u.dtype, **inputs)


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
