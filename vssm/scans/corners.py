"""Recurrences that are two-dimensional themselves, in the place of routes: each pixel has two predecessors.

`Roesser2D` couples a state that moves along the rows with one that moves along the columns (the form of the 2-D SSM
layer, arXiv 2306.06635, and of Chimera, arXiv 2406.04320, with parameters that depend on the input). `RowsColumnsSS2D`
scans the rows and then the columns of the states (2DMamba, arXiv 2412.00678).

A recurrence starts in a corner of the map, and a pixel takes from the rectangle between it and that corner. So each
runs from all four corners, which are mirrors of the map.

Letters: B batch, H x W map, D channels, K = 4 corners, S sequences of parameters, N states, R rank of the step size.
"""

from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ._state_space import at_least_float32, outside_autocast
from .cross import SS2D
from .linear import LinearScan, repeat_batch
from .routes import Route

__all__ = [
    "CORNERS",
    "Roesser2D",
    "RowsColumnsSS2D",
    "roesser_scan",
    "roesser_scan_reference",
    "rows_columns_scan",
]

# Which axes of the map (rows, columns) are mirrored, so that the corner is at the top left.
CORNERS = ((False, False), (False, True), (True, True), (True, False))
_NAMES = ("from the top left", "from the top right", "from the bottom right", "from the bottom left")


def mirrored(x: Tensor, corner: int) -> Tensor:
    """Mirror a map (B, H, W, ...) so that a corner comes to the top left, or back."""
    axes = [axis + 1 for axis, flip in enumerate(CORNERS[corner]) if flip]
    return x.flip(axes) if axes else x


def roesser_scan_reference(
    A1: Tensor, A2: Tensor, A3: Tensor, A4: Tensor, x1: Tensor, x2: Tensor
) -> Tuple[Tensor, Tensor]:
    """Run the Roesser recurrence pixel by pixel, to be read and tested against.

    h1[i, j] = A1 h1[i, j-1] + A2 h2[i, j-1] + x1[i, j]        moves along the row
    h2[i, j] = A3 h1[i-1, j] + A4 h2[i-1, j] + x2[i, j]        moves along the column

    Args:
        A1: (B, H, W, ...), at each pixel what it takes; so are A2, A3 and A4.
        A2: From the column's state of the pixel before in the row.
        A3: From the row's state of the pixel above.
        A4: From the column's state of the pixel above.
        x1: What the input adds to the row's state, (B, H, W, ...).
        x2: What it adds to the column's.

    Returns:
        h1 and h2, (B, H, W, ...). What is outside of the map is zero.
    """
    height, width = x1.shape[1:3]
    zero = torch.zeros_like(x1[:, 0, 0])
    h1: List[List[Tensor]] = []
    h2: List[List[Tensor]] = []
    for i in range(height):
        h1.append([])
        h2.append([])
        for j in range(width):
            left1, left2 = (h1[i][j - 1], h2[i][j - 1]) if j else (zero, zero)
            above1, above2 = (h1[i - 1][j], h2[i - 1][j]) if i else (zero, zero)
            h1[i].append(A1[:, i, j] * left1 + A2[:, i, j] * left2 + x1[:, i, j])
            h2[i].append(A3[:, i, j] * above1 + A4[:, i, j] * above2 + x2[:, i, j])
    return tuple(torch.stack([torch.stack(row, 1) for row in h], 1) for h in (h1, h2))  # type: ignore[return-value]


def skewed(x: Tensor) -> Tensor:
    """Turn anti-diagonals into columns: (B, H, W, ...) to (B, H, H + W - 1, ...), where [i, t] is pixel [i, t - i].

    What is outside of the map is zero.
    """
    height, width = x.shape[1:3]
    # Rows that are one pixel longer than the columns of the result shift by one from row to row.
    x = F.pad(x, [0, 0] * (x.dim() - 3) + [0, height]).flatten(1, 2)
    return x[:, : height * (height + width - 1)].unflatten(1, (height, height + width - 1))


def straightened(x: Tensor, width: int) -> Tensor:
    """Undo `skewed`: (B, H, H + W - 1, ...) to (B, H, W, ...)."""
    height = x.shape[1]
    x = F.pad(x.flatten(1, 2), [0, 0] * (x.dim() - 3) + [0, height])
    return x.unflatten(1, (height, height + width))[:, :, :width]


