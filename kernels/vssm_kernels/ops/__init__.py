"""The public ops, each a `torch.library` custom op: schema, fake kernel, autograd, autocast rule, FLOP formula.

`torch.ops.vssm.selective_scan`, `selective_scan_2d`, `ssd`, `neighborhood_attention`, `read_map` and `write_map` are
what compilers, exporters, TorchScript and FLOP counters see, whichever backend runs. Call them by keyword; their
defaults are in their schemas. The functions of this package are their documented Python faces.
"""

from .dual import ssd
from .maps import read_map, write_map
from .neighborhood import neighborhood_attention
from .registration import arguments
from .selective import gated_scan, selective_scan
from .selective_2d import selective_scan_2d

__all__ = [
    "arguments",
    "gated_scan",
    "neighborhood_attention",
    "read_map",
    "selective_scan",
    "selective_scan_2d",
    "ssd",
    "write_map",
]
