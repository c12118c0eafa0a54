"""Parameters of the selective scan: how they start, and in what precision they are used."""

import contextlib
import math

import torch
from torch import Tensor

__all__ = ["at_least_float32", "init_state_space", "init_step_bias", "outside_autocast"]


def at_least_float32(x: Tensor) -> Tensor:
    """Parameters of the state space are never used below float32.

    It branches on a dtype, which FX does not know while it traces: a module that calls this says
    `torch.fx.wrap("at_least_float32")`, which makes it a call of its own in the graph.
    """
    return x if x.dtype == torch.float64 else x.float()


def outside_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which autocast does not lower what is computed from `x`.

    FX does not record contexts: a function that enters one is wrapped by `torch.fx.wrap` where it is called.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind):  # not on the meta device
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def init_step_bias(bias: Tensor, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
    """Fill with the inverse softplus of steps drawn log-uniformly from [dt_min, dt_max] (Mamba, arXiv 2312.00752)."""
    step = torch.empty_like(bias).uniform_(math.log(dt_min), math.log(dt_max)).exp_().clamp_(min=dt_floor)
    bias.copy_(step + torch.log(-torch.expm1(-step)))


@torch.no_grad()
def init_state_space(x_proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_logs: Tensor, Ds: Tensor) -> None:
    """Mamba's initialisation (S4D-real A, log-uniform steps), in place and as every family here starts.

    Args:
        x_proj: projection to step size, B and C, (..., R + 2N, D).
        dt_weight: from the rank of the step size to the channels, (..., D, R).
        dt_bias: bias of the step size, any shape.
        A_logs: log(-A), (..., N).
        Ds: the skip, any shape.
    """
    bound = x_proj.shape[-1] ** -0.5
    x_proj.uniform_(-bound, bound)
    bound = dt_weight.shape[-1] ** -0.5
    dt_weight.uniform_(-bound, bound)
    init_step_bias(dt_bias)
    states = torch.arange(1, A_logs.shape[-1] + 1, dtype=A_logs.dtype, device=A_logs.device)
    A_logs.copy_(states.log().expand_as(A_logs))
    Ds.fill_(1)
