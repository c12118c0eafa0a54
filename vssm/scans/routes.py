"""Named scan patterns. A pattern is a tuple of routes; see `vssm_kernels.Route` for what a route can say."""

from typing import List

import torch
from torch import Tensor

from vssm_kernels import Route, encode_routes, route_order

__all__ = ["BIDIRECTIONAL", "CROSS", "UNIDIRECTIONAL", "Route", "encode_routes", "route_indices", "route_order"]

# VMamba (arXiv 2401.10166, section 4.2): rows, columns, and both backwards.
CROSS = (Route(), Route(transpose=True), Route(reverse=True), Route(transpose=True, reverse=True))
# Its ablations, with as many parameters: every route along the rows; two of four backwards.
UNIDIRECTIONAL = (Route(), Route(), Route(), Route())
BIDIRECTIONAL = (Route(), Route(), Route(reverse=True), Route(reverse=True))


def route_indices(code: List[int], height: int, width: int, like: Tensor) -> Tensor:
    """Flat pixel indices (K, L), int64, of encoded routes that all visit the same number of pixels.

    Takes the flat code of `encode_routes` and the device of a tensor, so that TorchScript can compile it.
    """
    pixels = torch.arange(height * width, device=like.device).view(height, width)
    orders: List[Tensor] = []
    for i in range(0, len(code), 7):
        order = pixels[code[i + 5] :: code[i + 3], code[i + 6] :: code[i + 4]]
        if code[i + 1] == 1:
            order = order.t()
        order = order.reshape(-1)
        if code[i + 2] == 1:
            order = order.flip(0)
        orders.append(order)
    return torch.stack(orders)
