"""Named scan patterns. A pattern is a tuple of routes; see `vssm_kernels.Route` for what a route can say."""

from vssm_kernels import Route, encode_routes, route_order

__all__ = [
    "ATROUS",
    "BIDIRECTIONAL",
    "CONTINUOUS",
    "CROSS",
    "CROSS_3D",
    "DIAGONAL",
    "MULTISCALE",
    "RASTER",
    "SNAKE",
    "SPIRAL",
    "TRI_ORIENTED",
    "UNIDIRECTIONAL",
    "Route",
    "encode_routes",
    "route_order",
]

# VMamba (arXiv 2401.10166, section 4.2): rows, columns, and both backwards.
CROSS = (Route(), Route(transpose=True), Route(reverse=True), Route(transpose=True, reverse=True))
# Its ablations, with as many parameters: every route along the rows; two of four backwards.
UNIDIRECTIONAL = (Route(), Route(), Route(), Route())
BIDIRECTIONAL = (Route(), Route(), Route(reverse=True), Route(reverse=True))
# The four heads of MHS-VM (arXiv 2406.05992): each a pair of walks; its mixer adds their reverses.
SNAKE = (Route(path="snake"), Route(path="snake", transpose=True))
DIAGONAL = (Route(path="diagonal"), Route(path="diagonal", mirror=(False, True)))
SPIRAL = (Route(path="spiral"), Route(path="spiral", mirror=(True, False)))
RASTER = (Route(), Route(transpose=True))
# PlainMamba (arXiv 2403.17695, section 3.3): snakes along the rows and along the columns, and both backwards.
CONTINUOUS = (
    Route(path="snake"),
    Route(path="snake", reverse=True),
    Route(path="snake", transpose=True),
    Route(path="snake", transpose=True, reverse=True),
)
# MSVMamba (arXiv 2405.14174): rows, at full resolution; and at half resolution the other three directions joined into
# one sequence, so that the state runs on from one direction into the next.
MULTISCALE = (Route(), (Route(reverse=True), Route(transpose=True), Route(transpose=True, reverse=True)))
# EfficientVMamba (arXiv 2403.09977, section 3.2) with step 2: every pixel is on exactly one route, none runs backwards.
ATROUS = (
    Route(stride=(2, 2), offset=(0, 0)),
    Route(stride=(2, 2), offset=(1, 0), transpose=True),
    Route(stride=(2, 2), offset=(0, 1)),
    Route(stride=(2, 2), offset=(1, 1), transpose=True),
)
# Volumes (D, H, W): VMamba's cross scan in six directions, along W, H and D, each forwards and backwards.
CROSS_3D = (
    Route(axes=(0, 1, 2)),
    Route(axes=(0, 2, 1)),
    Route(axes=(1, 2, 0)),
    Route(axes=(0, 1, 2), reverse=True),
    Route(axes=(0, 2, 1), reverse=True),
    Route(axes=(1, 2, 0), reverse=True),
)
# The three orientations of SegMamba (arXiv 2401.13560, section 2.2): forwards, backwards, and from slice to slice.
TRI_ORIENTED = (Route(axes=(0, 1, 2)), Route(axes=(0, 1, 2), reverse=True), Route(axes=(1, 2, 0)))
