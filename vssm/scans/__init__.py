"""Token mixers over scan routes; each takes and gives a channels-last map (B, H, W, C).

`SS1D` takes sequences, too, `SS3D` volumes (B, D, H, W, C), and `ConvSSM` videos (B, T, H, W, C).
"""

from ._state_space import init_state_matrix
from .atrous import AtrousSS2D
from .attention_fusion import AttentionFusionSS2D
from .continuous import ContinuousSS2D
from .conv_state import ConvSSM
from .corners import (
    CORNERS,
    Roesser2D,
    RowsColumnsSS2D,
    roesser_scan,
    roesser_scan_reference,
    rows_columns_scan,
)
from .cross import SS2D, SSD2D, CascadeSS2D, CrossScan
from .deformable import DeformableSS2D, DeformableStep
from .diagonal import S4D, S4D2D, hippo_legs, hippo_legs_spectrum, s4d_A, s4d_kernel
from .grouped import GroupedSS2D
from .hidden_mixer import HiddenStateMixer
from .linear import LinearScan, is_scan, route_name, route_names, scan_weights
from .local_attention import LocalAttentionSS2D
from .map_attention import MapAttention
from .multihead import MULTIHEAD_PATTERNS, MultiHeadSS2D
from .multiscale import MultiScaleSS2D
from .noncausal import NonCausalSSD2D
from .pruning import (
    KeptTokens,
    gather_tokens,
    scan_over_gaps,
    select_tokens,
    token_importance,
    tokens_of_map,
    tokens_on_map,
)
from .routes import (
    ATROUS,
    BIDIRECTIONAL,
    CONTINUOUS,
    CROSS,
    CROSS_3D,
    DIAGONAL,
    MULTISCALE,
    RASTER,
    SNAKE,
    SPIRAL,
    TRI_ORIENTED,
    UNIDIRECTIONAL,
    Route,
    encode_routes,
    route_order,
)
from .sequence import SS1D
from .spatial_fusion import SpatialFusionSS2D
from .token_interpolation import interpolate_tokens
from .volume import SS3D

__all__ = [
    "ConvSSM",
    "S4D",
    "S4D2D",
    "hippo_legs",
    "hippo_legs_spectrum",
    "s4d_A",
    "s4d_kernel",
    "CORNERS",
    "Roesser2D",
    "RowsColumnsSS2D",
    "roesser_scan",
    "roesser_scan_reference",
    "rows_columns_scan",
    "ATROUS",
    "BIDIRECTIONAL",
    "CONTINUOUS",
    "CROSS",
    "CROSS_3D",
    "DIAGONAL",
    "MULTIHEAD_PATTERNS",
    "MULTISCALE",
    "RASTER",
    "SNAKE",
    "SPIRAL",
    "SS1D",
    "SS2D",
    "SS3D",
    "SSD2D",
    "TRI_ORIENTED",
    "UNIDIRECTIONAL",
    "AtrousSS2D",
    "AttentionFusionSS2D",
    "CascadeSS2D",
    "ContinuousSS2D",
    "CrossScan",
    "DeformableSS2D",
    "DeformableStep",
    "GroupedSS2D",
    "HiddenStateMixer",
    "KeptTokens",
    "LinearScan",
    "LocalAttentionSS2D",
    "MapAttention",
    "MultiHeadSS2D",
    "MultiScaleSS2D",
    "NonCausalSSD2D",
    "Route",
    "SpatialFusionSS2D",
    "encode_routes",
    "gather_tokens",
    "init_state_matrix",
    "interpolate_tokens",
    "is_scan",
    "route_name",
    "route_names",
    "route_order",
    "scan_over_gaps",
    "scan_weights",
    "select_tokens",
    "token_importance",
    "tokens_of_map",
    "tokens_on_map",
]
