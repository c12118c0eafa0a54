"""Any timm model as an mmengine model, with timm's mixing of images and losses, and with distillation."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce_dict
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from ..engine.checks import refuse_classes, register_check
from ..engine.config import check_options
from ..models.create import ModelError, create_model
from .losses import DistillationLoss


class _Outside:
    """A frozen model in eval mode that a module uses without holding it.

    It is not among the module's parameters or in its state dict; ``train()``, DDP, the optimiser and averages of the
    weights pass over it, and copies of the module share it.
    """

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Outside":
        return self

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).float()


class _Teacher(_Outside):
    """A trained timm model for :class:`TimmClassifier`'s distillation."""

    def __init__(self, **options: Any):
        super().__init__(create_model(**options))
        self.scale: tuple[Tensor, Tensor] | None = None
        # Published weights say which scale of images they were trained on; other weights are taken to fit the run.
        if options.get("pretrained"):
            cfg = self.model.pretrained_cfg
            if cfg.get("num_classes") != self.model.num_classes:
                # timm would put a random classifier in place of the trained one.
                raise ModelError(
                    f"The weights of the teacher '{options['name']}' are for {cfg.get('num_classes')} classes, not for "
                    f"{self.model.num_classes}."
                )
            mean, std = cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD)
            if (tuple(mean), tuple(std)) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
                ours, its = (
                    torch.tensor(pair).view(2, 3, 1, 1)
                    for pair in ((IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), (mean, std))
                )
                self.scale = ours[1] / its[1], (ours[0] - its[0]) / its[1]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits (B, K) for images normalised with ImageNet's mean and deviation, always in float32."""
        self.model.to(inputs.device)
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.float()
            if self.scale is not None:
                factor, shift = self.scale
                inputs = inputs * factor.to(inputs) + shift.to(inputs)
            return super().__call__(inputs)


