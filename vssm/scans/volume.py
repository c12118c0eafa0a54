"""The cross-scan mixer of volumes.

Letters: B batch, D x H x W volume, C width of the block, K routes.
"""

from typing import Any

from .cross import SS2D
from .routes import CROSS_3D

__all__ = ["SS3D"]


class SS3D(SS2D):
    """`SS2D` of volumes: its scan walks (B, D, H, W, C) along routes of three axes, its convolution is one of volumes.

    Args:
        dim: Width C of the input and output.
        routes: Scan pattern of single routes over three axes: `CROSS_3D`, six directions; `TRI_ORIENTED`, SegMamba's
            three; or any other.
        **kwargs: Further arguments of `SS2D`.

    Raises:
        ValueError: The routes are over maps of another rank.
    """

    spatial_dims = 3

    def __init__(self, dim: int, routes: tuple = CROSS_3D, **kwargs: Any):
        super().__init__(dim, routes=routes, **kwargs)
