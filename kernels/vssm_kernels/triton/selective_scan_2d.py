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

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..scan_2d import scan_2d_bwd, scan_2d_fwd
from .launch import Blocks, Form, check_dtypes, on_device_of
from .map_backward import scan_2d_bwd_kernel
from .map_form import choose_map_form
from .map_launch import Launch, choose_blocks_2d, fits
from .map_plan import kept_launch, kind_of_call
from .map_tables import Walk
from .selective_scan import selective_scan_bwd, selective_scan_fwd
from .tune import forms_are_timed

__all__ = ["selective_scan_2d_bwd", "selective_scan_2d_fwd", "selective_scan_bwd", "selective_scan_fwd"]


def _launches(
    tensors: tuple[Tensor | None, ...],
    code: Sequence[int],
    softplus: bool,
    merge: bool,
    dtype: torch.dtype,
    asked: tuple[Form | None, int | None],
    call: Callable[[Form], object],
    grad: Tensor | None = None,
) -> Launch | None:
    """The launches of a scan, or of the backward for `grad`; None where the kernels cannot take the tensors.

    `dtype` is that of the results or of their gradient, `asked` a form and a number of chunks, and `call` runs the scan
    in a form, to time it.
    """
    u, dt, _A, B, C, *_ = tensors
    backward = grad is not None
    timed = forms_are_timed(u.device)

    def make() -> tuple[Launch | None, bool]:
        given = {"u": u, "dt": dt, "B": B, "C": C, "grad": grad}
        check_dtypes(**{name: x for name, x in given.items() if x is not None})
        if not fits(code, u, dt, B, C, grad):
            return None, True
        form, last_word = asked[0], True
        if asked == (None, None):
            kind = ("backward" if backward else "forward", dtype, merge)
            form, last_word = choose_map_form(tensors, code, kind, merge and not backward, call)
        launch = Launch(tensors, code, softplus, backward, form, asked[1], grad)
        return (launch if launch.expanded_step_fits() else None), last_word

    kind = kind_of_call((*tensors, grad), code, softplus, merge, dtype, asked, timed)
    return kept_launch(kind, u.device, make)


def _form(
    tensors: tuple[Tensor | None, ...], backward: bool, blocks: Blocks | None, paired: bool, ahead: bool
) -> Form | None:
    """The form that is asked for, if any is."""
    if blocks is None and not (paired or ahead):
        return None
    channels, states = tensors[0].shape[-1], tensors[2].shape[2]
    return Form(blocks or choose_blocks_2d(channels, states, backward), paired, ahead)


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
    ahead: bool = False,
) -> Tensor:
    """See `scan_2d.scan_2d_fwd`. `blocks`, `chunks`, `paired` and `ahead` override the choice of a form, see `Form`.

    A result that several routes are summed into is rounded once a route, before a sum in float32; once a pair of routes
    where they are `paired`. It is rounded to `out_dtype`, or to bfloat16 where the inputs are bfloat16: twice as many
    bytes would be written and read for digits that the inputs do not have.
    """
    tensors = (u, dt, A, B, C, D, delta_bias, dt_weight)
    if paired and not merge:
        raise ValueError("results that are kept apart cannot be paired")

    def call(form: Form) -> Tensor:
        return selective_scan_2d_fwd(*tensors, code, delta_softplus, merge, out_dtype, form.blocks, None, *form[1:])

    asked = (_form(tensors, False, blocks, paired, ahead), chunks)
    launch = _launches(tensors, code, delta_softplus, merge, out_dtype, asked, call)
    if launch is None:
        return scan_2d_fwd(selective_scan_fwd, *tensors, code, delta_softplus, merge, out_dtype)
    walk, inputs = launch.walk, launch.inputs(*tensors)
    maps, covered = (walk.maps, walk.maps_covered) if merge else (len(walk.table), walk.routes_covered)
    dtype = torch.bfloat16 if merge and maps > 1 and u.dtype == torch.bfloat16 else out_dtype
    y = launch.scratch(*u.shape[:3], maps, launch.channels, dtype=dtype, zeros=not covered)
    with on_device_of(u):
        if launch.form.paired:
            members, twins = walk.pairs
            edges = launch.scratch(launch.batch, launch.slots, walk.tiles, launch.states, launch.channels)
            launch.scan(inputs, edges=edges, members=twins)
            launch.scan(inputs, y=y, edges=edges, maps=maps, merge=merge, members=members, twins=twins)
        else:
            steps, ends, _ = launch.totals(inputs)
            launch.scan(inputs, y=y, steps=steps, ends=ends, maps=maps, merge=merge)
    return _sum_maps(y, out_dtype) if merge else y


def _sum_maps(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """(Bt, H, W, maps, D) summed over the maps; PyTorch sums halves in float32 and rounds once."""
    return maps.squeeze(3) if maps.shape[3] == 1 else maps.sum(3, dtype=dtype)


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

    def call(form: Form) -> tuple[Tensor | None, ...]:
        return selective_scan_2d_bwd(grad, *tensors, code, delta_softplus, merge, form.blocks)

    asked = (_form(tensors, True, blocks, False, False), chunks)
    launch = _launches(tensors, code, delta_softplus, merge, grad.dtype, asked, call, grad)
    if launch is None:
        return scan_2d_bwd(selective_scan_bwd, grad, *tensors, code, delta_softplus, merge)
    walk, shape, sequences = launch.walk, u.shape[:3], launch.sequences
    channels, states, rank = launch.channels, launch.states, launch.rank
    inputs, gy = launch.inputs(*tensors), launch.gradient(grad)
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
        steps, ends, starts = launch.totals(inputs, gy)
        if edges is not None:
            launch.scan(inputs, edges=edges, steps=steps, ends=ends)
        gradients = (grad_u, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias, grad_weight)
        tables = (walk.order, walk.table, walk.first_route)
        maps = walk.columns if launch.own_input else walk.maps
        launch.launch(
            scan_2d_bwd_kernel,
            (gy, *inputs, edges, steps, starts, *gradients, *tables),
            (sequences, channels, states, rank, maps, walk.columns, *launch.sizes)
            + (*launch.grad_stride, *launch.strides),
            {"OWN_INPUT": launch.own_input, **launch.constants},
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
        grad_u = _sum_maps(grad_u, u.dtype)
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