def roesser_scan(A1: Tensor, A2: Tensor, A3: Tensor, A4: Tensor, x1: Tensor, x2: Tensor) -> Tuple[Tensor, Tensor]:
    """Run the recurrence of `roesser_scan_reference` as a wavefront: an anti-diagonal at a time, H + W - 1 steps."""
    width = x1.shape[2]
    steps = [skewed(x).unbind(2) for x in torch.broadcast_tensors(A1, A2, A3, A4, x1, x2)]
    h1 = h2 = torch.zeros_like(steps[4][0])  # (B, H, ...): of the last anti-diagonal, by row
    rows, columns = [], []
    down = [0, 0] * (x1.dim() - 3) + [1, -1]
    for a1, a2, a3, a4, b1, b2 in zip(*steps, strict=True):
        above1, above2 = F.pad(h1, down), F.pad(h2, down)
        h1, h2 = a1 * h1 + a2 * h2 + b1, a3 * above1 + a4 * above2 + b2
        rows.append(h1)
        columns.append(h2)
    return straightened(torch.stack(rows, 2), width), straightened(torch.stack(columns, 2), width)


def rows_columns_scan(a: Tensor, x: Tensor) -> Tensor:
    """Scan the rows, g[i, j] = a g[i, j-1] + x, and then the columns of that, h[i, j] = a h[i-1, j] + g[i, j].

    Args:
        a: The decay at each pixel, (B, H, W, ...).
        x: What the input adds, (B, H, W, ...).

    Returns:
        h, (B, H, W, ...).
    """
    for dim in (2, 1):
        steps = list(x.unbind(dim))
        for t, decay in enumerate(a.unbind(dim)[1:], 1):
            steps[t] = decay * steps[t - 1] + steps[t]
        x = torch.stack(steps, dim)
    return x


