"""How many operations the scans are counted as, whatever backend runs them.

The published figures of these models count a selective scan as 9 operations per (position, channel, state) with
multiply and add apart, plus one per (position, channel) for the skip `D u` and one for the gate (state-spaces/mamba
issue 110). The rest of a network is counted by fvcore with one multiply-add as one. These functions give the scan's
share.
"""

__all__ = ["neighborhood_attention_macs", "selective_scan_2d_flops", "selective_scan_flops", "ssd_flops"]


def selective_scan_flops(
    batch: int,
    length: int,
    channels: int,
    states: int,
    with_C: bool = True,
    with_D: bool = True,
    with_z: bool = False,
) -> int:
    """Count the operations of one selective scan; `channels` counts the channels of all routes together.

    Without C (a scan that yields its states, as in Spatial-Mamba) the count is 7 per (position, channel, state).
    """
    per_position = (9 if with_C else 7) * states + int(with_D) + int(with_z)
    return batch * length * channels * per_position


def selective_scan_2d_flops(
    batch: int,
    lengths: list[int],
    channels: int,
    states: int,
    dt_rank: int | None = None,
    with_C: bool = True,
    with_D: bool = True,
) -> int:
    """Count the operations of a scan over several sequences of the given lengths, `channels` channels each.

    The low-rank step size (None: the step is given at full width) is a matrix product and counts one per multiply-add.
    """
    length = sum(lengths)
    scan = selective_scan_flops(batch, length, channels, states, with_C, with_D)
    return scan + batch * length * channels * (dt_rank or 0)


def ssd_flops(batch: int, length: int, heads: int, head_dim: int, states: int, with_D: bool = True) -> int:
    """Count the operations of the SSD: 5 per (position, channel, state) and one for dt x, one for the skip."""
    return batch * length * heads * head_dim * (5 * states + 1 + int(with_D))


def neighborhood_attention_macs(
    batch: int, height: int, width: int, heads: int, head_dim: int, value_dim: int, kernel_size: list[int]
) -> int:
    """Count the multiply-adds of the scores and of the weighted sums, over the neighbours that a pixel has.

    NATTEN's counter, which the papers use, adds one for each pair of neighbours and head.
    """
    neighbours = min(kernel_size[0], height) * min(kernel_size[1], width)
    return batch * height * width * heads * neighbours * (head_dim + value_dim)
