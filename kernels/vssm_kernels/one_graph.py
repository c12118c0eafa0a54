"""The selective scans without a loop over positions and without writing in place: what exporters and transforms need.

Sizes may be symbolic, so the number of operators never depends on one. Channels come last, as in the models, so that a
step of all chunks is a copy of whole rows and a route a gather of rows.

Letters: Bt batch, K sequences, L positions, T steps of a chunk, c chunks, D channels, N states.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .reference import compute_dtype
from .routes import RouteTable, route_table
from .scan_2d import scan_2d_fwd

__all__ = ["MAX_LENGTH", "MOST_NUMBERS", "selective_scan_2d_fwd", "selective_scan_fwd"]

# For a length that is not known: the steps of a chunk, and how often the chunks' ends are doubled.
_STEPS, _DOUBLINGS = 8, 15
MAX_LENGTH = _STEPS * (2**_DOUBLINGS - 2)  # 512 x 512 positions, less two chunks
# Numbers of one item that are held at once in each tensor of states; more states are scanned one part after the other.
MOST_NUMBERS = 1 << 23


# --------------------------------------------------------------------------------------------------------------------
# the recurrence, on (Bt, K, T, c, D), or (Bt, K, T, c, N, D) where a channel has several states


def _chunks(length: int) -> tuple[int, int]:
    """Steps of a chunk, and chunks. Where the length is not known, one chunk too many at times, and at least two."""
    if not isinstance(length, int):
        return _STEPS, length // _STEPS + 2
    chunks = -(-length // math.ceil(math.sqrt(length / 2)))
    return -(-length // chunks), chunks


def _softplus(x: Tensor) -> Tensor:
    """As PyTorch's, of functions that runtimes compute on whole vectors; onnxruntime's own takes four times as long."""
    return torch.maximum(torch.log1p(torch.exp(x.clamp(max=80))), x)


def _shift(x: Tensor, count: int) -> Tensor:
    """Move the chunks of (Bt, K, 1, c, ...) back by `count`, zeros in front; as many as before."""
    chunks, others = x.shape[3], (0, 0) * (x.dim() - 4)
    if isinstance(chunks, int):
        return F.pad(x, (*others, count, -count))
    return F.pad(x, (*others, count, 0)).narrow(3, 0, chunks)  # there may be fewer than `count`


def _scan_by_doubling(decay: Tensor, h: Tensor) -> Tensor:
    """h_c += decay_c h_{c-1} over chunks; after n doublings every chunk knows the 2^n before it."""
    chunks = h.shape[3]
    if isinstance(chunks, int):
        doublings = (chunks - 1).bit_length()
    else:
        # A program that is to take any length cannot raise an error, but it can add this to a tensor of that length.
        doublings = _DOUBLINGS
        room = F.pad(h.new_zeros(1).expand(chunks), (0, 2**doublings - chunks))[:chunks]
        h = h + room.view(-1, *(1,) * (h.dim() - 4))
    for n in range(doublings):
        h = h + decay * _shift(h, 2**n)
        if n + 1 < doublings:
            decay = decay * _shift(decay, 2**n)
    return h


def _states(decay: Tensor, whole: Tensor, added: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + added_t, h_{-1} = 0; `whole` is the decay over each chunk, with one step.

    The chunks advance side by side, once for their ends alone and once from the states before them. Nothing but
    products of decays is formed, never a quotient or the exponential of a positive sum.
    """
    decays, inputs = decay.split(1, 2), added.split(1, 2)
    h = inputs[0]
    for decay_t, added_t in zip(decays[1:], inputs[1:], strict=True):
        h = decay_t * h + added_t
    h = _shift(_scan_by_doubling(whole, h), 1)
    states = []
    for decay_t, added_t in zip(decays, inputs, strict=True):
        h = decay_t * h + added_t
        states.append(h)
    return torch.cat(states, 2)


