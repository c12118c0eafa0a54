"""Neighbourhood attention by PyTorch's compiled `flex_attention`, for GPUs.

Blocks of pixels that do not see each other are skipped. The gradient of the bias is summed with atomics, so it may
differ in its last bits from run to run; under `torch.use_deterministic_algorithms` this backend is not chosen.
"""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["attention_bwd", "attention_fwd", "unavailable_reason"]

# The smallest number of channels a head that its kernels take.
_LEAST_CHANNELS = 16


def unavailable_reason(q: Tensor, v: Tensor) -> str | None:
    """Say in one sentence why this backend cannot run on these tensors; None when it can."""
    if q.device.type != "cuda":
        return f"backend 'flex' runs on CUDA tensors, got a {q.device.type} tensor"
    if q.dtype == torch.float64:
        return "backend 'flex' has no float64; use 'torch' or 'reference'"
    if q.shape[-1] < _LEAST_CHANNELS or q.shape[-1] != v.shape[-1]:
        return (
            f"backend 'flex' takes heads of one width of at least {_LEAST_CHANNELS}, got {q.shape[-1]}, {v.shape[-1]}"
        )
    if torch.are_deterministic_algorithms_enabled():
        return "the gradient of the bias is not deterministic in backend 'flex'"
    return None


def _axes(height: int, width: int, kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple]:
    """(index on the axis, size, window, dilation) of both axes."""
    indices = (lambda i: i // width, lambda i: i % width)
    return list(zip(indices, (height, width), kernel_size, dilation, strict=True))


@lru_cache(maxsize=64)
def _block_mask(height: int, width: int, kernel_size: tuple[int, ...], dilation: tuple[int, ...], device: torch.device):
    """Which pixels see which, for `flex_attention`."""
    from torch.nn.attention.flex_attention import create_block_mask

    axes = _axes(height, width, kernel_size, dilation)

    def sees(batch: Tensor, head: Tensor, asking: Tensor, key: Tensor) -> Tensor:
        seen = asking >= 0
        for index, size, window, step in axes:
            first, place = index(asking) % step, index(asking) // step
            group = (size - first + step - 1) // step
            start = torch.minimum((place - window // 2).clamp(min=0), (group - window).clamp(min=0))
            key_place = index(key) // step
            seen = seen & (index(key) % step == first) & (key_place >= start) & (key_place < start + window)
        return seen

    length = height * width
    return create_block_mask(sees, None, None, length, length, device=device, _compile=device.type == "cuda")


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: list[int], dilation: list[int], scale: float
) -> Tensor:
    """See `rule.attention_fwd`."""
    from torch.nn.attention.flex_attention import flex_attention

    height, width = q.shape[1:3]
    kernel_size, dilation = tuple(kernel_size), tuple(dilation)
    axes = _axes(height, width, kernel_size, dilation)

    def with_bias(score: Tensor, batch: Tensor, head: Tensor, asking: Tensor, key: Tensor) -> Tensor:
        rows = [
            # Pixels that are no neighbours come here, too.
            (index(key) // step - index(asking) // step + window - 1).clamp(0, 2 * window - 2)
            for index, _, window, step in axes
        ]
        return score + bias[head, rows[0], rows[1]]

    run = torch.compile(flex_attention, dynamic=False) if q.is_cuda else flex_attention
    y = run(
        *(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)),
        score_mod=None if bias is None else with_bias,
        block_mask=_block_mask(height, width, kernel_size, dilation, q.device),
        scale=scale,
    )
    return y.transpose(1, 2).unflatten(1, (height, width)).contiguous()


def attention_bwd(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    dilation: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See `tiles.attention_bwd`; the attention is computed anew."""
    with torch.enable_grad():
        q, k, v, bias = (None if x is None else x.detach().requires_grad_() for x in (q, k, v, bias))
        y = attention_fwd(q, k, v, bias, kernel_size, dilation, scale)
        wanted = [x for x in (q, k, v, bias) if x is not None]
        gradients = torch.autograd.grad(y, wanted, grad)
    return (*gradients, None) if bias is None else gradients
