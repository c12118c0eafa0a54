"""The 2-D scan composed from a 1-D scan: read the map along its routes, scan, put the results back.

Every backend without a fused 2-D scan runs this. The projections are point-wise, so they come in computed once on the
map. Maps of other than two dimensions come flat, (1, P), with routes bound to their size, and are read as volumes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import compute_dtype
from .routes import Route, decode_routes, gather, map_size, route_length, scatter, sequence_lengths

__all__ = ["scan_2d_bwd", "scan_2d_fwd"]


class _Walk:
    """Gather and scatter for a set of sequences of equal length."""

    def __init__(self, sequences: list[list[Route]], indices: list[int], size: tuple[int, ...]):
        self.sequences, self.indices, self.size = sequences, indices, size
        self.lengths = [[route_length(r, *size) for r in sequences[k]] for k in indices]

    def channels_first(self, x: Tensor) -> Tensor:
        """(Bt, H, W, ...), the map perhaps flat, to (Bt, ..., *size)."""
        x = x.movedim((1, 2), (-2, -1))
        return x if len(self.size) == 2 else x.flatten(-2).unflatten(-1, self.size)

    def read(self, x: Tensor, per_sequence: bool) -> Tensor:
        """(Bt, H, W, C), or (Bt, H, W, K, C) with `per_sequence`, to (Bt, k, C, L)."""
        x = self.channels_first(x)
        if not per_sequence:
            x = x.contiguous()  # channels first once, so that every route below is a cheap copy of its last two dims
        parts = []
        for k in self.indices:
            x_k = x[:, k] if per_sequence else x
            routes = [gather(x_k, route) for route in self.sequences[k]]
            parts.append(routes[0] if len(routes) == 1 else torch.cat(routes, dim=-1))
        return torch.stack(parts, dim=1)

    def maps(self, x: Tensor):
        """(Bt, k, C, L) to one (Bt, C, H, W) map a route, with the number of its sequence."""
        for position, k in enumerate(self.indices):
            pieces = x[:, position].split(self.lengths[position], dim=-1)
            for route, piece in zip(self.sequences[k], pieces, strict=True):
                on_map = scatter(piece, route, *self.size)
                yield k, on_map if len(self.size) == 2 else on_map.flatten(-len(self.size)).unsqueeze(-2)


def _walks(code: Sequence[int], height: int, width: int) -> list[_Walk]:
    sequences = decode_routes(code)
    by_length: list[tuple[int, list[int]]] = []  # not a dict: lengths may be symbolic, which have no hash
    for k, length in enumerate(sequence_lengths(code, height, width)):
        if length:
            alike = next((indices for known, indices in by_length if known == length), None)
            if alike is None:
                by_length.append((length, [k]))
            else:
                alike.append(k)
    size = map_size(code, (height, width))
    return [_Walk(sequences, indices, size) for _, indices in by_length]


def _route_slots(code: Sequence[int]) -> list[range]:
    """For each sequence, the positions of its routes among all routes."""
    slots, start = [], 0
    for sequence in decode_routes(code):
        slots.append(range(start, start + len(sequence)))
        start += len(sequence)
    return slots


def _select(p: Tensor | None, indices: list[int]) -> Tensor | None:
    """Rows of a per-sequence parameter, without a copy when all are wanted.

    One by one, here and in `_put`: a list as an index becomes a tensor on the host, and a GPU would wait for its copy.
    """
    return p if p is None or len(indices) == len(p) else torch.stack([p[k] for k in indices])


def _put(target: Tensor, indices: list[int], rows: Tensor) -> None:
    for row, k in enumerate(indices):
        target[k] = rows[row]


def _flat(p: Tensor | None) -> Tensor | None:
    return None if p is None else p.flatten(0, 1)


class _Inputs:
    """The arguments of the 1-D scan for one walk: (Bt, k*D, L) and (Bt, k, N, L), sequences as groups."""

    def __init__(self, walk: _Walk, u, dt, A, B, C, D, delta_bias, dt_weight, delta_softplus):
        k = walk.indices
        self.u = walk.read(u, u.dim() == 5)
        self.dt = walk.read(dt, True)
        self.weight = _select(dt_weight, k)
        delta = self.dt
        if dt_weight is not None:  # in float32 or better, whatever the inputs are: steps decide how fast states decay
            dtype = compute_dtype(u)
            delta = torch.matmul(self.weight.to(dtype), self.dt.to(dtype))
        self.B = walk.read(B, True)
        self.C = torch.ones_like(self.B) if C is None else walk.read(C, True)
        self.arguments = {
            "u": self.u.flatten(1, 2),
            "delta": delta.flatten(1, 2),
            "A": _flat(_select(A, k)),
            "B": self.B,
            "C": self.C,
            "D": _flat(_select(D, k)),
            "delta_bias": _flat(_select(delta_bias, k)),
            "delta_softplus": delta_softplus,
        }


def scan_2d_fwd(
    scan: Callable,
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
    """Compute the forward of `ops.selective_scan_2d`; `scan` is a backend's `selective_scan_fwd`."""
    height, width, channels = u.shape[1], u.shape[2], u.shape[-1]
    slots = _route_slots(code)
    sum_dtype = compute_dtype(u)
    maps: dict[int, Tensor] = {}  # by slot, or all in slot 0; nothing is written in place, for exporters
    for walk in _walks(code, height, width):
        inputs = _Inputs(walk, u, dt, A, B, C, D, delta_bias, dt_weight, delta_softplus)
        y, _ = scan(**inputs.arguments, out_dtype=sum_dtype)
        taken: dict[int, int] = {}
        for k, piece in walk.maps(y.unflatten(1, (len(walk.indices), channels))):
            if merge:
                maps[0] = maps[0] + piece if maps else piece
            else:
                maps[slots[k][taken.get(k, 0)]] = piece
                taken[k] = taken.get(k, 0) + 1
    count = 1 if merge else slots[-1].stop
    if len(maps) < count:
        unvisited = u.new_zeros(u.shape[0], channels, height, width, dtype=sum_dtype)
        maps = {slot: maps.get(slot, unvisited) for slot in range(count)}
    out = maps[0] if merge else torch.stack([maps[slot] for slot in range(count)], dim=1)
    return out.movedim((-2, -1), (1, 2)).to(out_dtype).contiguous()


