"""A timm backbone, the dual projector and the fixed classifier as an mmengine model.

Letters: B images, H x W pixels, K classes.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from timm.data import Mixup
from torch import Tensor, nn

from ..engine.config import check_options
from ..models.create import ModelError, create_model
from .etf import ETFClassifier, dot_regression_loss
from .projector import DualProjector

__all__ = ["IncrementalClassifier", "IncrementalNet"]


class IncrementalNet(nn.Module):
    """Images to the cosines with the vectors of all classes that have been learnt so far.

    Args:
        backbone: Gives a list of maps, the last of which is used.
        projector: Takes that map.
        head: Takes the projector's vectors.
        classes: How many classes have been learnt.
    """

    def __init__(self, backbone: nn.Module, projector: DualProjector, head: ETFClassifier, classes: int):
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.head = head
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Give cosines (B, classes) for images (B, 3, H, W)."""
        return self.head(self.projector(self.backbone(x)[-1]).features, self.classes)


@MODELS.register_module()
class IncrementalClassifier(BaseModel):
    """A classifier whose classes come in sessions: many images of the base classes first, then a few of each new class.

    Training is the base session. `vssm fscil` learns the later ones; the model that it saves is built by
    ``incremental=dict(...)``.

    Args:
        model: Arguments of `create_model` for the backbone: ``dict(name="resnet18", pretrained=True, ...)``.
        projector: Arguments of :class:`~vssm.fewshot.DualProjector`; the width of the map is filled in.
        classes: How many classes there will be in the end.
        base_classes: How many of them the base session has.
        mixup: Arguments of ``timm.data.Mixup``, or None. The loss of a mixed image is that of both classes, by shares.
        balanced: Make the aims of rare classes longer, see `dot_regression_loss`; not together with ``mixup``.
        loss_weight: Factor of the loss.
        seed: Of the classifier's fixed vectors; checkpoints hold them.
        incremental: The second branch is there: ``dict(layers=..., classes=...)``, its point-wise layers (2), and the
            classes learnt so far (all).
        data_preprocessor: See mmengine's BaseModel.

    Raises:
        ModelError: The backbone has no name, is unknown or gives no maps, or the numbers of classes make no sessions.
        ConfigError: An option is unknown.
        UserError: The projector cannot be built so.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        projector: Mapping[str, Any],
        classes: int,
        base_classes: int,
        mixup: Mapping[str, Any] | None = None,
        balanced: bool = False,
        loss_weight: float = 10.0,
        seed: int = 0,
        incremental: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor)
        if "name" not in model:
            raise ModelError("model.model lacks 'name', the name of a timm model.")
        if not 1 <= base_classes < classes:
            raise ModelError(f"Of {classes} classes, 1 to {classes - 1} can be base classes, not {base_classes}.")
        if mixup is not None and balanced:
            raise ModelError("model.balanced counts the images of each class, which mixup mixes: leave one out.")
        try:
            backbone = create_model(**{**model, "features_only": True})
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(f"'{model['name']}' gives no maps: {str(error).splitlines()[0].rstrip('.')}.") from error
        check_options(DualProjector.__init__, projector, "model.projector")
        neck = DualProjector(**{**projector, "in_channels": backbone.feature_info.channels()[-1]})
        head = ETFClassifier(neck.options["out_channels"], classes, seed)
        self.model = IncrementalNet(backbone, neck, head, base_classes)
        self.base_classes = base_classes
        self.balanced = balanced
        self.loss_weight = loss_weight
        self.mixup = None
        if mixup is not None:
            check_options(Mixup.__init__, mixup, "model.mixup")
            self.mixup = Mixup(**{"label_smoothing": 0.0, "num_classes": base_classes, **mixup})
        if incremental is not None:
            check_options(self.add_branch, incremental, "model.incremental")
            self.add_branch(**incremental)

    def add_branch(self, layers: int = 2, classes: int | None = None) -> None:
        """Add the second branch, and score the classes learnt so far, all when None."""
        self.model.projector.add_branch(layers)
        self.model.classes = self.model.head.etf_vec.shape[1] if classes is None else classes

    def init_weights(self) -> None:
        """Leave the parameters as they are; mmengine's own method would start published weights anew."""

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run the model.

        Args:
            inputs: Normalised images (B, 3, H, W).
            labels: Class numbers (B,) in the order of learning; needed by ``"loss"``.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.

        Returns:
            ``"tensor"``: cosines (B, K) with the classes learnt so far. ``"loss"``: ``{"loss": scalar}``.
            ``"predict"``: one dict per image with ``scores`` (K,), and ``label`` where it was given.

        Raises:
            ValueError: ``mode`` is none of the three, or labels are missing.
        """
        if mode == "loss":
            if labels is None:
                raise ValueError("mode 'loss' needs labels.")
            return {"loss": self._loss(inputs, labels)}
        scores = self.model(inputs)
        if mode == "tensor":
            return scores
        if mode != "predict":
            raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', not '{mode}'.")
        if labels is None:
            return [{"scores": score} for score in scores.float()]
        return [{"scores": score, "label": label} for score, label in zip(scores.float(), labels, strict=True)]

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        net = self.model
        if self.mixup is not None:
            inputs, shares = self.mixup(inputs.clone(), labels)
            cosines = net(inputs).float()
            return 0.5 * self.loss_weight * (shares * (cosines - 1).square()).sum(1).mean()
        features = net.projector(net.backbone(inputs)[-1]).features
        counted = labels if self.balanced else None
        return dot_regression_loss(features, net.head.targets(labels), counted, self.base_classes, self.loss_weight)
