"""Hadamard matrices, which spread the few large channels of a scan's result over all of them (Quamba, 2410.13229)."""

import torch
from torch import Tensor

__all__ = ["hadamard", "has_hadamard", "rotate"]

# Primes q = 3 mod 4 give a matrix of q + 1 rows; Sylvester's doubling gives the others.
_PALEY = {12: 11, 20: 19}


def _start(n: int) -> int | None:
    """The matrix that `n` is doubled from: 1, 12 or 20 rows; None if there is none here."""
    for rows in (1, *_PALEY):
        times, rest = divmod(n, rows)
        if rest == 0 and times > 0 and times & (times - 1) == 0:
            return rows
    return None


def has_hadamard(n: int) -> bool:
    """Tell whether `hadamard` knows a matrix of `n` rows."""
    return _start(n) is not None


def hadamard(n: int) -> Tensor:
    """Return a symmetric matrix H of 1 and -1 with H H = n I, in float32.

    Args:
        n: 2^k, 12 * 2^k or 20 * 2^k (so 40 * 2^k too), which covers the inner widths of the published models. The
            powers of two are in Sylvester's order.

    Raises:
        ValueError: No matrix of this size is known here.
    """
    rows = _start(n)
    if rows is None:
        raise ValueError(f"hadamard: n must be 2^k, 12 * 2^k or 20 * 2^k, got {n}")
    matrix = torch.ones(1, 1)
    if rows in _PALEY:
        q = _PALEY[rows]
        squares = {i * i % q for i in range(1, q)}
        # Paley's construction with its rows in the order that makes it symmetric: 1 where i + j is a square.
        core = [[1.0 if (i + j) % q in squares else -1.0 for j in range(q)] for i in range(q)]
        matrix = torch.ones(rows, rows)
        matrix[1:, 1:] = torch.tensor(core)
    for _ in range((n // rows).bit_length() - 1):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def rotate(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the last dimension by H / sqrt(n). Twice gives `x` back.

    Args:
        x: (..., n).
        matrix: H of `hadamard`.
    """
    return x @ (matrix * matrix.shape[0] ** -0.5).to(x.dtype)
