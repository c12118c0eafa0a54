"""Move outliers of activations into the weights that they meet (SmoothQuant, arXiv 2211.10438)."""

import torch
from torch import Tensor, nn

__all__ = ["fold_into", "smooth_scales"]


def smooth_scales(activation_max: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    """Return what each input channel is divided by: max|x_c|^alpha / max|W_c|^(1 - alpha).

    The product (x / s) (W s)^T is that of x and W, and both factors are about equally hard to quantise.

    Args:
        activation_max: Largest absolute value of each input channel, (C,); taken as at least 1e-3.
        weight: (out, C); its largest values are taken as at least 1e-5.
        alpha: How much goes to the weights: PTQ4VM takes 0.5 for Vim and 0.65 for VMamba.

    Returns:
        (C,), at least 1e-5.
    """
    weight_max = weight.detach().abs().amax(0).clamp(min=1e-5)
    return (activation_max.clamp(min=1e-3).pow(alpha) / weight_max.pow(1 - alpha)).clamp(min=1e-5)


@torch.no_grad()
def fold_into(layer: nn.LayerNorm | nn.Linear, scales: Tensor) -> None:
    """Divide the outputs of a layer by `scales`, in its weights, so that nothing is divided at run time.

    Args:
        layer: Stands before the smoothed linear layer and gives its result to nothing else.
        scales: (C,).

    Raises:
        ValueError: The layer has no weights to divide.
    """
    if layer.weight is None:
        raise ValueError(f"{type(layer).__name__} has no weight to fold smoothing into")
    layer.weight.div_(scales.unsqueeze(1) if isinstance(layer, nn.Linear) else scales)
    if layer.bias is not None:
        layer.bias.div_(scales)
