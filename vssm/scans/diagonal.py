"""The time-invariant ancestors of the selective scan: HiPPO, the starts of S4D, and S4D along routes.

Papers: On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893 (S4D); How to Train
Your HiPPO, arXiv 2206.12037.

Letters: B batch, L positions, H x W map, D channels, K routes, N real states, which are M = N / 2 complex ones: of each
pair of conjugates one is kept, and results take twice the real part.
"""

import math
from typing import List, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from ._state_space import at_least_float32, half_life, outside_autocast, state_matrix
from .cross import SS2D
from .linear import LinearScan, route_names
from .routes import encode_routes

__all__ = ["S4D", "S4D2D", "hippo_legs", "hippo_legs_spectrum", "s4d_A", "s4d_kernel"]


def hippo_legs(states: int) -> Tuple[Tensor, Tensor]:
    """Give HiPPO-LegS, whose state remembers the input so far by its Legendre coefficients.

    A_nk = -sqrt((2 n + 1) (2 k + 1)) below the diagonal, -(n + 1) on it, 0 above; b_n = sqrt(2 n + 1).

    Args:
        states: N.

    Returns:
        A (N, N) and b (N,), float64.
    """
    b = (2 * torch.arange(states, dtype=torch.float64) + 1).sqrt()
    A = -torch.tril(b.unsqueeze(1) * b, -1) - torch.diag(torch.arange(1, states + 1, dtype=torch.float64))
    return A, b


def hippo_legs_spectrum(states: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Diagonalise the normal part of HiPPO-LegS, A + p p^T with p_n = sqrt(n + 1/2), which is -1/2 and a skew part.

    Args:
        states: N, an even number.

    Returns:
        The eigenvalues with a positive imaginary part, the largest first, (M,); what the input gives to them, V* b,
        (M,), whose phases are arbitrary as those of eigenvectors are; and the eigenvectors V (N, M): all complex128.
    """
    A, b = hippo_legs(states)
    p = (torch.arange(states, dtype=torch.float64) + 0.5).sqrt()
    normal = A + p.unsqueeze(1) * p
    real = normal.diagonal().mean()
    # The skew part times -i is Hermitian: `eigh` gives real frequencies, the smallest first.
    frequencies, vectors = torch.linalg.eigh((normal - torch.diag(normal.diagonal())) * -1j)
    frequencies, vectors = frequencies.flip(0)[: states // 2], vectors.flip(1)[:, : states // 2]
    return torch.complex(real.expand_as(frequencies), frequencies), vectors.mH @ b.to(vectors.dtype), vectors


def s4d_A(kind: str, states: int) -> Tensor:
    """Give the start of a diagonal A by its name, the imaginary parts positive, as in the paper.

    Args:
        kind: "lin": -1/2 + i pi n. "inv": -1/2 + i (N / pi) (N / (2 n + 1) - 1). "legs": the eigenvalues of HiPPO-LegS,
            see `hippo_legs_spectrum`; "inv" imitates them. "real": -(n + 1) for n below M.
        states: N, the number of real states, even.

    Returns:
        (M,), complex128.

    Raises:
        ValueError: Another name, or an odd number of states.
    """
    if states < 2 or states % 2:
        raise ValueError(f"s4d_A: complex states come in pairs, so their number must be even, got {states}")
    n = torch.arange(states // 2, dtype=torch.float64)
    half = torch.full_like(n, -0.5)
    if kind == "lin":
        return torch.complex(half, math.pi * n)
    if kind == "inv":
        return torch.complex(half, states / math.pi * (states / (2 * n + 1) - 1))
    if kind == "legs":
        return hippo_legs_spectrum(states)[0]
    if kind == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    raise ValueError(f"s4d_A: the start must be lin, inv, legs or real, got {kind!r}")


def s4d_kernel(A: Tensor, C: Tensor, step: Tensor, length: int) -> Tensor:
    """Compute the convolution that a diagonal system is: K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l).

    Args:
        A: (D, M), complex.
        C: (D, M), complex; B is 1.
        step: dt, (D,).
        length: L.

    Returns:
        (D, L), real.
    """
    dt_A = step.unsqueeze(-1) * A
    weights = C * torch.expm1(dt_A) / A
    powers = torch.exp(dt_A.unsqueeze(-1) * torch.arange(length, device=A.device, dtype=step.dtype))
    return 2 * torch.einsum("dm,dml->dl", weights, powers).real


class S4D(nn.Module):
    """A time-invariant state space for each channel: y = K * u + D u, causal; (B, L, D) to the same.

    All positions are computed at once, as a convolution by FFT in float32 or better; `recurrence` computes the same
    position by position.

    Args:
        dim: Channels D.
        d_state: Real states N of a channel, kept as M = N / 2 pairs, rounded up.
        A_init: How A starts: "lin", "inv", "legs" or "real", see `s4d_A`.
        device: Of the parameters.
        dtype: Of the parameters.

    The parameters: A_logs (D, M), log of minus the real part; A_imag (D, M); C (D, M, 2), the real and the imaginary
    part; log_dt (D,); Ds (D,), the skip.

    Raises:
        ValueError: Another start.
    """

    def __init__(self, dim: int, d_state: int = 64, A_init: str = "lin", device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.A_init = A_init
        pairs = (d_state + 1) // 2
        self.A_logs = nn.Parameter(torch.empty(dim, pairs, **dd))
        self.A_imag = nn.Parameter(torch.empty(dim, pairs, **dd))
        self.C = nn.Parameter(torch.empty(dim, pairs, 2, **dd))
        self.log_dt = nn.Parameter(torch.empty(dim, **dd))
        self.Ds = nn.Parameter(torch.empty(dim, **dd))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start as the paper: A by its name, C normal, steps log-uniform in [0.001, 0.1], a skip of 1."""
        A = s4d_A(self.A_init, 2 * self.A_logs.shape[1])
        self.A_logs.copy_((-A.real).log().expand_as(self.A_logs))
        self.A_imag.copy_(A.imag.expand_as(self.A_imag))
        nn.init.normal_(self.C, std=0.5**0.5)  # of complex numbers of deviation 1
        self.log_dt.uniform_(math.log(1e-3), math.log(0.1))
        self.Ds.fill_(1)

    def system(self) -> Tuple[Tensor, Tensor, Tensor]:
        """Give A (D, M), C (D, M), both complex, and dt (D,), in float32 or better."""
        A = torch.complex(state_matrix(self.A_logs), at_least_float32(self.A_imag))
        return A, torch.view_as_complex(at_least_float32(self.C)), torch.exp(at_least_float32(self.log_dt))

    def half_lives(self) -> Tensor:
        """Give after how many positions the size of each complex state has halved, (D, M)."""
        A, _, step = self.system()
        return half_life(step.unsqueeze(-1) * A.real)

    def convolve(self, u: Tensor) -> Tensor:
        """Convolve (B, L, D) with the kernel, without the skip, in float32 or better."""
        with outside_autocast(u):
            length = u.shape[1]
            A, C, step = self.system()
            kernel = s4d_kernel(A, C, step, length).T
            u = at_least_float32(u).to(kernel.dtype)
            # Twice the length, so that the end does not run into the start.
            product = torch.fft.rfft(u, 2 * length, dim=1) * torch.fft.rfft(kernel, 2 * length, dim=0)
            return torch.fft.irfft(product, 2 * length, dim=1)[:, :length]

    def forward(self, u: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        return (self.convolve(u) + at_least_float32(self.Ds) * at_least_float32(u)).to(u.dtype)

    def recurrence(self, u: Tensor) -> Tensor:
        """Compute what `forward` does, position by position: x_t = exp(dt A) x_t-1 + (exp(dt A) - 1) / A u_t."""
        A, C, step = self.system()
        dt_A = step.unsqueeze(-1) * A
        decay, given = torch.exp(dt_A), torch.expm1(dt_A) / A
        state = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype, device=u.device)
        results = []
        for at in at_least_float32(u).unbind(1):
            state = decay * state + given * at.unsqueeze(-1)
            results.append(2 * (C * state).sum(-1).real + at_least_float32(self.Ds) * at)
        return torch.stack(results, dim=1).to(u.dtype)


