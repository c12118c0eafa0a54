"""Any timm model as an mmengine model, with timm's mixing of images and its losses."""

from collections.abc import Mapping
from typing import Any

import timm
from mmengine.dist import all_reduce_dict
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from .._errors import UserError, did_you_mean
from .config import check_options


class ModelError(UserError):
    """A model's name, options or weights cannot be used."""


def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Create a timm model, with one sentence for each thing that can be wrong with the request.

    Args:
        name: A name from timm's registry, or one of timm's ``hf-hub:`` and ``local-dir:`` addresses.
        pretrained: Load the published weights.
        **options: Passed to ``timm.create_model``: ``num_classes``, ``drop_path_rate``, ...

    Returns:
        The model.

    Raises:
        ModelError: The name is unknown (near matches are named), an option is unknown, or the weights cannot be had.
    """
    if ":" not in name and not timm.is_model(name):
        raise ModelError(f"timm knows no model '{name}'{did_you_mean(name.split('.')[0], timm.list_models())}.")
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ModelError(f"Model '{name}' does not take all of the options {sorted(options)}: {error}.") from error
    except Exception as error:
        # Hub clients raise many unrelated types when there is no network, no such file or no such tag.
        if not pretrained and "Invalid pretrained tag" not in str(error):
            raise
        raise ModelError(f"The weights of '{name}' could not be loaded: {type(error).__name__}: {error}") from error


@MODELS.register_module()
class TimmClassifier(BaseModel):
    """A timm model that mmengine can train.

    With ``mixup`` the loss is timm's SoftTargetCrossEntropy on mixed labels; without it, LabelSmoothingCrossEntropy
    or plain cross-entropy. Shapes: B images, C channels, H x W pixels, K classes.

    Args:
        model: Arguments of :func:`create_model`: ``dict(name="vmamba_tiny_s1l8", num_classes=1000, ...)``.
        mixup: Arguments of ``timm.data.Mixup`` (``mixup_alpha``, ``cutmix_alpha``, ``prob``, ``switch_prob``,
            ``mode``, ...), or None. Label smoothing and the number of classes are filled in.
        label_smoothing: Weight taken from the true class and spread over all classes, in training only.
        data_preprocessor: See mmengine's BaseModel; the default moves tensors to the model's device.

    Raises:
        ModelError: The model's name or an option of it is unknown.
        ConfigError: An option of ``mixup`` is unknown.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        mixup: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
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

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run the model.

        Args:
            inputs: Normalised images (B, C, H, W).
            labels: Class numbers (B,); needed by ``"loss"``, passed along by ``"predict"``.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.

        Returns:
            ``"tensor"``: logits (B, K). ``"loss"``: ``{"loss": scalar}``. ``"predict"``: one dict per image with
            ``scores`` (K,), the probabilities, and ``label`` where it was given.

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
                # Mixup works in place; the caller's batch stays as it was.
                inputs, labels = self.mixup(inputs.clone(), labels)
            # The loss of half-precision logits would lose the small differences that training lives on.
            return {"loss": self.criterion(self.model(inputs).float(), labels)}
        if mode == "predict":
            scores = self.model(inputs).float().softmax(dim=-1)
            if labels is None:
                return [{"scores": score} for score in scores]
            return [{"scores": score, "label": label} for score, label in zip(scores, labels, strict=True)]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', not '{mode}'.")

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, and average what is logged over all processes.

        mmengine logs the first process's share; the mean is what one process with the whole batch would log.
        """
        loss, log_vars = super().parse_losses(losses)
        log_vars = {name: value.detach().clone() for name, value in log_vars.items()}
        all_reduce_dict(log_vars, op="mean")
        return loss, log_vars