def _read_slots(walk: _Walk, grad: Tensor, slots: list[range]) -> Tensor:
    """The gradient of unmerged results along a walk: (Bt, H, W, routes, D) to (Bt, k, D, L)."""
    grad = walk.channels_first(grad)
    parts = []
    for k in walk.indices:
        routes = zip(slots[k], walk.sequences[k], strict=True)
        parts.append(torch.cat([gather(grad[:, slot], route) for slot, route in routes], dim=-1))
    return torch.stack(parts, dim=1)


def scan_2d_bwd(
    scan_bwd: Callable,
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
    """Compute the gradients of u, dt, A, B, C, D, delta_bias, dt_weight; the sequences are read from the map again."""
    height, width, channels = u.shape[1], u.shape[2], u.shape[-1]
    slots = _route_slots(code)
    sum_dtype = compute_dtype(u)

    def zeros(x: Tensor | None, dtype: torch.dtype = sum_dtype) -> Tensor | None:
        return None if x is None else torch.zeros(x.shape, dtype=dtype, device=x.device)

    # u as (Bt, [K,] D, H, W); the rest as (Bt, K, C, H, W): channels first, as the walks yield them
    grad_u, grad_dt, grad_B, grad_C = (None if x is None else zeros(x.movedim((1, 2), (-2, -1))) for x in (u, dt, B, C))
    grad_A, grad_D, grad_bias, grad_weight = (zeros(p) for p in (A, D, delta_bias, dt_weight))
    for walk in _walks(code, height, width):
        count = len(walk.indices)
        inputs = _Inputs(walk, u, dt, A, B, C, D, delta_bias, dt_weight, delta_softplus)
        grad_y = walk.read(grad, False) if merge else _read_slots(walk, grad, slots)
        gradients = scan_bwd(grad_y=grad_y.flatten(1, 2), grad_last_state=None, **inputs.arguments)
        du, ddelta, dA, dB, dC, dD, dbias = gradients
        du, ddelta = du.unflatten(1, (count, channels)), ddelta.unflatten(1, (count, channels))
        if dt_weight is not None:
            weight = inputs.weight.to(sum_dtype)
            ddelta = ddelta.to(sum_dtype)
            dweight = torch.einsum("bkdl,bkrl->kdr", ddelta, inputs.dt.to(sum_dtype))
            ddelta = torch.matmul(weight.transpose(-1, -2), ddelta)
            _put(grad_weight, walk.indices, dweight)
        for target, piece in ((grad_A, dA), (grad_D, dD), (grad_bias, dbias)):
            if target is not None:
                _put(target, walk.indices, piece.unflatten(0, (count, channels)))
        for k, piece in walk.maps(du):
            (grad_u if u.dim() == 4 else grad_u[:, k]).add_(piece)
        for target, values in ((grad_dt, ddelta), (grad_B, dB), (grad_C, dC)):
            if target is not None:
                for k, piece in walk.maps(values):
                    target[:, k] += piece

    def to_map(g: Tensor | None, like: Tensor | None) -> Tensor | None:
        return None if g is None else g.movedim((-2, -1), (1, 2)).to(like.dtype).contiguous()

    return (
        to_map(grad_u, u),
        to_map(grad_dt, dt),
        grad_A,
        to_map(grad_B, B),
        to_map(grad_C, C),
        grad_D,
        grad_bias,
        grad_weight,
    )