class S4D2D(SS2D):
    """`SS2D` with an `S4D` along each route in the place of the selective scan: nothing in it depends on the input.

    Args:
        dim: Width C of the input and output.
        d_state: Real states N of a channel, kept as pairs, at least one.
        A_init: How A starts, see `s4d_A`.
        **kwargs: Further arguments of `SS2D`, dt_rank excepted: there is a step for each channel.

    An ablation: no published weights have it. It is not made for TorchScript.
    """

    def __init__(self, dim: int, d_state: int = 16, A_init: str = "lin", **kwargs):
        super().__init__(dim, d_state=d_state, A_init=A_init, **kwargs)

    def add_scan(self, channels, d_state, dt_rank, routes, scan_float32, A_init, **dd) -> None:
        """Register a system for each channel of each route."""
        self.num_routes = len(routes)
        self.scan_channels = channels
        self.route_code: List[int] = encode_routes(routes)
        self.ssm = S4D(len(routes) * channels, d_state, A_init, **dd)

    def init_scan(self) -> None:
        """Start the systems."""
        self.ssm.init_weights()

    def along_routes(self, u: Tensor) -> Tensor:
        """Put (B, H, W, D) along the routes: (B, L, K D)."""
        along = torch.ops.vssm.read_map(u, routes=self.route_code, per_sequence=False)
        return along.flatten(2)

    def mix(self, x: Tensor) -> Tensor:
        """Convolve along the routes, add the skips, and merge: (B, H, W, D) to (B, H, W, D)."""
        skip = at_least_float32(self.ssm.Ds).unflatten(0, (self.num_routes, -1)).sum(0)
        return self.apart(x).sum(3) + skip * at_least_float32(x)

    def apart(self, x: Tensor) -> Tensor:
        """Convolve along the routes, without the skips: (B, H, W, D) to (B, H, W, K, D)."""
        y = self.ssm.convolve(self.along_routes(x)).unflatten(-1, (self.num_routes, self.scan_channels))
        height, width = x.shape[1:3]
        return torch.ops.vssm.write_map(y, routes=self.route_code, height=height, width=width, merge=False)

    def scans_of(self, u: Tensor) -> List[LinearScan]:
        """Say how the scan of a map (1, H, W, D) is linear: it is, for any."""
        return [LinearScan(u, self.apart, route_names(self.route_code), self.scan_channels)]
