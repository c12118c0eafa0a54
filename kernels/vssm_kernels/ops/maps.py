"""The ops that lay a map out in sequences and back, for scans that do not walk the map themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import routes as tables
from ..routes import Routes, check_code, encode_routes, map_rank, sequence_lengths
from .registration import register

__all__ = ["read_map", "write_map"]


def _check(op: str, x: Tensor, code: list[int], size: Sequence[int], dims: int) -> tuple[int, int]:
    """Length and number of the sequences."""
    if x.dim() < dims:
        raise ValueError(f"{op}: at least {dims} dimensions are needed, got shape {tuple(x.shape)}")
    lengths = sequence_lengths(code, *size)
    if any(length != lengths[0] for length in lengths):
        text = " x ".join(map(str, size))
        raise ValueError(f"{op}: sequences must be of one length, got {lengths} on a map of {text}")
    return lengths[0], len(lengths)


def _check_read(x: Tensor, routes: list[int], per_sequence: bool) -> tuple[int, int]:
    check_code("read_map", routes)
    rank = map_rank(routes)
    length, count = _check("read_map", x, routes, x.shape[1 : 1 + rank], rank + (2 if per_sequence else 1))
    if per_sequence and x.shape[1 + rank] != count:
        raise ValueError(f"read_map: x must have {count} sequences, got shape {tuple(x.shape)}")
    return length, count


def _check_write(y: Tensor, routes: list[int], size: Sequence[int]) -> int:
    check_code("write_map", routes)
    length, count = _check("write_map", y, routes, size, 3)
    if y.shape[1] != length or y.shape[2] != count:
        raise ValueError(f"write_map: y must hold {length} positions of {count} sequences, got {tuple(y.shape)}")
    return count


def _read(x: Tensor, routes: list[int], per_sequence: bool) -> Tensor:
    _check_read(x, routes, per_sequence)
    return tables.read_map(x, routes, per_sequence)


def _read_fake(x, routes, per_sequence) -> Tensor:
    length, count = _check_read(x, routes, per_sequence)
    return x.new_empty((x.shape[0], length, count, *x.shape[map_rank(routes) + (2 if per_sequence else 1) :]))


def _write(y: Tensor, routes: list[int], height: int, width: int, merge: bool, outer: Sequence[int]) -> Tensor:
    _check_write(y, routes, (*outer, height, width))
    return tables.write_map(y, routes, *outer, height, width, merge=merge).contiguous()


def _write_fake(y, routes, height, width, merge, outer) -> Tensor:
    count = _check_write(y, routes, (*outer, height, width))
    return y.new_empty((y.shape[0], *outer, height, width, *(() if merge else (count,)), *y.shape[3:]))


_read_op = register("read_map(Tensor x, int[] routes, bool per_sequence=False) -> Tensor", _read, _read_fake)
_write_op = register(
    "write_map(Tensor y, int[] routes, SymInt height, SymInt width, bool merge=True, SymInt[] outer=[]) -> Tensor",
    _write,
    _write_fake,
)


def _read_setup(ctx, inputs, output):
    x, ctx.routes, ctx.per_sequence = inputs
    ctx.size = x.shape[1 : 1 + map_rank(ctx.routes)]


def _read_backward(ctx, grad):
    *outer, height, width = ctx.size
    return torch.ops.vssm.write_map(grad, ctx.routes, height, width, not ctx.per_sequence, outer), None, None


def _write_setup(ctx, inputs, output):
    _, ctx.routes, _, _, ctx.merge, _ = inputs


def _write_backward(ctx, grad):
    return torch.ops.vssm.read_map(grad, ctx.routes, not ctx.merge), None, None, None, None, None


_read_op.register_autograd(_read_backward, setup_context=_read_setup)
_write_op.register_autograd(_write_backward, setup_context=_write_setup)


def read_map(x: Tensor, routes: Routes, per_sequence: bool = False) -> Tensor:
    """Read a channels-last map along K sequences of equal length L.

    Letters: Bt batch, H x W map, K sequences (entries of `routes`), L positions a sequence.

    Args:
        x: (Bt, H, W, ...) read by all sequences, or (Bt, H, W, K, ...) with `per_sequence`. Any dtype and strides. Maps
            have as many dimensions as the routes say.
        routes: One entry a sequence: a `Route`, or several joined.
        per_sequence: Whether each sequence reads values of its own.

    Returns:
        (Bt, L, K, ...). The gradient comes by `write_map`.

    Raises:
        ValueError: The sequences differ in length on this map, or the shape does not fit.
    """
    return torch.ops.vssm.read_map(x, encode_routes(routes), per_sequence)


def write_map(
    y: Tensor, routes: Routes, height: int, width: int, merge: bool = True, outer: Sequence[int] = ()
) -> Tensor:
    """Put K sequences of equal length L back on their channels-last map, summed where they meet.

    Letters: as in `read_map`; this is its adjoint.

    Args:
        y: (Bt, L, K, ...). Any dtype and strides.
        routes: As read.
        height: H.
        width: W.
        merge: Sum the sequences, in order; else only the routes joined in each.
        outer: Sizes of the map's dimensions before the rows: (D,) for routes over a volume.

    Returns:
        (Bt, *outer, H, W, ...), or (Bt, *outer, H, W, K, ...) with merge=False. Pixels that no route visits are zero.

    Raises:
        ValueError: The sequences differ in length on this map, or the shape does not fit.
    """
    return torch.ops.vssm.write_map(y, encode_routes(routes), height, width, merge, list(outer))