def _scan_chunks(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The scan of chunks: u and step (Bt, K, T, c, D), A (K, D, N), B and C (Bt, K, T, c, N), D and delta_bias (K, D).

    Returns:
        y (Bt, K, T, c, D), and the states in parts of some of the N, as `_states` has them.
    """

    def each(p: Tensor) -> Tensor:
        """A parameter (K, ...) for every position."""
        return p[:, None, None]

    if delta_bias is not None:
        step = step + each(delta_bias)
    if delta_softplus:
        step = _softplus(step)
    whole, added = step.sum(2, keepdim=True), step * u
    count, numbers = A.shape[-1], math.prod(size for size in u.shape[1:] if isinstance(size, int))
    size = max(1, min(count, MOST_NUMBERS // numbers))
    # One state has no dimension of its own: runtimes are best at few dimensions.
    step, whole, added = (x if size == 1 else x.unsqueeze(-2) for x in (step, whole, added))
    y = None if D is None else each(D) * u
    states = []
    for first in range(0, count, size):
        part = slice(first, first + size)
        rate = each(A[..., first] if size == 1 else A[..., part].mT)
        factor = B[..., part] if size == 1 else B[..., part, None]
        h = _states(torch.exp(step * rate), torch.exp(whole * rate), added * factor)
        if C is None:
            read = h if size == 1 else h.sum(-2)
        else:
            read = h * C[..., part] if size == 1 else (C[..., None, part] @ h).squeeze(-2)
        y = read if y is None else y + read
        states.append(h.unsqueeze(-2) if size == 1 else h)
    return y, states


# --------------------------------------------------------------------------------------------------------------------
# a sequence


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
    """See `reference.selective_scan_fwd`.

    A symbolic length that turns out longer than `MAX_LENGTH` is an error of shapes that do not fit when the program
    runs.
    """
    dtype, out_dtype, groups, length = compute_dtype(u), out_dtype or u.dtype, B.shape[1], u.shape[-1]
    steps, chunks = _chunks(length)

    def cut(x: Tensor) -> Tensor:
        """(Bt, K, C, L) to (Bt, K, T, c, C), zeros at the end."""
        padded = F.pad(x.to(dtype), (0, chunks * steps - length))
        return padded.unflatten(-1, (chunks, steps)).permute(0, 1, 4, 3, 2)

    def parameter(p: Tensor | None) -> Tensor | None:
        return None if p is None else p.to(dtype).unflatten(0, (groups, -1))

    y, states = _scan_chunks(
        *(cut(x.unflatten(1, (groups, -1))) for x in (u, delta)),
        parameter(A),
        cut(B),
        cut(C),
        parameter(D),
        parameter(delta_bias),
        delta_softplus,
    )
    y = y.permute(0, 1, 4, 3, 2).flatten(-2)[..., :length].flatten(1, 2)
    if isinstance(length, int):
        last = [h[:, :, (length - 1) % steps, (length - 1) // steps] for h in states]
    else:  # a program must not depend on the remainder
        last = [h.transpose(2, 3).flatten(2, 3)[:, :, :length][:, :, -1] for h in states]
    return y.to(out_dtype), torch.cat(last, -2).mT.flatten(1, 2)


# --------------------------------------------------------------------------------------------------------------------
# a map


class _Walk(NamedTuple):
    """Sequences of one length.

    Attributes:
        sequences: Their numbers, k of them.
        shape: (k, T, c), the steps in the order of the chunks.
        pixels: Rows of (H*W, ...) at these steps; behind the end of a sequence any.
        own: Rows of (H*W*K, ...), which holds something for every sequence.
    """

    sequences: list[int]
    shape: tuple[int, int, int]
    pixels: Tensor
    own: Tensor


def _places(count: int, length: int, device: torch.device) -> tuple[tuple[int, int, int], Tensor]:
    """The shape (k, T, c) of k sequences in chunks, and where in it each step (k, L) stands."""
    steps, chunks = _chunks(length)
    places = torch.arange(count * steps * chunks, device=device).view(count, steps, chunks)
    return (count, steps, chunks), places.mT.flatten(1)[:, :length]


def _walks(table: RouteTable, device: torch.device) -> tuple[list[_Walk], list[Tensor]]:
    """What the chunks read, and where each sequence's results stand: the walks' (k, T, c), one after the other."""
    lengths = table.lengths
    walks, rows, offset = [], [table.positions[:0].long()] * len(lengths), 0
    for length in dict.fromkeys(length for length in lengths if length):
        sequences = [k for k, other in enumerate(lengths) if other == length]
        shape, places = _places(len(sequences), length, device)
        pixels = torch.zeros(math.prod(shape), dtype=torch.long, device=device)
        own = torch.zeros_like(pixels)
        for k, place in zip(sequences, places, strict=True):
            start = table.starts[table.first_route[k]]
            pixels[place] = table.positions[start : start + length].long()
            own[place] = pixels[place] * len(lengths) + k
            rows[k] = place + offset
        walks.append(_Walk(sequences, shape, pixels, own))
        offset += len(pixels)
    return walks, rows


def _slots(table: RouteTable, rows: list[Tensor], pixels: int, merge: bool) -> tuple[list[Tensor], bool]:
    """The row that each pixel takes, for every slot, and whether all take one; else row 0 is one of zeros.

    A slot is a route; with `merge` it is the first visit of every pixel, its second, and so on.
    """
    slots = torch.full((len(table.starts) - 1, pixels), -1, device=table.positions.device)
    visits = torch.zeros_like(slots[0])
    for k, (first, last) in enumerate(pairwise(table.first_route)):
        for number in range(first, last):
            taken = table.route(number).long()
            start = table.starts[number] - table.starts[first]
            slots[visits[taken] if merge else number, taken] = rows[k][start : start + len(taken)]
            visits[taken] += 1
    if merge:
        slots = slots[: max(1, int(visits.max()))]
    complete = bool((slots >= 0).all())
    return list(slots if complete else slots + 1), complete


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
    """Compute the forward of `ops.selective_scan_2d`; sizes may be symbolic where routes are raster.

    Maps of other than two dimensions come flat, as in `scan_2d`.
    """
    batch, height, width, channels = u.shape[0], u.shape[1], u.shape[2], u.shape[-1]
    if not (isinstance(height, int) and isinstance(width, int)):
        return scan_2d_fwd(
            selective_scan_fwd, u, dt, A, B, C, D, delta_bias, dt_weight, code, delta_softplus, merge, out_dtype
        )
    dtype = compute_dtype(u)
    # Numbers, not computations: a tracer would record how the tables are made.
    with _disable_current_modes():
        table = route_table(code, height, width, device=u.device)
        walks, rows = _walks(table, u.device)
        slots, complete = _slots(table, rows, height * width, merge)
        if not merge:
            slots = [torch.stack(slots, 1).flatten()]
    # The row of zeros comes first.
    results = [] if complete else [u.new_zeros(batch, 1, channels, dtype=dtype)]
    for walk in walks:
        results.append(_scan_walk(walk, dtype, u, dt, A, B, C, D, delta_bias, dt_weight, delta_softplus).flatten(1, 3))
    joined = torch.cat(results, 1) if len(results) > 1 else results[0]
    y, *others = (joined.index_select(1, slot) for slot in slots)
    for other in others:
        y = y + other
    return y.unflatten(1, (height, width) if merge else (height, width, -1)).to(out_dtype)


def _scan_walk(
    walk: _Walk, dtype: torch.dtype, u, dt, A, B, C, D, delta_bias, dt_weight, delta_softplus: bool
) -> Tensor:
    """Results (Bt, k, T, c, D) of one walk."""

    def read(x: Tensor | None) -> Tensor | None:
        """(Bt, H, W, C), or (Bt, H, W, K, C), to (Bt, k, T, c, C)."""
        if x is None:
            return None
        rows = (
            x.flatten(1, 2).index_select(1, walk.pixels) if x.dim() == 4 else x.flatten(1, 3).index_select(1, walk.own)
        )
        return rows.unflatten(1, walk.shape).to(dtype)

    def select(p: Tensor | None) -> Tensor | None:
        if p is None:
            return None
        return (p if len(walk.sequences) == len(p) else torch.stack([p[k] for k in walk.sequences])).to(dtype)

    step = read(dt)
    if dt_weight is not None:
        step = (step.flatten(2, 3) @ select(dt_weight).mT).unflatten(2, walk.shape[1:])
    inputs = read(u), step, select(A), read(B), read(C), select(D), select(delta_bias)
    return _scan_chunks(*inputs, delta_softplus)[0]
