"""The choice of a form for a scan of maps: blocks, and whether pairs of sequences are summed in one program."""

from collections.abc import Callable, Sequence

import triton
from torch import Tensor

from .launch import Form
from .map_backward import scan_2d_bwd_kernel
from .map_forward import scan_2d_kernel
from .map_launch import MAX_RANK, choose_blocks_2d, fills_a_device
from .map_tables import walk_tables
from .tune import choose_form

__all__ = ["choose_map_form", "map_forms"]


def map_forms(
    channels: int, states: int, backward: bool, low_rank: bool, fills: bool, can_pair: bool
) -> tuple[Form, ...]:
    """The forms to time, the default first.

    Blocks of twice and half as many channels with as many values a thread, and the sum of a pair in one program. More
    states or other runs took more instructions in every case compiled. A low-rank step size is expanded, and its
    gradient made, by matrix products, which take no fewer than 16 channels. To look ahead takes registers, of which
    there are enough where programs are few, but not in the backward.
    """
    blocks = choose_blocks_2d(channels, states, backward)
    forms = [Form(blocks)]
    if blocks.block_d < channels and blocks.num_warps < 16:
        forms.append(Form(blocks._replace(block_d=2 * blocks.block_d, num_warps=2 * blocks.num_warps)))
    if blocks.num_warps > 1 and blocks.block_d // 2 >= (16 if low_rank else 1):
        forms.append(Form(blocks._replace(block_d=blocks.block_d // 2, num_warps=blocks.num_warps // 2)))
    if not (fills or backward):
        forms.append(Form(blocks, ahead=True))
    if can_pair and blocks.block_n <= 2:
        forms.append(Form(blocks, paired=True))
    return tuple(forms)


def choose_map_form(
    inputs: Sequence[Tensor | None], code: Sequence[int], kind: tuple, can_pair: bool, call: Callable
) -> tuple[Form, bool]:
    """Choose the form of a scan of maps, by time where that is allowed.

    The choice depends on `kind`, on buckets of N, C and R and on whether a program a sequence fills a GPU; not on the
    batch and the size of the map beyond that, so that no other size is timed again. The stages of a model differ in C.

    Args:
        inputs: The eight tensors of the scan.
        code: The routes, by `encode_routes`.
        kind: "forward" or "backward", the dtype of what is written or given, whether results are merged.
        can_pair: Whether the results of pairs may be summed.
        call: Runs the scan in a form.

    Returns:
        The form, and whether that is the last word; see `choose_form`.
    """
    u, dt, A, *_, weight = inputs
    channels, (sequences, _, states) = u.shape[-1], A.shape
    backward = kind[0] == "backward"
    blocks = choose_blocks_2d(channels, states, backward)
    fills = fills_a_device(u.shape[0] * sequences * triton.cdiv(channels, blocks.block_d), blocks)
    can_pair = can_pair and fills and u.dim() == 4
    if can_pair:
        can_pair = walk_tables(tuple(code), *u.shape[1:3], blocks.run, True, u.device).pairs is not None
    rank = 0 if weight is None or weight.shape[2] > MAX_RANK else max(16, triton.next_power_of_2(weight.shape[2]))
    kind = (*kind, u.dtype, dt.dtype, u.dim(), triton.next_power_of_2(channels), rank, fills)
    forms = map_forms(channels, states, backward, rank > 0, fills, can_pair)
    return choose_form((scan_2d_kernel, scan_2d_bwd_kernel), kind, forms, call, u)
