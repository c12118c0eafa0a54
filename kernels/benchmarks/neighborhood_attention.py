"""Neighbourhood attention against gathers, dense attention with a mask, NATTEN, and the window attention of Swin."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from registry import Benchmark, Ratio, register

from vssm_kernels.backends import choose_attention_backend, unavailable_reason
from vssm_kernels.neighborhood import compiled, flex, rule, tiles

Candidates = dict[str, Callable[[], object] | str]
# Side of the map, window, dilation, heads, channels a head.
STAGES = {
    "segman_small_stage1": (56, 11, 1, 2, 32),
    "segman_small_stage2": (28, 9, 1, 4, 36),
    "segman_small_stage3": (14, 7, 1, 8, 36),
    "a2mamba_small_stage1_dilated": (56, 11, 5, 1, 32),
}


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """All pixels with all others, by PyTorch's fused attention."""
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def dense_mask(size: int, window: int, dilation: int, bias: torch.Tensor) -> torch.Tensor:
    """The bias of neighbours and minus infinity elsewhere, (1, heads, L, L)."""
    pixels, rows = (torch.tensor(table) for table in rule.windows(size, window, dilation))
    axis = torch.full((size, size), 2 * window - 1).scatter_(1, pixels, rows)
    padded = F.pad(bias, (0, 1, 0, 1), value=float("-inf"))
    mask = padded[:, axis[:, None, :, None], axis[None, :, None, :]]
    return mask.flatten(3).flatten(1, 2)[None].contiguous()


def natten(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, dilation: int) -> Callable | str:
    """NATTEN's own, forward and without bias, which is all that today's releases offer on a CPU."""
    try:
        from natten.functional import na2d
    except (ImportError, RuntimeError, OSError):
        return "natten is not installed"
    try:
        na2d(q, k, v, kernel_size=window, dilation=dilation)
    except Exception as error:  # head dimensions it does not take, say
        return f"natten refuses: {str(error).strip().splitlines()[0]}"
    return partial(na2d, q, k, v, kernel_size=window, dilation=dilation)


def swin(x: torch.Tensor, heads: int, device: torch.device) -> Callable | str:
    """Swin's attention in windows of 7 x 7 of as wide a map, with its projections: what a block of it does."""
    try:
        from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
    except ImportError:
        return "timm is not installed"
    if x.shape[1] % 7:
        return "Swin's windows of 7 x 7 do not fit the map"
    attention = WindowAttention(x.shape[-1], heads, window_size=(7, 7)).eval().to(device)

    @torch.no_grad()
    def run() -> torch.Tensor:
        windows = attention(window_partition(x, (7, 7)).flatten(1, 2))
        return window_reverse(windows.unflatten(1, (7, 7)), (7, 7), *x.shape[1:3])

    return run


def build(
    batch: int, size: int, window: int, dilation: int, heads: int, channels: int, device: torch.device
) -> Candidates:
    gen = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen).to(device)

    dim = heads * channels
    x, q, k, v = randn(batch, size, size, dim), *(randn(batch, size, size, heads, channels) for _ in range(3))
    bias, grad = randn(heads, 2 * window - 1, 2 * window - 1), randn(*v.shape)
    qkv, proj = (torch.nn.Linear(dim, wide).to(device) for wide in (3 * dim, dim))
    given = [window, window], [dilation, dilation], channels**-0.5
    reason = flex.unavailable_reason(q, v)
    no_library = unavailable_reason("cpp", device, q.dtype)
    auto = choose_attention_backend("auto", q, v)
    mask = dense_mask(size, window, dilation, bias.cpu()).to(device)

    @torch.no_grad()
    def with_projections() -> torch.Tensor:
        q, k, v = qkv(x).unflatten(-1, (3, heads, channels)).unbind(3)
        return proj(auto.attention_fwd(q, k, v, bias, *given).flatten(3))

    return {
        "gather fwd": partial(rule.attention_fwd, q, k, v, bias, *given),
        "torch fwd": partial(tiles.attention_fwd, q, k, v, bias, *given),
        "torch bwd": partial(tiles.attention_bwd, grad, q, k, v, bias, *given),
        "cpp fwd": no_library or partial(compiled.attention_fwd, q, k, v, bias, *given),
        "cpp bwd": no_library or partial(compiled.attention_bwd, grad, q, k, v, bias, *given),
        "flex fwd": reason or partial(flex.attention_fwd, q, k, v, bias, *given),
        "flex fwd+bwd": reason or partial(flex.attention_bwd, grad, q, k, v, bias, *given),
        "dense with a mask fwd": partial(dense, q, k, v, mask),
        "torch fwd, no bias": partial(tiles.attention_fwd, q, k, v, None, *given),
        "natten fwd, no bias": natten(q, k, v, window, dilation),
        "with projections fwd": with_projections,
        "Swin's window attention fwd": swin(x, heads, device),
    }


for name, (size, window, dilation, heads, channels) in STAGES.items():
    for batch in (1, 8):
        target = name == "segman_small_stage1" and batch == 8
        register(
            Benchmark(
                name=f"neighborhood_{name}_b{batch}",
                about=f"B {batch}, {size} x {size}, window {window}, dilation {dilation}, {heads} heads of {channels}",
                build=partial(build, batch, size, window, dilation, heads, channels),
                ratios=[
                    Ratio("gather fwd", "torch fwd", at_least=5 if target else None),
                    Ratio("with projections fwd", "Swin's window attention fwd", at_most=3 if target else None),
                    Ratio("dense with a mask fwd", "torch fwd"),
                    Ratio("torch fwd", "cpp fwd"),
                    Ratio("torch bwd", "cpp bwd"),
                    Ratio("natten fwd, no bias", "torch fwd, no bias"),
                ],
            )
        )