@MODELS.register_module()
class TimmClassifier(BaseModel):
    """A timm model that mmengine can train.

    With ``mixup`` the loss is timm's SoftTargetCrossEntropy on mixed labels; without it, LabelSmoothingCrossEntropy
    or plain cross-entropy. Shapes: B images, C channels, H x W pixels, K classes.

    With ``distillation`` a frozen teacher sees the same mixed images, and the loss is
    :class:`~vssm.classify.losses.DistillationLoss`. A model with a second head (one with timm's
    ``set_distilled_training``) learns from the teacher with that head; any other with its only one. The teacher is
    built when training starts, so testing and predicting do without it, and it is no part of this module: neither
    its checkpoints nor its optimiser know it.

    Args:
        model: Arguments of :func:`create_model`: ``dict(name="vmamba_tiny_s1l8", num_classes=1000, ...)``.
        mixup: Arguments of ``timm.data.Mixup`` (``mixup_alpha``, ``cutmix_alpha``, ``prob``, ``switch_prob``,
            ``mode``, ...), or None. Label smoothing and the number of classes are filled in.
        label_smoothing: Weight taken from the true class and spread over all classes, in training only.
        distillation: ``teacher``, arguments of :func:`create_model`, and ``kind``, ``alpha`` and ``tau`` of
            DistillationLoss; or None. Images are taken to be normalised with ImageNet's mean and deviation, and are
            rescaled for a teacher whose published weights want others.
        data_preprocessor: See mmengine's BaseModel; the default moves tensors to the model's device.

    Raises:
        ModelError: The model's name or an option of it is unknown, or the teacher has no name.
        ConfigError: An option of ``mixup`` or ``distillation`` is unknown or cannot be used.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        mixup: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        distillation: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor)
        if "name" not in model:
            raise ModelError("model.model lacks 'name', the name of a timm model.")
        self.model = create_model(**model)
        self.mixup = None
        if mixup is not None:
            check_options(Mixup.__init__, mixup, "model.mixup")
            self.mixup = Mixup(**{"label_smoothing": label_smoothing, "num_classes": self.model.num_classes, **mixup})
            self.criterion = SoftTargetCrossEntropy()
        elif label_smoothing > 0:
            self.criterion = LabelSmoothingCrossEntropy(label_smoothing)
        else:
            self.criterion = nn.CrossEntropyLoss()
        self.distillation: DistillationLoss | None = None
        self._teacher: _Teacher | None = None
        self._average: _Outside | None = None
        self.mesa_weight = 0.0
        if distillation is not None:
            check_options(self._distil, distillation, "model.distillation")
            self._distil(**distillation)
        if hasattr(self.model, "set_distilled_training"):
            # Without a teacher the mean of both heads is trained.
            self.model.set_distilled_training(distillation is not None)

    def _distil(
        self, teacher: Mapping[str, Any] | None = None, kind: str = "hard", alpha: float = 0.5, tau: float = 1.0
    ) -> None:
        if not teacher or "name" not in teacher:
            raise ModelError("model.distillation.teacher lacks 'name', the name of a timm model.")
        self.distillation = DistillationLoss(self.criterion, kind, alpha, tau)
        self._teacher_options = dict(teacher)

    def init_weights(self) -> None:
        """Build the teacher, if there is one; mmengine's Runner calls this before training, and only then.

        The student stays as timm made it. mmengine's own method would call the model's ``init_weights`` once more,
        over published weights as well.

        Raises:
            ModelError: The teacher is unknown, its weights cannot be had, or it has other classes.
        """
        if self.distillation is None or self._teacher is not None:
            return
        teacher = _Teacher(**self._teacher_options)
        if teacher.model.num_classes != self.model.num_classes:
            raise ModelError(
                f"The teacher '{self._teacher_options['name']}' has {teacher.model.num_classes} classes, but the model "
                f"has {self.model.num_classes}."
            )
        self._teacher = teacher

    def set_mesa(self, average: nn.Module | None, weight: float = 0.0) -> None:
        """Make the loss ask for agreement with a running average of this classifier, see MESAHook.

        Args:
            average: A classifier that is put into eval mode, or None to stop asking.
            weight: Factor of the cross-entropy with the average's probabilities; 0 logs the term as zero. It may be
                changed later, as ``mesa_weight``.
        """
        self._average = None if average is None else _Outside(average)
        self.mesa_weight = weight

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run the model.

        Args:
            inputs: Normalised images (B, C, H, W).
            labels: Class numbers (B,); needed by ``"loss"``, passed along by ``"predict"``.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.

        Returns:
            ``"tensor"``: logits (B, K). ``"loss"``: ``{"loss": scalar}``, or with a teacher or an average the terms
            ``loss_base``, ``loss_distillation`` and ``loss_mesa``, whose sum is the loss. ``"predict"``: one dict per
            image with ``scores`` (K,), the probabilities, and ``label`` where it was given.

        Raises:
            ValueError: ``mode`` is none of the three, labels are missing, or mixing got an odd number of images.
        """
        if mode == "tensor":
            return self.model(inputs)
        if mode == "loss":
            if labels is None:
                raise ValueError("mode 'loss' needs labels.")
            if self.mixup is not None:
                if len(inputs) % 2:
                    raise ValueError(
                        f"Mixup pairs the images of a batch, but this one holds {len(inputs)}: set an even batch_size "
                        "and drop_last=True in train_dataloader."
                    )
                # Mixup works in place, so it gets a copy of the caller's batch.
                inputs, labels = self.mixup(inputs.clone(), labels)
            return self._losses(inputs, labels)
        if mode == "predict":
            scores = self.model(inputs).float().softmax(dim=-1)
            if labels is None:
                return [{"scores": score} for score in scores]
            return [{"scores": score, "label": label} for score, label in zip(scores, labels, strict=True)]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', not '{mode}'.")

    def _losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.model(inputs)
        heads = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        # The loss of half-precision logits would lose the small differences that training lives on.
        logits, logits_dist = (head.float() for head in heads)
        if self.distillation is not None:
            self.init_weights()
            losses = self.distillation(logits, logits_dist, self._teacher(inputs), labels)
        else:
            losses = {"loss": self.criterion(logits, labels)}
        if self._average is not None:
            if "loss" in losses:  # mmengine logs the sum of the terms under this name
                losses["loss_base"] = losses.pop("loss")
            # Zero while it waits for its start, so that the log has the same columns all the way.
            losses["loss_mesa"] = logits.new_zeros(())
            if self.mesa_weight:
                # Both heads where there are two: the average answers with their mean.
                agreement = SoftTargetCrossEntropy()((logits + logits_dist) / 2, self._average(inputs).softmax(dim=-1))
                losses["loss_mesa"] = self.mesa_weight * agreement
        return losses

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, and average what is logged over all processes.

        mmengine logs the first process's share; the mean is what one process with the whole batch would log.
        """
        loss, log_vars = super().parse_losses(losses)
        log_vars = {name: value.detach().clone() for name, value in log_vars.items()}
        all_reduce_dict(log_vars, op="mean")
        return loss, log_vars


@register_check
def _check_classes(model: nn.Module, dataset: Any) -> None:
    """Refuse a classifier with another number of classes than its data."""
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if isinstance(model, TimmClassifier) and classes and len(classes) != model.model.num_classes:
        refuse_classes(classes, model.model.num_classes, "model.model.num_classes")
    if isinstance(model, TimmClassifier) and hasattr(dataset, "expect_classes"):
        dataset.expect_classes(model.model.num_classes)
