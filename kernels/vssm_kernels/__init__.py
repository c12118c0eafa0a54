"""Selective scans with one interface and several backends: C++ on CPUs, Triton on GPUs, plain PyTorch anywhere."""

from . import derivatives  # noqa: F401  (registers what the ops do under transforms)
from .backends import BACKENDS, available_backends
from .flops import neighborhood_attention_macs, selective_scan_2d_flops, selective_scan_flops, ssd_flops
from .functional import decompositions
from .ops import (
    keeps_weights,
    mamba_inner,
    neighborhood_attention,
    neighborhood_sum,
    neighborhood_weights,
    read_map,
    selective_scan,
    selective_scan_2d,
    ssd,
    write_map,
)
from .routes import Route, encode_routes, route_order

__all__ = [
    "BACKENDS",
    "Route",
    "available_backends",
    "decompositions",
    "encode_routes",
    "keeps_weights",
    "mamba_inner",
    "neighborhood_attention",
    "neighborhood_attention_macs",
    "neighborhood_sum",
    "neighborhood_weights",
    "read_map",
    "route_order",
    "selective_scan",
    "selective_scan_2d",
    "selective_scan_2d_flops",
    "selective_scan_flops",
    "ssd",
    "ssd_flops",
    "write_map",
]
