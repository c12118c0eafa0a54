"""Token mixers over scan routes; each takes and gives a channels-last map (B, H, W, C), and `SS1D` sequences, too."""

from .atrous import AtrousSS2D
from .continuous import ContinuousSS2D
from .cross import SS2D, SSD2D, CascadeSS2D
from .grouped import GroupedSS2D
from .hidden_mixer import HiddenStateMixer
from .linear import LinearScan, is_scan, route_name, route_names, scan_weights
from .multihead import MULTIHEAD_PATTERNS, MultiHeadSS2D
from .multiscale import MultiScaleSS2D
from .noncausal import NonCausalSSD2D
from .routes import (
    ATROUS,
    BIDIRECTIONAL,
    CONTINUOUS,
    CROSS,
    DIAGONAL,
    MULTISCALE,
    RASTER,
    SNAKE,
    SPIRAL,
    UNIDIRECTIONAL,
    Route,
    encode_routes,
    route_order,
)
from .sequence import SS1D
from .spatial_fusion import SpatialFusionSS2D

__all__ = [
    "ATROUS",
    "BIDIRECTIONAL",
    "CONTINUOUS",
    "CROSS",
    "DIAGONAL",
    "MULTIHEAD_PATTERNS",
    "MULTISCALE",
    "RASTER",
    "SNAKE",
    "SPIRAL",
    "SS1D",
    "SS2D",
    "SSD2D",
    "UNIDIRECTIONAL",
    "AtrousSS2D",
    "CascadeSS2D",
    "ContinuousSS2D",
    "GroupedSS2D",
    "HiddenStateMixer",
    "LinearScan",
    "MultiHeadSS2D",
    "MultiScaleSS2D",
    "NonCausalSSD2D",
    "Route",
    "SpatialFusionSS2D",
    "encode_routes",
    "is_scan",
    "route_name",
    "route_names",
    "route_order",
    "scan_weights",
]
