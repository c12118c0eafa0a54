"""What the points of a one-stage detector learn: task-aligned assignment, and the overlap that it and the loss measure.

The assignment is that of TOOD (arXiv 2108.07755) in the form of the YOLO line; mmdet's own `TaskAlignedAssigner` looks
for the best points before it asks which lie in the box. The overlap is CIoU (arXiv 1911.08287), whose weight `alpha`
mmdet drops where boxes overlap by less than a half. Letters: B images, G boxes of an image, N points, C classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Targets", "align_targets", "complete_iou"]

_EPS = 1e-7


def complete_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Overlap less the distance of centres and the difference of shapes: at most 1, and down to about -1.5.

    No gradient flows through the weight of the shapes' term, as in the paper.

    Args:
        boxes: (..., 4), left, top, right, bottom, of any unit.
        others: (..., 4), the same.

    Returns:
        (...).
    """
    left, top, right, bottom = boxes.unbind(-1)
    left2, top2, right2, bottom2 = others.unbind(-1)
    width, height = right - left, bottom - top + _EPS
    width2, height2 = right2 - left2, bottom2 - top2 + _EPS
    both = (torch.minimum(right, right2) - torch.maximum(left, left2)).clamp(min=0)
    both = both * (torch.minimum(bottom, bottom2) - torch.maximum(top, top2)).clamp(min=0)
    iou = both / (width * height + width2 * height2 - both + _EPS)
    # Of the smallest box around both.
    diagonal = (torch.maximum(right, right2) - torch.minimum(left, left2)).square()
    diagonal = diagonal + (torch.maximum(bottom, bottom2) - torch.minimum(top, top2)).square() + _EPS
    centres = ((left2 + right2 - left - right).square() + (top2 + bottom2 - top - bottom).square()) / 4
    shapes = 4 / math.pi**2 * (torch.atan(width2 / height2) - torch.atan(width / height)).square()
    with torch.no_grad():
        alpha = shapes / (shapes - iou + 1 + _EPS)
    return iou - (centres / diagonal + shapes * alpha)


@dataclass(frozen=True)
class Targets:
    """What each point learns.

    Attributes:
        positive: (B, N), whether a point has a box to find.
        gt: (B, N), the number of that box in its image; 0 at other points.
        scores: (B, N, C), what it shall say of each class, 0 to 1.
    """

    positive: Tensor
    gt: Tensor
    scores: Tensor


@torch.no_grad()
def align_targets(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Targets:
    """Give each box the points in it that answer best, in class and in place, for all images at once.

    The answer of a point is measured by m = s^alpha u^beta, s its score for the class of the box, u its CIoU with the
    box, not below 0. A box gets its best points; a point that several boxes want goes to the one with the largest u.
    What it shall say of the class is m, scaled so that the best m of a box becomes the best u of that box.

    Args:
        scores: (B, N, C), 0 to 1.
        boxes: (B, N, 4), found boxes in pixels.
        points: (N, 2), x and y in pixels.
        gt_labels: (B, G), integers.
        gt_boxes: (B, G, 4) in pixels.
        gt_valid: (B, G), False where an image has fewer than G boxes.
        topk: Points of a box at most.
        alpha: Weight of the class.
        beta: Weight of the place.
    """
    batch, count, classes = scores.shape
    if gt_boxes.shape[1] == 0:
        nothing = torch.zeros(batch, count, dtype=torch.long, device=scores.device)
        return Targets(nothing.bool(), nothing, torch.zeros_like(scores))
    edges = torch.cat([points - gt_boxes[..., None, :2], gt_boxes[..., None, 2:] - points], dim=-1)
    inside = (edges.amin(-1) > 1e-9) & gt_valid[..., None]  # (B, G, N)

    # Only pairs of a box and a point in it are worth a number; most points lie in no box.
    image, gt, point = inside.nonzero(as_tuple=True)
    overlap, metric = scores.new_zeros(inside.shape), scores.new_zeros(inside.shape)
    place = complete_iou(gt_boxes[image, gt], boxes[image, point]).clamp(min=0)
    overlap[image, gt, point] = place
    metric[image, gt, point] = scores[image, point, gt_labels[image, gt]] ** alpha * place**beta

    best = metric.masked_fill(~inside, -1).topk(min(topk, count), dim=-1).indices
    chosen = torch.zeros_like(inside).scatter_(-1, best, True) & inside
    first = overlap.argmax(1)  # (B, N)
    wanted_by_many = chosen.sum(1, keepdim=True) > 1
    chosen = torch.where(wanted_by_many, torch.zeros_like(chosen).scatter_(1, first[:, None], True), chosen)

    positive, gt_of = chosen.any(1), chosen.long().argmax(1)
    metric, overlap = metric * chosen, overlap * chosen
    scaled = metric * overlap.amax(-1, keepdim=True) / (metric.amax(-1, keepdim=True) + 1e-9)
    labels = gt_labels.gather(1, gt_of)
    target = torch.zeros_like(scores).scatter_(-1, labels[..., None], scaled.amax(1)[..., None])
    return Targets(positive, gt_of, target * positive[..., None])
