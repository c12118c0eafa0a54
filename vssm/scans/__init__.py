"""2-D token mixers over scan routes; each takes and gives a channels-last map (B, H, W, C)."""

from .cross import SS2D, SSD2D, CascadeSS2D
from .routes import BIDIRECTIONAL, CROSS, UNIDIRECTIONAL, Route

__all__ = ["BIDIRECTIONAL", "CROSS", "SS2D", "SSD2D", "UNIDIRECTIONAL", "CascadeSS2D", "Route"]
