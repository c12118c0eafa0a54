"""The public ops, each a `torch.library` custom op: schema, fake kernel, autograd, autocast rule, FLOP formula.

`torch.ops.vssm.selective_scan`, `selective_scan_2d`, `mamba_inner`, `ssd`, `neighborhood_attention` with its halves
`neighborhood_weights` and `neighborhood_sum`, `read_map` and `write_map` are what compilers, exporters, TorchScript and
FLOP counters see, whichever backend runs; `state_fusion` and `mlp` are for compilers alone. Call them by keyword; their
defaults are in their schemas. The functions of this package are their documented Python faces.
"""

from .dual import ssd
from .mamba import mamba_inner
from .maps import read_map, write_map
from .mlp import count_pieces
from .neighborhood import neighborhood_attention
from .neighborhood_weights import keeps_weights, neighborhood_sum, neighborhood_weights
from .registration import arguments
from .selective import gated_scan, selective_scan
from .selective_2d import selective_scan_2d
from .state_fusion import fuse_states

__all__ = [
    "arguments",
    "count_pieces",
    "fuse_states",
    "gated_scan",
    "keeps_weights",
    "mamba_inner",
    "neighborhood_attention",
    "neighborhood_sum",
    "neighborhood_weights",
    "read_map",
    "selective_scan",
    "selective_scan_2d",
    "ssd",
    "write_map",
]
