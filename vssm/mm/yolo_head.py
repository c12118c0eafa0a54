"""The head of Mamba YOLO: classes and boxes apart, and boxes as distributions over distances."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules import DistancePointBBoxCoder, MlvlPointGenerator
from mmengine.dist import get_world_size
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..layers import YOLO_NORM, ConvNorm
from .yolo_targets import align_targets, complete_iou

__all__ = ["MambaYOLOHead"]


class _Branch(nn.Sequential):
    """Two 3 x 3 convolutions and a projection: (B, C, H, W) to (B, dim_out, H, W)."""

    def __init__(self, dim: int, hidden_dim: int, dim_out: int):
        options: dict[str, Any] = dict(act=True, act_layer=nn.SiLU, **YOLO_NORM)
        super().__init__(
            ConvNorm(dim, hidden_dim, **options),
            ConvNorm(hidden_dim, hidden_dim, **options),
            nn.Linear(hidden_dim, dim_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class MambaYOLOHead(BaseDenseHead):
    """Score classes and find a box at every point, on each level by layers of its own (arXiv 2406.05835).

    A side of a box is a distribution over the distances 0 to reg_max - 1, in strides, of that side from the point; its
    mean is the distance (DFL, arXiv 2006.04388). The loss is that of the YOLO line, see :meth:`loss_by_feat`.

    It is in mmengine's root registry. Letters: B images, N points of all levels, C classes, R reg_max.

    Args:
        num_classes: C.
        in_channels: Widths of the levels, the finest first.
        strides: Of the levels.
        reg_max: R, distances of a side.
        img_size: Side of the images in training, for the start: about five objects in an image are expected.
        gains: Weights of the terms "box", "cls" and "dfl" of the loss.
        topk: Points of an object at most, see :func:`~vssm.mm.yolo_targets.align_targets`.
        alpha: Weight of the class in the choice of points.
        beta: Weight of the place in the choice of points.
        train_cfg: Not used, as mmdet's detectors hand it over.
        test_cfg: As of mmdet's dense heads: score_thr, nms_pre, nms, max_per_img.
        init_cfg: As in mmengine.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        strides: Sequence[int] = (8, 16, 32),
        reg_max: int = 16,
        img_size: int = 640,
        gains: dict[str, float] | None = None,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        train_cfg: Any = None,
        test_cfg: Any = None,
        init_cfg: Any = None,
    ):
        super().__init__(init_cfg)
        if len(in_channels) != len(strides):
            raise ValueError(f"MambaYOLOHead: {len(in_channels)} widths, but {len(strides)} strides: {strides}")
        self.num_classes = self.cls_out_channels = num_classes
        self.in_channels, self.strides, self.reg_max = list(in_channels), list(strides), reg_max
        self.gains = {"box": 7.5, "cls": 0.5, "dfl": 1.5} | (gains or {})
        self.assigner = dict(topk=topk, alpha=alpha, beta=beta)
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        # What mmdet's prediction asks a dense head for.
        self.prior_generator = MlvlPointGenerator(self.strides, offset=0.5)
        self.bbox_coder = DistancePointBBoxCoder()
        self.use_sigmoid_cls, self.loss_cls = True, nn.BCEWithLogitsLoss(reduction="none")

        finest = self.in_channels[0]
        box_dim = max(16, finest // 4, 4 * reg_max)
        cls_dim = max(finest, min(num_classes, 100))
        self.box_branches = nn.ModuleList([_Branch(dim, box_dim, 4 * reg_max) for dim in self.in_channels])
        self.cls_branches = nn.ModuleList([_Branch(dim, cls_dim, num_classes) for dim in self.in_channels])
        for box, cls, stride in zip(self.box_branches, self.cls_branches, self.strides, strict=True):
            nn.init.ones_(box[-1].bias)
            nn.init.constant_(cls[-1].bias, math.log(5 / num_classes / (img_size / stride) ** 2))

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels (B, width, H, W) to the classes' logits (B, C, H, W) and the sides' (B, 4 R, H, W) of each."""
        classes = [branch(level) for branch, level in zip(self.cls_branches, x, strict=True)]
        sides = [branch(level) for branch, level in zip(self.box_branches, x, strict=True)]
        return classes, sides

    def distances(self, sides: Tensor) -> Tensor:
        """Means of the distributions: logits (..., 4 R) to distances in strides (..., 4), left, top, right, bottom."""
        steps = torch.arange(self.reg_max, dtype=sides.dtype, device=sides.device)
        return (sides.unflatten(-1, (4, self.reg_max)).softmax(-1) * steps).sum(-1)

    def decode(self, classes: Sequence[Tensor], sides: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Outputs of :meth:`forward` to boxes (B, N, 4) in pixels, left, top, right, bottom, and scores (B, N, C)."""
        points, strides = self.points(classes)
        return self.boxes(_flat(sides), points, strides), _flat(classes).sigmoid()

    def points(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Centres (N, 2) of all levels' pixels, x and y in pixels of the image, and their strides (N, 1)."""
        sizes, like = [y.shape[2:] for y in maps], maps[0]
        levels = self.prior_generator.grid_priors(sizes, dtype=like.dtype, device=like.device)
        strides = [torch.full_like(level[:, :1], stride) for level, stride in zip(levels, self.strides, strict=True)]
        return torch.cat(levels), torch.cat(strides)

    def boxes(self, sides: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """Logits of sides (B, N, 4 R) to boxes (B, N, 4) in pixels."""
        distances = self.distances(sides) * strides
        return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)

    def predict_by_feat(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], **kwargs: Any) -> Any:
        """Turn distributions into distances in pixels; the rest is mmdet's, see `BaseDenseHead`."""
        distances = [
            stride * self.distances(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for y, stride in zip(bbox_preds, self.strides, strict=True)
        ]
        return super().predict_by_feat(cls_scores, distances, **kwargs)

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[Any],
        batch_img_metas: Sequence[dict] | None = None,
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """Compare the outputs with the objects of the images.

        With t the scores that the points shall give (:func:`~vssm.mm.yolo_targets.align_targets`), S their sum, at
        least 1, and w the score of a point that has a box to find: the binary cross entropy of all scores and t, the
        sum of w (1 - CIoU), and the sum of w times the cross entropy of each side's distribution with the two
        distances around the true one, the nearer the heavier. All over S, times the gain, times the images in the
        batch of all processes: the learning rates of the recipes are for that.

        Args:
            cls_scores: Of :meth:`forward`.
            bbox_preds: Of :meth:`forward`.
            batch_gt_instances: For each image its objects, `bboxes` (G, 4) in pixels and `labels` (G,).
            batch_img_metas: Not used.
            batch_gt_instances_ignore: Not used: to the loss, what annotations leave open is background.

        Returns:
            "loss_cls", "loss_bbox" and "loss_dfl".
        """
        logits, sides = _flat(cls_scores).float(), _flat(bbox_preds).float()
        points, strides = (y.float() for y in self.points(cls_scores))
        boxes = self.boxes(sides, points, strides)
        gt_boxes = pad_sequence([_tensor(objects.bboxes).to(boxes) for objects in batch_gt_instances], True)
        gt_labels = pad_sequence([objects.labels.to(boxes.device) for objects in batch_gt_instances], True)
        counts = torch.tensor([len(objects.labels) for objects in batch_gt_instances], device=boxes.device)
        valid = torch.arange(gt_labels.shape[1], device=boxes.device) < counts[:, None]
        targets = align_targets(
            logits.detach().sigmoid(), boxes.detach(), points, gt_labels, gt_boxes, valid, **self.assigner
        )

        scale = len(logits) * get_world_size() / targets.scores.sum().clamp(min=1)
        terms = {"cls": self.loss_cls(logits, targets.scores).sum()}
        image, point = targets.positive.nonzero(as_tuple=True)
        # With no object at all the index is empty, and the two terms are zeros with a gradient.
        weight = targets.scores[image, point].sum(-1)
        wanted = gt_boxes[image, targets.gt[image, point]] if len(image) else boxes.new_zeros(0, 4)
        terms["box"] = ((1 - complete_iou(boxes[image, point], wanted)) * weight).sum()
        edges = torch.cat([points[point] - wanted[:, :2], wanted[:, 2:] - points[point]], dim=-1) / strides[point]
        terms["dfl"] = (self._side_loss(sides[image, point], edges) * weight).sum()
        names = {"cls": "loss_cls", "box": "loss_bbox", "dfl": "loss_dfl"}
        return {name: self.gains[term] * scale * terms[term] for term, name in names.items()}

    def _side_loss(self, sides: Tensor, distances: Tensor) -> Tensor:
        """Mean over sides: logits (P, 4 R) and true distances in strides (P, 4) to (P,)."""
        distances = distances.clamp(0, self.reg_max - 1 - 0.01)
        below = distances.long()
        share = distances - below
        logs = sides.unflatten(-1, (4, self.reg_max)).log_softmax(-1)
        lower, upper = (logs.gather(-1, side[..., None])[..., 0] for side in (below, below + 1))
        return -(lower * (1 - share) + upper * share).mean(-1)


def _flat(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, H, W) of all levels to (B, N, C)."""
    return torch.cat([y.permute(0, 2, 3, 1).flatten(1, 2) for y in maps], dim=1)


def _tensor(boxes: Any) -> Tensor:
    return getattr(boxes, "tensor", boxes)
