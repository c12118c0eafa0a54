"""mmcv's compiled operators that detectors and segmentors of this package need, on torchvision's and PyTorch's.

``pip install onedl-mmcv`` gives mmcv without ``mmcv._ext``, the module of its compiled operators, and mmdet cannot be
imported then. :mod:`vssm._mmcv` makes Python load this file under that name, where no compiled one is installed. It has

- ``nms`` and ``softnms`` (and so ``mmcv.ops.batched_nms``);
- ``roi_align_forward`` and ``roi_align_backward``, average and maximum;
- ``sigmoid_focal_loss_forward`` and ``_backward``, which mmdet's one-stage detectors call on a GPU.

Any other operator is there by name, and raises one sentence when it is called. Sums are made in float32 at least.
Boxes are (x1, y1, x2, y2) in pixels. N boxes, R regions, B images, C channels, H x W pixels, K classes.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor
from torch.nn import functional as F

from vssm._errors import MissingExtraError


def _wide(x: Tensor) -> Tensor:
    """Half precisions as float32: coordinates and scores need more digits, and torchvision lacks bfloat16."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4).
        scores: (N,).
        iou_threshold: A box goes when its overlap with a better one is larger.
        offset: 1 where x2 and y2 are the last pixels inside, 0 where they are the borders.

    Returns:
        Numbers (int64) of the boxes kept, the best first.
    """
    boxes = _wide(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (arXiv 1704.04503): overlapping boxes lose score instead of being dropped.

    Args:
        boxes: (N, 4).
        scores: (N,).
        dets: (N, 5), filled with the boxes kept and their new scores.
        iou_threshold: Overlap from which on methods 0 and 1 lower a score.
        sigma: Width of method 2.
        min_score: Boxes whose score falls below are dropped.
        method: 0 drops as NMS does, 1 multiplies by 1 - overlap, 2 by exp(-overlap^2 / sigma).
        offset: See :func:`nms`.

    Returns:
        Numbers (int64) of the boxes kept, in the order in which they were chosen.
    """
    left = torch.arange(len(boxes))
    boxes, scores = _wide(boxes), _wide(scores).clone()
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1)
    kept = []
    while len(left):
        best = left[scores[left].argmax()]
        dets[len(kept)] = torch.cat([boxes[best], scores[best, None]])
        kept.append(int(best))
        left = left[left != best]
        inner_low = torch.maximum(boxes[best, :2], boxes[left, :2])
        inner_high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        inner = (inner_high - inner_low + offset).clamp(min=0).prod(dim=1)
        overlap = inner / (areas[best] + areas[left] - inner)
        if method == 2:
            weight = torch.exp(-overlap.square() / sigma)
        else:
            weight = torch.where(overlap >= iou_threshold, 1 - overlap if method == 1 else 0.0, 1.0)
        scores[left] *= weight
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.int64)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (arXiv 1703.06870): the average or the maximum of bilinear samples in each bin of each region.

    Args:
        input: (B, C, H, W).
        rois: (R, 5): the image's number, then the box.
        output: (R, C, aligned_height, aligned_width), filled.
        argmax_y: As output, filled for the maximum: the row of the chosen sample within its bin; a bin without samples
            gives 0 and has -1 here.
        argmax_x: The column.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: Pixels of the map for each pixel of the image.
        sampling_ratio: Samples per bin and axis; 0 for as many as the bin has pixels, rounded up.
        pool_mode: 0 the maximum, 1 the average.
        aligned: Shift by half a pixel, so that a pixel's centre has its number as coordinate.
    """
    features, boxes = _wide(input), rois.to(_wide(input).dtype)
    bins = (aligned_height, aligned_width)
    if pool_mode == 1:
        args = (spatial_scale, *bins, sampling_ratio, aligned)
        output.copy_(torch.ops.torchvision.roi_align(features, boxes, *args))
        return
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    for chosen, rows, columns in _by_samples(boxes, bins, spatial_scale, sampling_ratio, aligned):
        # Samples in bins are the averages of one sample each in bins that are finer by as much.
        fine = (spatial_scale, bins[0] * rows, bins[1] * columns, 1, aligned)
        samples = torch.ops.torchvision.roi_align(features, boxes[chosen], *fine)
        best, place = F.max_pool2d(samples, (rows, columns), return_indices=True)
        output[chosen] = best.to(output.dtype)
        width = bins[1] * columns
        # Numbers within a bin stay small enough for half precision to hold them exactly.
        argmax_y[chosen] = (place.div(width, rounding_mode="floor") % rows).to(argmax_y.dtype)
        argmax_x[chosen] = (place % width % columns).to(argmax_x.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` for its input.

    Args:
        grad_output: (R, C, aligned_height, aligned_width).
        rois: See there, as all that is not named here.
        argmax_y: As it was filled.
        argmax_x: As it was filled.
        grad_input: (B, C, H, W), filled.
    """
    grad = _wide(grad_output)
    boxes = rois.to(grad.dtype)
    bins = (aligned_height, aligned_width)
    shape = tuple(grad_input.shape)
    if pool_mode == 1:
        args = (spatial_scale, *bins, *shape, sampling_ratio, aligned)
        grad_input.copy_(torch.ops.torchvision._roi_align_backward(grad, boxes, *args))
        return
    total = grad.new_zeros(shape)
    for chosen, rows, columns in _by_samples(boxes, bins, spatial_scale, sampling_ratio, aligned):
        height, width = bins[0] * rows, bins[1] * columns
        place_y = argmax_y[chosen].long() + rows * torch.arange(bins[0], device=grad.device)[:, None]
        place_x = argmax_x[chosen].long() + columns * torch.arange(bins[1], device=grad.device)
        fine = F.max_unpool2d(grad[chosen], place_y * width + place_x, (rows, columns))
        args = (spatial_scale, height, width, *shape, 1, aligned)
        total += torch.ops.torchvision._roi_align_backward(fine, boxes[chosen], *args)
    grad_input.copy_(total)


