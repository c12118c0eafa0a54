"""Selective scans of other projects, timed together with ours where they are installed."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def mamba_ssm(inputs: list[torch.Tensor]) -> Callable[..., torch.Tensor] | str:
    """The CUDA kernel of Mamba's own package."""
    if inputs[0].device.type != "cuda":
        return "mamba_ssm runs on CUDA only"
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, RuntimeError, OSError):  # its compiled part may be absent or of another torch
        return "mamba_ssm is not installed, or without its CUDA kernel"
    return lambda u, delta, A, B, C, D, bias: selective_scan_fn(u, delta, A, B, C, D, None, bias, True)


def _join(left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]):
    return left[0] * right[0], right[0] * left[1] + right[1]


def associative_scan(inputs: list[torch.Tensor]) -> Callable[..., torch.Tensor] | str:
    """PyTorch's own operator for scans, in its general mode: decays and inputs of all states are made beforehand."""
    try:
        from torch._higher_order_ops.associative_scan import associative_scan as scan
    except ImportError:
        return "this PyTorch has no associative_scan"

    def run(u, delta, A, B, C, D, bias):
        groups = B.shape[1]
        delta = F.softplus(delta + bias[:, None])
        decay = torch.exp(delta.unsqueeze(-1) * A[:, None])  # (Bt, M, L, N)
        step = (delta * u).unflatten(1, (groups, -1)).unsqueeze(-1) * B.mT.unsqueeze(2)
        _, states = scan(_join, (decay, step.flatten(1, 2)), 2, combine_mode="generic")
        y = (states.unflatten(1, (groups, -1)) * C.mT.unsqueeze(2)).sum(-1)
        return y.flatten(1, 2) + D[:, None] * u

    return run


PEERS = {"mamba_ssm": mamba_ssm, "torch associative_scan": associative_scan}


def add_peers(candidates: dict, inputs: list[torch.Tensor], leaves: list[torch.Tensor], grad_y: torch.Tensor) -> None:
    """Forward and forward + backward of every peer, or why it is not there."""
    for name, find in PEERS.items():
        scan = find(inputs)
        if isinstance(scan, str):
            candidates[f"{name} fwd"] = candidates[f"{name} fwd+bwd"] = scan
            continue
        candidates[f"{name} fwd"] = lambda scan=scan: scan(*inputs)
        candidates[f"{name} fwd+bwd"] = lambda scan=scan: torch.autograd.grad(scan(*leaves), leaves, grad_y)
