"""Run any hierarchical network on the visible places of a masked image or volume alone (SparK, arXiv 2301.03580).

Each layer's result is multiplied by the mask of its own resolution, so nothing passes through a masked place, and norms
over many places take their statistics over those that are seen. With everything visible all is as it was.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from timm.layers import LayerNorm2d, RmsNorm2d, SimpleNorm2d
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["mask_at", "sparse_form"]

_CHANNELS_FIRST = (
    *(nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool2d, nn.AvgPool3d, LayerNorm2d, RmsNorm2d, SimpleNorm2d),
)
_CHANNELS_LAST = (nn.LayerNorm, nn.RMSNorm, nn.Linear)
_STATISTICS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)


def mask_at(visible: Tensor, size: Any) -> Tensor | None:
    """Repeat a mask of the coarsest grid to a finer one.

    Args:
        visible: (B, 1, ...), one entry for each cell of the coarsest map.
        size: Of the finer map, in each dimension.

    Returns:
        (B, 1, *size), or None where the size is no multiple of the grid's, as behind a pooling over the whole map.
    """
    grid = visible.shape[2:]
    if len(size) != len(grid) or any(n == 0 or n % g for n, g in zip(size, grid, strict=True)):
        return None
    for axis, (n, g) in enumerate(zip(size, grid, strict=True)):
        visible = visible.repeat_interleave(n // g, dim=axis + 2)
    return visible


def _hide(visible: Tensor, channels_last: bool, module: nn.Module, inputs: Any, output: Any) -> Any:
    """Set a layer's result to zero at the masked places."""
    dims = visible.ndim - 2
    if not isinstance(output, Tensor) or output.ndim != dims + 2:
        return output
    size = output.shape[1:-1] if channels_last else output.shape[2:]
    mask = mask_at(visible, size)
    if mask is None:
        return output
    # Not multiplied: what a masked place holds may be infinite.
    return output.masked_fill(~(mask.movedim(1, -1) if channels_last else mask), 0.0)


def _normalize(module: Any, visible: Tensor, dense: Any, x: Tensor) -> Tensor:
    """BatchNorm, InstanceNorm or GroupNorm with statistics over the visible places."""
    mask = mask_at(visible, x.shape[2:]) if x.ndim == visible.ndim else None
    if mask is None:
        return dense(x)
    shape = (1, -1, *[1] * (x.ndim - 2))
    if isinstance(module, _BatchNorm) and not (module.training or module.running_mean is None):
        y = dense(x)
    else:
        batch = isinstance(module, _BatchNorm)
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[1]
        z = x.float().unflatten(1, (groups, -1))
        seen = mask.unsqueeze(1).to(z)
        axes = [axis for axis in range(z.ndim) if axis != 1 and (batch or axis != 0)]
        count = seen.sum([a for a in axes if a != 2], keepdim=True) * z.shape[2]
        mean = (z * seen).sum(axes, keepdim=True) / count.clamp(min=1)
        var = ((z - mean).square() * seen).sum(axes, keepdim=True) / count.clamp(min=1)
        if batch and module.training and module.track_running_stats:
            module.num_batches_tracked.add_(1)
            rate = module.momentum if module.momentum is not None else 1.0 / float(module.num_batches_tracked)
            n = float(count.flatten()[0])
            with torch.no_grad():
                module.running_mean.lerp_(mean.flatten().to(module.running_mean), rate)
                module.running_var.lerp_((var.flatten() * (n / max(n - 1, 1))).to(module.running_var), rate)
        y = ((z - mean) * torch.rsqrt(var + module.eps)).flatten(1, 2).to(x.dtype)
        if module.weight is not None:
            y = y * module.weight.view(shape).to(y) + module.bias.view(shape).to(y)
        activate = [getattr(module, name) for name in ("drop", "act") if hasattr(module, name)]
        for layer in activate:  # timm's norms have the activation in them
            y = layer(y)
    return y.masked_fill(~mask, 0.0)


@contextmanager
def sparse_form(module: nn.Module, visible: Tensor) -> Iterator[None]:
    """Within the context, run a network on the visible places alone.

    It serves convolutions, poolings, norms and linear layers of images and volumes, whatever network they are in. A
    scan still walks all places, of which the masked ones hold zeros. A mean over a whole map, as in
    squeeze-and-excitation, counts them as zeros, too.

    Args:
        module: The network. Parameters and their names stay as they are.
        visible: Which cells of the coarsest map are seen, (B, 1, H, W) or (B, 1, D, H, W), bool. A map's size must be a
            multiple of this grid; others are left as they are.
    """
    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, _STATISTICS):
                dense = layer.forward
                layer.__dict__["forward"] = partial(_normalize, layer, visible, dense)
                stack.callback(layer.__dict__.pop, "forward", None)
                continue
            first = getattr(layer, "channels_first", isinstance(layer, _CHANNELS_FIRST))
            if first or isinstance(layer, _CHANNELS_LAST):
                hook = layer.register_forward_hook(partial(_hide, visible, not first))
                stack.callback(hook.remove)
        yield