class _CornerScan(SS2D):
    """`SS2D` whose scan starts in the four corners. A subclass has `sequences`, and `recur`.

    Its sequences of parameters are in the order of `CORNERS`, those of a corner side by side.
    """

    sequences: Tuple[Route, ...] = (Route(),)

    def __init__(self, dim: int, **kwargs):
        routes = tuple(route._replace(mirror=corner) for corner in CORNERS for route in self.sequences)
        super().__init__(dim, routes=routes, **kwargs)

    def recur(self, decay: List[Tensor], given: List[Tensor], C: List[Tensor], corner: int) -> Tensor:
        """Run one corner's recurrence.

        Args:
            decay: exp(dt A) of each of its sequences, (B, H, W, D, N).
            given: dt B u, (B, H, W, D, N).
            C: (B, H, W, N).
            corner: Its number.

        Returns:
            (B, H, W, D).
        """
        raise NotImplementedError

    def from_corners(self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Run all recurrences, without the skip.

        Args:
            u: (B, H, W, D).
            dt: The step size at its low rank, (B, H, W, S, R).
            B: (B, H, W, S, N).
            C: (B, H, W, S, N).

        Returns:
            (B, H, W, K, D), in float32 or better.
        """
        with outside_autocast(u):
            u, dt, B, C = (at_least_float32(x) for x in (u, dt, B, C))
            A, _, bias, weights = self.state_space()
            results = []
            for corner in range(len(CORNERS)):
                decay, given, read, seen = [], [], [], mirrored(u, corner).unsqueeze(-1)
                for s in range(corner * len(self.sequences), (corner + 1) * len(self.sequences)):
                    low, weight = mirrored(dt[:, :, :, s], corner), at_least_float32(weights[s])
                    step = F.softplus(F.linear(low, weight, at_least_float32(bias[s]))).unsqueeze(-1)
                    decay.append(torch.exp(step * A[s]))
                    given.append(step * seen * mirrored(B[:, :, :, s], corner).unsqueeze(3))
                    read.append(mirrored(C[:, :, :, s], corner))
                results.append(mirrored(self.recur(decay, given, read, corner), corner))
            return torch.stack(results, 3)

    def mix(self, x: Tensor) -> Tensor:
        """Run the recurrences and merge: (B, H, W, D) to (B, H, W, D)."""
        skip = at_least_float32(self.Ds).unflatten(0, (-1, self.scan_channels)).sum(0)
        return self.from_corners(x, *self.project(x)).sum(3) + skip * at_least_float32(x)

    def scans_of(self, u: Tensor) -> List[LinearScan]:
        """Say how the scan of a map (1, H, W, D) is linear, with step sizes, B and C held fixed."""
        projected = self.project(u)

        def apply(u: Tensor) -> Tensor:
            return self.from_corners(u, *(repeat_batch(x, len(u)) for x in projected))

        return [LinearScan(u, apply, _NAMES, self.scan_channels)]


class Roesser2D(_CornerScan):
    """`SS2D` with a two-dimensional recurrence from each corner in the place of its routes.

    Each corner has a state that moves along the rows and one that moves along the columns, each with a step size, A, B
    and C of its own, as `SS2D` has them for a route. A learned share k in (0, 1) for each channel and state couples
    them: of what is left of both states of the pixel before in the row, exp(dt A), the row's state takes 1 - k of
    itself and k of the column's; and likewise down the column. The shares of a state sum to its decay, so it cannot
    grow. With k = 0 it is a scan of every row and one of every column, each starting anew.

    How the states are coupled is this package's choice: the layer of arXiv 2306.06635 has no input-dependent steps, and
    Chimera has no public code.

    Args:
        dim: Width C of the input and output.
        coupling: What the shares start with, in (0, 1).
        **kwargs: Further arguments of `SS2D`, routes excepted.

    Raises:
        ValueError: The coupling is no such number.

    An ablation: no published weights have it. It is not made for TorchScript. H + W - 1 steps follow one another, each
    of which computes an anti-diagonal.
    """

    sequences = (Route(), Route(transpose=True))

    def __init__(self, dim: int, coupling: float = 0.5, **kwargs):
        if not 0 < coupling < 1:
            raise ValueError(f"Roesser2D: coupling must be between 0 and 1, got {coupling}")
        self.coupling = coupling
        super().__init__(dim, **kwargs)

    def add_scan(self, channels, d_state, dt_rank, routes, scan_float32, A_init, **dd) -> None:
        """Register what `SS2D` has for each sequence, and the shares before a sigmoid, (S, D, N)."""
        super().add_scan(channels, d_state, dt_rank, routes, scan_float32, A_init, **dd)
        self.couplings = nn.Parameter(torch.empty(len(routes), channels, d_state, **dd))

    @torch.no_grad()
    def init_scan(self) -> None:
        """Start the shares with `coupling`, the rest as `SS2D` does."""
        super().init_scan()
        self.couplings.copy_(torch.logit(torch.full_like(self.couplings, self.coupling)))

    def recur(self, decay: List[Tensor], given: List[Tensor], C: List[Tensor], corner: int) -> Tensor:
        """See `_CornerScan.recur`."""
        row, column = torch.sigmoid(at_least_float32(self.couplings[2 * corner : 2 * corner + 2]))
        h1, h2 = roesser_scan(decay[0] * (1 - row), decay[0] * row, decay[1] * column, decay[1] * (1 - column), *given)
        return torch.einsum("bhwdn,bhwn->bhwd", h1, C[0]) + torch.einsum("bhwdn,bhwn->bhwd", h2, C[1])


class RowsColumnsSS2D(_CornerScan):
    """`SS2D` that scans from each corner the rows, and then the columns of the rows' states with the same decay.

    Args:
        dim: Width C of the input and output.
        **kwargs: Further arguments of `SS2D`, routes excepted.

    It has as many parameters as `SS2D`. What 2DMamba's authors run cannot be told: their forms for CPUs disagree with
    each other and with this one, which is their paper's. An ablation: no published weights have it. It is not made for
    TorchScript.
    """

    def recur(self, decay: List[Tensor], given: List[Tensor], C: List[Tensor], corner: int) -> Tensor:
        """See `_CornerScan.recur`."""
        return torch.einsum("bhwdn,bhwn->bhwd", rows_columns_scan(decay[0], given[0]), C[0])
