"""Scans unrolled: what each position of a mixer's map takes from each other one.

With its data-dependent step sizes dt, B and C held fixed at those of one image, a scan is linear in its input u,
channel by channel (VMamba, arXiv 2401.10166, its analysis of activation maps):

    y_t = sum over s of W_ts u_s,   W_ts = C_t exp(A sum of dt_r over s < r <= t) dt_s B_s   for s before t on a route,

the skip D u_t left out. So the weights of a position t on all others are a gradient, that of y_t with respect to u, and
the operators' own backward gives them for any routes and sizes without a matrix of L x L ever being there. Nothing is
divided by cumulated decays, which underflow.

Letters: Q positions asked about, h x w map of the input, H x W map of the result, K sequences, R routes, D channels, N
states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vssm_kernels import Route
from vssm_kernels.routes import FIELDS, decode_routes

from ..scans import (
    SS2D,
    SSD2D,
    AtrousSS2D,
    CascadeSS2D,
    GroupedSS2D,
    HiddenStateMixer,
    MultiHeadSS2D,
    MultiScaleSS2D,
    NonCausalSSD2D,
    SpatialFusionSS2D,
)
from ..scans.noncausal import noncausal_ssd
from ..scans.routes import read_route, write_route

__all__ = ["FrozenScan", "freeze_scans", "is_scan", "route_name", "scan_weights"]


@dataclass(frozen=True)
class FrozenScan:
    """One scan of one image with its step sizes, B and C held fixed.

    Attributes:
        source: the input it had, (1, h, w, D), or (1, h, w, K, D) with channels of its own for each sequence.
        apply: from inputs (Q, h, w, [K,] D) to results (Q, H, W, R, D), without the skip.
        routes: names of the R results.
        channels: width of the map once the results are merged.
    """

    source: Tensor
    apply: Callable[[Tensor], Tensor]
    routes: tuple[str, ...]
    channels: int


def scan_weights(scan: FrozenScan, positions: Tensor, route: int | None = None) -> Tensor:
    """The weights of positions of the result on all positions of the input, for each channel.

    Args:
        scan: a scan.
        positions: row-major numbers (Q,) on the H x W map, int64.
        route: which result; None: the sum of all of them.

    Returns:
        (Q, h, w, D): the weights W_ts of each channel. Where the sequences have channels of their own, those of one
        route, or with None the sums over the sequences.
    """
    count = len(positions)
    u = scan.source.expand(count, *scan.source.shape[1:]).detach().clone().requires_grad_(True)
    with torch.enable_grad():
        y = scan.apply(u)
        chosen = torch.zeros_like(y)
        rows, columns = positions // y.shape[2], positions % y.shape[2]
        chosen[torch.arange(count, device=y.device), rows, columns, slice(None) if route is None else route] = 1
        (weights,) = torch.autograd.grad(y, u, chosen)
    return weights.sum(3) if weights.dim() == 5 else weights


def route_name(route: Route) -> str:
    """A route in words, such as "columns, backwards"."""
    words = ["columns" if route.transpose else "rows"] if route.path == "raster" else [route.path]
    if route.path != "raster" and route.transpose:
        words.append("transposed")
    if any(route.mirror):
        words.append("mirrored")
    if route.reverse:
        words.append("backwards")
    return ", ".join(words)


def _names(code: list[int]) -> tuple[str, ...]:
    return tuple(route_name(route) for sequence in decode_routes(code) for route in sequence)


class _Calls(TorchDispatchMode):
    """Keeps the arguments of every scan operator that runs in it."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.vssm.selective_scan_2d.default, torch.ops.vssm.ssd.default):
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


def _calls(mixer: nn.Module, x: Tensor) -> list[tuple[Any, ...]]:
    with torch.no_grad(), _Calls() as calls:
        mixer(x)
    return calls.arguments


