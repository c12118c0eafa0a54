"""The state space that all mixers share: its parameters, how they start, in what precision they are used, its scan.

Letters: B batch, H x W map, K sequences of a scan, D channels of a sequence, N states, R rank of the step size.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Dict, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor

from vssm_kernels.passes import scan_pass
from vssm_kernels.watch import unwatched

from .linear import repeat_batch
from .pruning import scan_over_gaps

__all__ = [
    "StateSpaceMixer",
    "at_least_float32",
    "half_life",
    "init_linear",
    "init_projection",
    "init_state_matrix",
    "init_step_bias",
    "inner_width",
    "no_maps",
    "one_more",
    "outside_autocast",
    "runs_in_one_call",
    "split_projection",
    "state_matrix",
]

torch.fx.wrap("at_least_float32")
torch.fx.wrap("_float32_or_better")


def at_least_float32(x: Tensor) -> Tensor:
    """Raise half dtypes to float32: parameters of the state space are never used below it.

    It branches on a dtype, which FX does not know while it traces: a module that calls this says
    `torch.fx.wrap("at_least_float32")`, which makes it a call of its own in the graph.
    """
    return x if x.dtype == torch.float64 else x.float()


def _float32_or_better(x: Tensor) -> torch.dtype:
    """Give the dtype of `at_least_float32(x)`. FX records the call, for it does not know the dtype."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def outside_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Give a context in which autocast does not lower what is computed from `x`.

    FX does not record contexts: a function that enters one is wrapped by `torch.fx.wrap` where it is called.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind):  # not on the meta device
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def state_matrix(logs: Tensor) -> Tensor:
    """Compute A = -exp(logs), of any shape, in float32 or better."""
    return -torch.exp(at_least_float32(logs))