def _by_samples(boxes: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool):
    """Group regions by their samples per bin: yields (numbers of the regions, samples down, samples across)."""
    if not len(boxes):
        return
    if sampling_ratio > 0:
        yield torch.arange(len(boxes), device=boxes.device), sampling_ratio, sampling_ratio
        return
    sizes = (boxes[:, 3:] - boxes[:, 1:3]).flip(1) * scale
    if not aligned:
        sizes = sizes.clamp(min=1)
    counts = (sizes / sizes.new_tensor(bins)).ceil().long().clamp(min=0)
    for rows, columns in torch.unique(counts, dim=0).tolist():
        if rows and columns:
            yield (counts == counts.new_tensor([rows, columns])).all(dim=1).nonzero()[:, 0], rows, columns


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (arXiv 1708.02002) of each logit.

    Args:
        input: Logits (N, K).
        target: Classes (N,), int64; K for none of them.
        weight: Factors of the classes (K,), or empty.
        output: (N, K), filled.
        gamma: How much easy examples count less.
        alpha: Weight of the positive class.
    """
    output.copy_(_focal_loss(_wide(input), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` (N, K) with the derivative of each loss; see :func:`sigmoid_focal_loss_forward`."""
    with torch.enable_grad():
        logits = _wide(input).detach().requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha).sum()
        grad_input.copy_(torch.autograd.grad(loss, logits)[0])


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = F.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    signed = torch.where(positive > 0, logits, -logits)
    balance = alpha * positive + (1 - alpha) * (1 - positive)
    loss = -balance * torch.sigmoid(-signed) ** gamma * F.logsigmoid(signed)
    if weight.numel():
        # mmcv's kernel looks the factor up by the target; there is none for the background.
        factor = torch.cat([weight.to(logits.dtype), weight.new_ones(1, dtype=logits.dtype)])[target]
        loss = loss * factor[:, None]
    return loss


def get_compiler_version() -> str:
    """Return what mmcv reports about its build."""
    return "none (vssm supplies some operators from torchvision)"


def get_compiling_cuda_version() -> str:
    """Return what mmcv reports about its build."""
    return "not available"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs) -> NoReturn:
        raise MissingExtraError(
            f"mmcv's operator '{name}' is not there: this mmcv was installed without compiled operators, and vssm "
            "supplies only nms, softnms, RoIAlign and the sigmoid focal loss; it takes an mmcv built from source "
            "(pip install --no-binary onedl-mmcv --no-build-isolation onedl-mmcv, with a compiler and, for mmcv 2.3.6, "
            "PyTorch 2.12 or older)."
        )

    return missing