def _batch(x: Tensor | None, count: int) -> Tensor | None:
    """Repeat parameters (n, ...) of one image for the `count` = q n inputs of a larger batch."""
    return x if x is None or len(x) == count else x.repeat(count // len(x), *[1] * (x.dim() - 1))


def _frozen_op(arguments: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """A call of `selective_scan_2d` as a function of u alone, without the skip; the routes are not merged."""
    _, dt, A, B, C, _, bias, weight, code, softplus, _, _, backend = arguments

    def op(u: Tensor) -> Tensor:
        count = len(u)
        return torch.ops.vssm.selective_scan_2d(
            u,
            _batch(dt, count),
            A,
            _batch(B, count),
            _batch(C, count),
            None,
            bias,
            weight,
            code,
            softplus,
            False,
            None,
            backend,
        )

    return op


@singledispatch
def freeze_scans(mixer: nn.Module, x: Tensor) -> list[FrozenScan]:
    """The scans of a mixer of `vssm.scans`, as they are for one map.

    Args:
        mixer: in evaluation mode.
        x: its input (1, H, W, C).

    Returns:
        One scan; of the multi-scale mixer two, of which the second reads a map of half the size.

    Raises:
        TypeError: the module is no mixer of `vssm.scans`.
    """
    raise TypeError(f"{type(mixer).__name__} is no scan of vssm.scans")


def is_scan(module: nn.Module) -> bool:
    """Whether `freeze_scans` knows the module."""
    return freeze_scans.dispatch(type(module)) is not freeze_scans.dispatch(object)


@freeze_scans.register(SS2D)
@freeze_scans.register(GroupedSS2D)
@freeze_scans.register(MultiHeadSS2D)
def _over_routes(mixer: nn.Module, x: Tensor) -> list[FrozenScan]:
    """One call over the whole map. The walks of a head meet in its channels, groups and heads have their own."""
    (call,) = _calls(mixer, x)
    u = call[0]
    meeting = mixer.num_walks if isinstance(mixer, MultiHeadSS2D) else 1
    return [FrozenScan(u, _frozen_op(call), _names(mixer.route_code), u[0, 0, 0].numel() // meeting)]


@freeze_scans.register
def _atrous(mixer: AtrousSS2D, x: Tensor) -> list[FrozenScan]:
    """Every pixel is on one route only, so one result holds them all."""
    (call,) = _calls(mixer, x)
    height, width = x.shape[1:3]
    op = _frozen_op(call)

    def apply(u: Tensor) -> Tensor:
        return mixer.from_phases(op(mixer.to_phases(u)), height, width).unsqueeze(3)

    return [FrozenScan(mixer.from_phases(call[0], height, width), apply, ("the pixel's phase",), mixer.d_inner)]


@freeze_scans.register
def _multiscale(mixer: MultiScaleSS2D, x: Tensor) -> list[FrozenScan]:
    """The half branch's results are resized as the mixer does it; the norms between scan and merging are left out."""
    full, half = _calls(mixer, x)
    size = list(x.shape[1:3])
    op = _frozen_op(half)

    def resized(u: Tensor) -> Tensor:
        y = op(u).permute(0, 3, 4, 1, 2)
        y = F.interpolate(y.flatten(1, 2), size=size, mode=mixer.upsample_mode).unflatten(1, y.shape[1:3])
        return y.permute(0, 3, 4, 1, 2)

    halves = tuple(f"half: {name}" for name in _names(mixer.half_code))
    return [
        FrozenScan(full[0], _frozen_op(full), _names(mixer.full_code), mixer.d_inner),
        FrozenScan(half[0], resized, halves, mixer.d_inner),
    ]


@freeze_scans.register
def _cascade(mixer: CascadeSS2D, x: Tensor) -> list[FrozenScan]:
    """Rows and then columns as one; the deviation by which the norm between them divides is held fixed too."""
    rows, columns = _calls(mixer, x)
    with torch.no_grad():
        scanned = torch.ops.vssm.selective_scan_2d(*rows)[:, 0].unsqueeze(0)  # (1, H, W, D), the skip included
        deviation = (scanned.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    def both_ways(call: tuple[Any, ...], u: Tensor) -> Tensor:
        """(Q, S, L, D) to the same, S sequences in both directions, as `CascadeSS2D` sums them."""
        sequences = u.flatten(0, 1)
        stacked = torch.stack([sequences, sequences.flip(1)], dim=2).unsqueeze(1)
        return _frozen_op(call)(stacked)[:, 0].sum(2).unflatten(0, u.shape[:2])

    def apply(u: Tensor) -> Tensor:
        y = both_ways(rows, u) / deviation
        return both_ways(columns, y.transpose(1, 2)).transpose(1, 2).unsqueeze(3)

    source = rows[0][:, 0, :, 0].unsqueeze(0)  # its sequences (H, 1, W, 2, D) as they stand, forwards
    return [FrozenScan(source, apply, ("rows, then columns",), mixer.d_inner)]


@freeze_scans.register
def _spatial_fusion(mixer: SpatialFusionSS2D, x: Tensor) -> list[FrozenScan]:
    """The operator gives the states; the fusion with their neighbours' and the reading by C belong to the scan."""
    (call,) = _calls(mixer, x)
    op = _frozen_op(call)
    with torch.no_grad():
        C = mixer._project(call[0])[2]

    def apply(u: Tensor) -> Tensor:
        return (C[:, :, :, 0] * mixer.fusion(op(u)[:, :, :, 0])).unsqueeze(3)

    return [FrozenScan(call[0], apply, ("rows, fused with neighbours",), mixer.d_inner)]


@freeze_scans.register
def _dual(mixer: SSD2D, x: Tensor) -> list[FrozenScan]:
    (call,) = _calls(mixer, x)
    walked, dt, A, B, C, _, bias, softplus, chunk_size, backend = call
    height, width = x.shape[1:3]
    codes = [mixer.route_code[i : i + FIELDS] for i in range(0, len(mixer.route_code), FIELDS)]

    def apply(u: Tensor) -> Tensor:
        count = len(u)
        heads = [read_route(u, code).unflatten(-1, (mixer.num_heads, mixer.head_dim)) for code in codes]
        y = torch.ops.vssm.ssd(
            torch.cat(heads, dim=2),
            _batch(dt, count),
            A,
            _batch(B, count),
            _batch(C, count),
            None,
            bias,
            softplus,
            chunk_size,
            backend,
        )
        y = y.unflatten(2, (len(codes), -1)).flatten(3)
        return torch.stack([write_route(y[:, :, k], code, height, width) for k, code in enumerate(codes)], dim=3)

    source = write_route(walked[:, :, : mixer.num_heads].flatten(2), codes[0], height, width)
    return [FrozenScan(source, apply, _names(mixer.route_code), mixer.d_inner)]


@freeze_scans.register
def _noncausal(mixer: NonCausalSSD2D, x: Tensor) -> list[FrozenScan]:
    with torch.no_grad():
        _, v, weight, k, q = mixer.project(x)
    size = x.shape[1:3]

    def apply(u: Tensor) -> Tensor:
        y = noncausal_ssd(u.flatten(1, 2), weight, k, q, torch.zeros_like(mixer.D))
        return y.unflatten(1, size).unsqueeze(3)

    return [FrozenScan(v.unflatten(1, size), apply, ("all positions at once",), mixer.d_inner)]


@freeze_scans.register
def _hidden_state(mixer: HiddenStateMixer, x: Tensor) -> list[FrozenScan]:
    """From positions to states and back; what mixes the channels of the states in between is left out."""
    with torch.no_grad():
        given, taken = mixer.positions(x)

    def apply(u: Tensor) -> Tensor:
        y = taken @ (given.transpose(1, 2) @ u.flatten(1, 2))
        return y.unflatten(1, x.shape[1:3]).unsqueeze(3)

    return [FrozenScan(x.detach(), apply, ("all positions at once",), x.shape[-1])]
