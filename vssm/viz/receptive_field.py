"""The effective receptive field: which input pixels one position of a feature map really looks at.

Definition (Luo et al., arXiv 1701.04128, as measured for VMamba, arXiv 2401.10166): the gradient of the rectified
centre position of the last feature map, summed over channels, with respect to the input; rectified, summed over the
input's channels and averaged over images.
"""

import torch
from torch import Tensor, nn

from .._progress import Progress, quietly
from .features import feature_maps


def effective_receptive_field(
    model: nn.Module, images: Tensor, stage: int = -1, batch_size: int = 8, progress: Progress = quietly
) -> Tensor:
    """Measure the effective receptive field of a timm model.

    Shapes: B images, C channels, H x W pixels.

    Args:
        model: A network that :func:`~vssm.viz.feature_maps` knows; the map is taken before the last norm.
        images: Normalised images (B, C, H, W), on the model's device.
        stage: Index of the feature map; only -1 without ``forward_intermediates``.
        batch_size: How many images are differentiated at once.
        progress: Wraps the loop over the batches, with a title.

    Returns:
        The field (H, W), not negative, not normalised.

    Raises:
        ValueError: ``images`` is no batch of images, or the model gives no feature map.
    """
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must have the shape (B, C, H, W) with B >= 1, not {tuple(images.shape)}.")
    training = model.training
    model.eval()
    try:
        total = torch.zeros(images.shape[-2:], dtype=torch.float64, device=images.device)
        for batch in progress(images.split(batch_size), "images"):
            batch = batch.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                (features,) = feature_maps(model, batch, [stage])
                height, width = features.shape[-2:]
                centre = features[:, :, height // 2, width // 2].relu().sum()
                # Only the input's gradient: the weights' own are neither computed nor disturbed.
                (gradient,) = torch.autograd.grad(centre, batch)
            total += gradient.relu().sum(dim=(0, 1)).double()
    finally:
        model.train(training)
    return (total / len(images)).float()


def high_contribution_side(field: Tensor, share: float) -> int:
    """Return the side of the smallest centred square that holds a share of a field's sum.

    Args:
        field: A field (H, W).
        share: Between 0 and 1.

    Returns:
        The side in pixels; where the square would leave the map, the longer side of the map.
    """
    height, width = field.shape
    total = field.double().sum()
    row, column = height // 2, width // 2
    for radius in range(max(height, width)):
        inside = field[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
        if inside.double().sum() >= share * total:
            return min(2 * radius + 1, max(height, width))
    return max(height, width)