def split_projection(projected: Tensor, rank: int, states: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Split (..., R + 2 N) into the step size (..., R), B and C (..., N)."""
    dt, B, C = projected.split([rank, states, states], dim=-1)
    return dt, B, C


def no_maps(x: Tensor) -> bool:
    """Tell whether a batch is empty. The ops take no empty tensors: of such a batch one map of zeros is scanned.

    While FX or the tracer of TorchScript follow a model they are told that it is not.
    """
    if torch.jit.is_scripting():
        return x.shape[0] == 0
    else:  # TorchScript compiles one of the two
        return isinstance(x, Tensor) and not torch.jit.is_tracing() and x.shape[0] == 0


def runs_in_one_call(x: Tensor) -> bool:
    """Tell whether one operator may stand for those of a mixer: on CPUs, where nothing is recorded.

    Compilers, exporters and tracers follow those operators, transforms have rules for them, and training keeps their
    results.

    Args:
        x: What the projection in gives.
    """
    if torch.jit.is_scripting():
        return False
    else:  # TorchScript compiles one of the two
        followed = not isinstance(x, Tensor) or not unwatched()
        return not followed and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def inner_width(dim: int, ratio: float, out_proj: bool) -> int:
    """Give the inner width of a mixer.

    Raises:
        ValueError: No projection leads back from it, and it is not the outer width.
    """
    inner = int(ratio * dim)
    if not out_proj and inner != dim:
        raise ValueError(f"Without out_proj the inner width has to be the outer one, {dim}, not {inner}: ssm_ratio=1.")
    return inner


def one_more(x: Tensor) -> Tensor:
    """Append zeros (1, ...) to (B, ...), with a gradient, so that no parameter goes without one."""
    return F.pad(x, [0, 0] * (x.dim() - 1) + [0, 1])


@torch.no_grad()
def init_linear(*weights: Tensor) -> None:
    """Fill the matrices of linear layers as the official codes do: normal, deviation 0.02, truncated."""
    for weight in weights:
        trunc_normal_(weight, std=0.02)


@torch.no_grad()
def init_projection(weight: Tensor) -> None:
    """Fill a matrix (..., out, in) uniformly between plus and minus in ** -0.5."""
    bound = weight.shape[-1] ** -0.5
    weight.uniform_(-bound, bound)


@torch.no_grad()
def init_step_bias(bias: Tensor, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
    """Fill with the inverse softplus of steps drawn log-uniformly from [dt_min, dt_max] (Mamba, arXiv 2312.00752)."""
    step = torch.empty_like(bias).uniform_(math.log(dt_min), math.log(dt_max)).exp_().clamp_(min=dt_floor)
    bias.copy_(step + torch.log(-torch.expm1(-step)))


def half_life(decay: Tensor) -> Tensor:
    """Give the time after which exp(decay * time) is a half, for real and negative decays of any shape."""
    return -math.log(2) / decay


@torch.no_grad()
def init_state_matrix(logs: Tensor, A_init: str | float) -> None:
    """Fill log(-A), (..., N), with a start of a real diagonal A = -exp(logs).

    Args:
        logs: What is filled.
        A_init: "real": -(n + 1) for state n = 0, 1, ..., the S4D-Real of every family that follows Mamba; the diagonal
            of HiPPO-LegS. "constant": -1/2 for all states, the real part of S4D-Lin, S4D-Inv and S4D-LegS. "random":
            -exp(x) with x normal, of Mamba's ablation. "uniform": uniform between -16 and -1, Mamba-2's. A negative
            number: that for all states. With one state a channel "real" is -1.

    Raises:
        ValueError: Another word, a number that does not decay, or a start that is complex.
    """
    if isinstance(A_init, str):
        if A_init in ("lin", "inv", "legs"):
            raise ValueError(
                f"A_init={A_init!r} is complex, and of it a real scan could keep the real part alone, -1/2: say "
                "A_init='constant' for that, or take vssm.scans.S4D, whose states are complex"
            )
        if A_init == "real":
            states = torch.arange(1, logs.shape[-1] + 1, dtype=logs.dtype, device=logs.device)
            logs.copy_(states.log().expand_as(logs))
        elif A_init == "constant":
            logs.fill_(math.log(0.5))
        elif A_init == "random":
            logs.normal_()
        elif A_init == "uniform":
            logs.uniform_(1, 16).log_()
        else:
            raise ValueError(f"A_init must be real, constant, random, uniform or a negative number, got {A_init!r}")
    elif -math.inf < A_init < 0:
        logs.fill_(math.log(-A_init))
    else:
        raise ValueError(f"A_init must be real, constant, random, uniform or a negative number, got {A_init!r}")


class StateSpaceMixer(nn.Module):
    """Base of the mixers that scan maps by `torch.ops.vssm.selective_scan_2d`: the parameters of K sequences, the call.

    A subclass calls `add_state_space` in its constructor, `init_state_space` when its parameters start, and `scan` in
    its forward. The names of the parameters are those of the official checkpoints:

    * dt_projs_weight (K, D, R) and dt_projs_bias (K, D): from the rank of the step size to the channels.
    * A_logs (K D, N): log(-A).
    * Ds (K D,): the skip.

    Attributes:
        quant_points: What `scan` reads that a quantiser may round, by the names of its arguments (`vssm.quantize`).
        quant_weights: Parameters that are weights of projections without being those of linear layers. `enter` reads
            the input of in_proj_weight, `project` that of x_proj_weight; `normalise` gives that of out_proj_weight.
    """

    quant_points = ("u", "dt", "B", "C")
    quant_weights: Tuple[str, ...] = ()

    def add_state_space(
        self,
        sequences: int,
        channels: int,
        d_state: int,
        dt_rank: int,
        scan_float32: bool,
        A_init: str | float = "real",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Register the parameters, empty.

        Args:
            sequences: K.
            channels: D.
            d_state: N.
            dt_rank: R.
            scan_float32: Give the result in float32 or better whatever the dtype of the inputs. Any scan is computed
                in it, so half inputs are read as they are.
            A_init: How A starts, see `init_state_matrix`.
            device: Of the parameters.
            dtype: Of the parameters.
        """
        dd: Dict[str, Any] = {"device": device, "dtype": dtype}
        self.scan_channels = channels
        self.d_state = d_state
        self.dt_rank = dt_rank
        self.scan_float32 = scan_float32
        self.A_init = A_init
        self.dt_projs_weight = nn.Parameter(torch.empty(sequences, channels, dt_rank, **dd))
        self.dt_projs_bias = nn.Parameter(torch.empty(sequences, channels, **dd))
        self.A_logs = nn.Parameter(torch.empty(sequences * channels, d_state, **dd))
        self.Ds = nn.Parameter(torch.empty(sequences * channels, **dd))

    @torch.no_grad()
    def init_state_space(self, x_proj: Tensor) -> None:
        """Start the parameters as Mamba does (log-uniform steps), and A by `A_init`.

        Args:
            x_proj: The projection to step size, B and C, (..., R + 2 N, in), which starts with them.
        """
        init_projection(x_proj)
        init_projection(self.dt_projs_weight)
        init_step_bias(self.dt_projs_bias)
        init_state_matrix(self.A_logs, self.A_init)
        self.Ds.fill_(1)

    def state_space(self) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give A (K, D, N), the skip (K, D), and the bias (K, D) and weight (K, D, R) of the step size."""
        A = state_matrix(self.A_logs).unflatten(0, (-1, self.scan_channels))
        return A, self.Ds.unflatten(0, (-1, self.scan_channels)), self.dt_projs_bias, self.dt_projs_weight

    def half_lives(self) -> Tensor:
        """Give after how many positions half of each state is left at the step of an input of zeros, (K, D, N)."""
        A, _, bias, _ = self.state_space()
        return half_life(F.softplus(at_least_float32(bias)).unsqueeze(-1) * A)

    def scan(
        self,
        u: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor | None,
        code: List[int],
        merge: bool = True,
        skip: bool = True,
        out_dtype: torch.dtype | None = None,
        sequences: Tuple[int, int] | None = None,
    ) -> Tensor:
        """Scan maps along encoded routes.

        Args:
            u: The input (B, H, W, D), or (B, H, W, K, D) with channels of its own for each sequence.
            dt: The step size at its low rank, (B, H, W, K, R).
            B: (B, H, W, K, N).
            C: (B, H, W, K, N); None: the result is the state, for N = 1.
            code: The routes of the K sequences, from `encode_routes`.
            merge: Sum the results of all routes.
            skip: Add the skip D u.
            out_dtype: Of the result; None: that of the input, or float32 or better with `scan_float32`.
            sequences: First and end of the range of parameters that the K sequences take; None: all of them.

        Returns:
            (B, H, W, D), or one result for each route, (B, H, W, routes, D), if they are not merged.
        """
        A, Ds, bias, weight = self.state_space()
        if sequences is not None:
            first, end = sequences
            A, Ds, bias, weight = A[first:end], Ds[first:end], bias[first:end], weight[first:end]
        D = Ds if skip else None
        if self.scan_float32 and out_dtype is None:
            out_dtype = _float32_or_better(u)
        if not torch.jit.is_scripting():
            scanned = scan_pass(u, dt, B, C, code, merge, out_dtype, A=A, D=D, delta_bias=bias, dt_weight=weight)
            if scanned is not None:
                return scanned
        empty = no_maps(u)
        if empty:
            u, dt, B = one_more(u), one_more(dt), one_more(B)
            C = one_more(C) if C is not None else None
        # The op itself rather than vssm_kernels.selective_scan_2d: TorchScript and FX see one node.
        y = torch.ops.vssm.selective_scan_2d(
            u,
            dt=dt,
            A=A,
            B=B,
            C=C,
            D=D,
            delta_bias=bias,
            dt_weight=weight,
            routes=code,
            merge=merge,
            out_dtype=out_dtype,
        )
        return y[:0] if empty else y

    def scan_kept(
        self,
        u: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        code: List[int],
        gaps: Tensor | None,
        merge: bool = True,
        sequences: Tuple[int, int] | None = None,
    ) -> Tensor:
        """Scan the tokens that pruning has left, over the gaps between them.

        Args:
            u: The input (B, 1, L, D) or (B, 1, L, K, D).
            dt: As for `scan`; so are B, C, code, merge and sequences.
            B: (B, 1, L, K, N).
            C: (B, 1, L, K, N).
            code: The routes.
            gaps: Pruned tokens before each, (B, L, K): over each of them the state decays as it does at a token of
                zeros. None: the state is carried, and the gaps are nothing.
            merge: Sum the results of all routes.
            sequences: The range of parameters.
        """
        if gaps is None:
            return self.scan(u, dt, B, C, code, merge=merge, sequences=sequences)
        A, D, bias, weight = self.state_space()
        if sequences is not None:
            first, end = sequences
            A, D, bias, weight = A[first:end], D[first:end], bias[first:end], weight[first:end]
        u, dt, B, C = at_least_float32(u), at_least_float32(dt), at_least_float32(B), at_least_float32(C)
        weight, bias, D = at_least_float32(weight), at_least_float32(bias), at_least_float32(D)
        delta = F.softplus(torch.einsum("...kr,kdr->...kd", dt, weight) + bias)
        waited = gaps.unsqueeze(1).unsqueeze(-1) * F.softplus(bias)
        return scan_over_gaps(u, delta, waited, A, B, C, D, code, merge)

    def linear_part(
        self, dt: Tensor, B: Tensor, C: Tensor | None, code: List[int], sequences: Tuple[int, int] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Give `scan` as a function of nothing but its input, without the skip, the routes apart.

        Args:
            dt: As for `scan`, of n maps, and held fixed; so are B and C.
            B: As for `scan`.
            C: As for `scan`.
            code: As for `scan`.
            sequences: As for `scan`.

        Returns:
            A function from (Q n, H, W, [K,] D) to (Q n, H, W, routes, D).
        """

        def apply(u: Tensor) -> Tensor:
            dt_, B_ = repeat_batch(dt, len(u)), repeat_batch(B, len(u))
            C_ = None if C is None else repeat_batch(C, len(u))
            return self.scan(u, dt_, B_, C_, code, merge=False, skip=False, sequences=sequences)

        return apply
