"""How a mixer is linear: its scans as functions of their input, and what each position takes from each other one.

With its data-dependent step sizes dt, B and C held fixed at those of one image, a scan is linear in its input u,
channel by channel (VMamba, arXiv 2401.10166, its analysis of activation maps):

    y_t = sum over s of W_ts u_s,   W_ts = C_t exp(A sum of dt_r over s < r <= t) dt_s B_s   for s before t on a route,

the skip D u_t left out. Every mixer has a method `linear_scans(x)` that gives its scans in this form. Whatever asks a
mixer how it mixes (pictures of attention, scores, counts) calls that method and needs to know nothing else of the
mixer. A mixer from elsewhere joins in by having the method.

Letters: Q inputs or positions asked about, h x w map of the input, H x W map of the result, K sequences, R routes, D
channels, N states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vssm_kernels import Route
from vssm_kernels.routes import decode_routes

__all__ = ["LinearScan", "is_scan", "repeat_batch", "route_name", "route_names", "scan_weights"]


@dataclass(frozen=True)
class LinearScan:
    """One scan of one image with its step sizes, B and C held fixed.

    Attributes:
        source: The input it had, (1, h, w, D), or (1, h, w, K, D) with channels of its own for each sequence; a volume
            has one dimension more.
        apply: The linear function, from inputs (Q, h, w, [K,] D) to results (Q, H, W, R, D), without the skip.
        routes: Names of the R results.
        channels: Width of the map once the results are merged.
    """

    source: Tensor
    apply: Callable[[Tensor], Tensor]
    routes: tuple[str, ...]
    channels: int


def is_scan(module: nn.Module) -> bool:
    """Tell whether a module says how it is linear: whether it has the method `linear_scans`."""
    return callable(getattr(module, "linear_scans", None))


def scan_weights(scan: LinearScan, positions: Tensor, route: int | None = None) -> Tensor:
    """Compute the weights of positions of the result on all positions of the input, for each channel.

    The weights of a position t are the gradient of y_t with respect to u. The operators' own backward gives it for any
    routes and sizes, so no matrix of L x L is ever there and nothing is divided by cumulated decays, which underflow.

    Args:
        scan: A scan.
        positions: Row-major numbers (Q,) on the H x W map, or on the volume, int64.
        route: Which result; None: the sum of all of them.

    Returns:
        (Q, h, w, D), the weights W_ts of each channel. Where the sequences have channels of their own, those of one
        route, or with None the sums over the sequences.
    """
    count = len(positions)
    u = scan.source.expand(count, *scan.source.shape[1:]).detach().clone().requires_grad_(True)
    with torch.enable_grad():
        y = scan.apply(u)
        chosen = y.new_zeros(y.shape)  # contiguous, as the view of it below needs
        on_map = chosen.view(count, -1, *y.shape[-2:])
        on_map[torch.arange(count, device=y.device), positions, slice(None) if route is None else route] = 1
        (weights,) = torch.autograd.grad(y, u, chosen)
    return weights.sum(-2) if weights.dim() == y.dim() else weights


def route_name(route: Route) -> str:
    """Say a route in words, such as "columns, backwards"; over volumes the axes, the slowest first: "axes 0 2 1"."""
    if route.axes:
        words = ["axes", *map(str, route.axes)]
        words = [" ".join(words if route.path == "raster" else [route.path, "over", *words])]
    else:
        words = _plane_words(route)
    if any(route.mirror):
        words.append("mirrored")
    if route.reverse:
        words.append("backwards")
    return ", ".join(words)


def _plane_words(route: Route) -> list[str]:
    words = ["columns" if route.transpose else "rows"] if route.path == "raster" else [route.path]
    return [*words, "transposed"] if route.path != "raster" and route.transpose else words


def route_names(code: Sequence[int]) -> tuple[str, ...]:
    """Say in words all routes of the code that `encode_routes` made."""
    return tuple(route_name(route) for sequence in decode_routes(code) for route in sequence)


def repeat_batch(x: Tensor, count: int) -> Tensor:
    """Repeat what was computed for n maps (n, ...) for a batch of `count` of them, a multiple of n: (count, ...)."""
    return x.repeat(count // len(x), *[1] * (x.dim() - 1))
