"""The selective scan of channels-last maps in Triton, forward and backward: nothing is laid out in sequences.

One program owns one image, one sequence and BLOCK_D channels, and walks it in tiles of RUN positions. The tile is that
of `selective_scan.py` with LANES = 1: channels lie side by side over the threads, which is how they lie in memory, and
each thread holds a run of positions in its registers, so the scan needs no exchange between threads at all.

Which pixels a route visits is a table on the device, four bytes a position next to hundreds that are read there; any
path will do, and kernels are not compiled again for other routes or sizes of map.

Results that are summed over routes (the merged map, the gradient of a shared input) go to one map for each set of
routes that visit no pixel twice, and the maps are summed afterwards: deterministic, without atomics. The four routes of
a cross scan make four such maps, the disjoint strided routes of an atrous scan only one, which is the result itself.

In the forward a program can own a route and its twin, which visits the same pixels in opposite order, and write the
sum of the two: u is read and a result written once a pair. The twin enters a tile from the other side, so a pass before
finds its states between tiles. That is more arithmetic for fewer bytes; `tune.py` times which is faster on a
device.

Where there are too few programs to fill a GPU (small batches of large maps), sequences are cut into chunks of tiles. A
first pass makes the chunks' totals (the sum of the step sizes, which gives the decay; the state at the end; for the
backward the gradient at the start); every program of the passes after it starts from the totals of the chunks before
its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..scan_2d import scan_2d_bwd, scan_2d_fwd
from .launch import Blocks, check_dtypes, on_device_of
from .map_backward import scan_2d_bwd_kernel
from .map_form import Form, choose_map_form
from .map_launch import Launch, as_map, fits
from .map_tables import Walk
from .selective_scan import selective_scan_bwd, selective_scan_fwd

__all__ = ["selective_scan_2d_bwd", "selective_scan_2d_fwd", "selective_scan_bwd", "selective_scan_fwd"]


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
    blocks: Blocks | None = None,
    chunks: int | None = None,
    paired: bool = False,
) -> Tensor:
    """See `scan_2d.scan_2d_fwd`. `blocks` and `chunks` override the choice of tiles and of the two-pass form.

    A result that several routes are summed into is rounded to `out_dtype` once a route, before a sum in float32; once
    a pair of routes where they are `paired`.
    """
    tensors = (u, dt, A, B, C, D, delta_bias, dt_weight)
    if paired and not merge:
        raise ValueError("results that are kept apart cannot be paired")
    if not fits(code, u, dt, B, C):
        return scan_2d_fwd(selective_scan_fwd, *tensors, code, delta_softplus, merge, out_dtype)
    check_dtypes(**{name: x for name, x in (("u", u), ("dt", dt), ("B", B), ("C", C)) if x is not None})
    if blocks is None and chunks is None and not paired:

        def call(form: Form) -> Tensor:
            return selective_scan_2d_fwd(
                *tensors, code, delta_softplus, merge, out_dtype, form.blocks, None, form.paired
            )

        (blocks, paired), _ = choose_map_form(tensors, code, ("forward", out_dtype, merge), merge, call)
    launch = Launch(*tensors, code, delta_softplus, False, blocks, chunks, paired)
    walk = launch.walk
    maps, covered = (walk.maps, walk.maps_covered) if merge else (len(walk.table), walk.routes_covered)
    y = launch.scratch(*u.shape[:3], maps, launch.channels, dtype=out_dtype, zeros=not covered)
    with on_device_of(u):
        if paired:
            members, twins = walk.pairs
            edges = launch.scratch(launch.batch, launch.slots, walk.tiles, launch.states, launch.channels)
            launch.scan(edges=edges, members=twins)
            launch.scan(y=y, edges=edges, maps=maps, merge=merge, members=members, twins=twins)
        else:
            steps, ends, _ = launch.totals()
            launch.scan(y=y, steps=steps, ends=ends, maps=maps, merge=merge)
    return _sum_maps(y) if merge else y


def _sum_maps(maps: Tensor) -> Tensor:
    """(Bt, H, W, maps, D) summed over the maps; PyTorch sums halves in float32 and rounds once."""
    return maps.squeeze(3) if maps.shape[3] == 1 else maps.sum(3)


def _sum_columns(x: Tensor, walk: Walk, sequences: int, dtype: torch.dtype) -> Tensor:
    """(Bt, H, W, columns, C), a column a sequence or a route, to (Bt, H, W, K, C)."""
    if walk.columns != sequences:
        x = torch.stack([x[:, :, :, a:b].sum(3) for a, b in walk.routes], 3)
    return x.to(dtype)


def selective_scan_2d_bwd(
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
    blocks: Blocks | None = None,
    chunks: int | None = None,
) -> tuple[Tensor | None, ...]:
    """See `scan_2d.scan_2d_bwd`. The same bits in every run. `blocks` and `chunks` as in the forward."""
    tensors = (u, dt, A, B, C, D, delta_bias, dt_weight)
    if not fits(code, u, dt, B, C):
        return scan_2d_bwd(selective_scan_bwd, grad, *tensors, code, delta_softplus, merge)
    check_dtypes(grad=grad, **{name: x for name, x in (("u", u), ("dt", dt), ("B", B), ("C", C)) if x is not None})
    if blocks is None and chunks is None:

        def call(form: Form) -> tuple[Tensor | None, ...]:
            return selective_scan_2d_bwd(grad, *tensors, code, delta_softplus, merge, form.blocks)

        (blocks, _), _ = choose_map_form(tensors, code, ("backward", grad.dtype, merge), False, call)
    launch = Launch(*tensors, code, delta_softplus, True, blocks, chunks)
    walk, shape, sequences = launch.walk, u.shape[:3], launch.sequences
    channels, states, rank = launch.channels, launch.states, launch.rank
    grad, grad_stride = as_map(grad)
    edges = None
    if walk.tiles > 1:
        edges = launch.scratch(launch.batch, sequences, walk.tiles, states, channels)

    def columns(*outer: int, last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return launch.scratch(*outer, *shape, walk.columns, last, dtype=dtype, zeros=not walk.columns_covered)

    def parameter(like: Tensor | None, *last: int) -> Tensor | None:
        return None if like is None else launch.scratch(launch.batch, launch.chunks, sequences, *last, channels)

    if launch.own_input:
        grad_u = columns(last=channels, dtype=u.dtype)
    else:
        grad_u = launch.scratch(*shape, walk.maps, channels, dtype=u.dtype, zeros=not walk.maps_covered)
    low_rank = launch.dt_is_low_rank
    dt_dtype = dt.dtype if dt_weight is None else torch.float32  # of the gradient of the step size in full
    grad_dt = columns(launch.d_blocks, last=rank) if low_rank else columns(last=channels, dtype=dt_dtype)
    grad_B = columns(launch.d_blocks, last=states)
    grad_C = None if C is None else columns(launch.d_blocks, last=states)
    grad_A, grad_D, grad_bias = parameter(A, states), parameter(D), parameter(delta_bias)
    grad_weight = parameter(dt_weight, rank) if low_rank else None
    with on_device_of(u):
        steps, ends, starts = launch.totals(grad, grad_stride)
        if edges is not None:
            launch.scan(edges=edges, steps=steps, ends=ends)
        scan_2d_bwd_kernel[launch.grid](
            grad,
            *launch.maps,
            edges,
            steps,
            starts,
            grad_u,
            grad_dt,
            grad_A,
            grad_B,
            grad_C,
            grad_D,
            grad_bias,
            grad_weight,
            walk.order,
            walk.table,
            walk.first_route,
            sequences,
            channels,
            states,
            rank,
            walk.columns if launch.own_input else walk.maps,
            walk.columns,
            *launch.sizes(),
            *grad_stride,
            *launch.strides,
            OWN_INPUT=launch.own_input,
            **launch.constants,
        )

    def of_blocks(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else _sum_columns(x.sum(0), walk, sequences, dtype)

    def of_images(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.sum((0, 1))

    if low_rank:
        grad_dt, grad_weight = of_blocks(grad_dt, dt.dtype), of_images(grad_weight).mT.contiguous()
    else:
        grad_dt = _sum_columns(grad_dt, walk, sequences, dt_dtype)
        if dt_weight is not None:
            grad_dt, grad_weight = _unexpand(grad_dt, dt, dt_weight)
    if launch.own_input:
        grad_u = _sum_columns(grad_u, walk, sequences, u.dtype)
    else:
        grad_u = _sum_maps(grad_u)
    return (
        grad_u,
        grad_dt,
        of_images(grad_A).mT.contiguous(),
        of_blocks(grad_B, B.dtype),
        of_blocks(grad_C, B.dtype),
        of_images(grad_D),
        of_images(grad_bias),
        grad_weight,
    )


def _unexpand(grad: Tensor, dt: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the two arguments of `expand`."""
    shape = grad.shape[:3]
    grad = grad.flatten(0, 2).transpose(0, 1)  # (K, Bt H W, D)
    low_rank = dt.flatten(0, 2).transpose(0, 1).float()
    grad_dt = torch.bmm(grad, weight.float()).to(dt.dtype).transpose(0, 1).unflatten(0, shape).contiguous()
    return grad_dt, torch.bmm(grad.mT, low_rank)
