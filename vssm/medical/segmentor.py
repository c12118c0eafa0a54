"""The networks as an mmengine model, for `vssm train`.

A config names it with ``custom_imports = dict(imports=["vssm.medical.segmentor"])``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._optional import require

require("mmengine.model", "medical")

from mmengine.model import BaseModel  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

from .. import medical  # noqa: E402
from .._errors import UserError, did_you_mean  # noqa: E402
from ..checkpoint import CheckpointError  # noqa: E402
from ..engine.checks import refuse_classes, register_check  # noqa: E402
from ..models.create import ModelError  # noqa: E402
from .unet import UNet  # noqa: E402

__all__ = ["NETWORKS", "UNetSegmentor", "create_network"]

NETWORKS = {name: getattr(medical, name) for name in medical.__all__ if name.islower()}


def create_network(name: str = "create_unet", **options: Any) -> UNet:
    """A network of this package, with one sentence for each thing that can be wrong with the request.

    Args:
        name: One of ``NETWORKS``: "msvm_unet_tiny", "vm_unet", ...; by default any encoder under any decoder.
        **options: Arguments of that function.

    Returns:
        The network.

    Raises:
        ModelError: The name or an option is unknown or cannot be used, or the weights cannot be had.
    """
    if name not in NETWORKS:
        raise ModelError(
            f"There is no network '{name}'{did_you_mean(name, NETWORKS)}; there are {', '.join(NETWORKS)}."
        )
    try:
        return NETWORKS[name](**options)
    except CheckpointError as error:
        raise ModelError(f"Network '{name}' cannot be built: {str(error).rstrip('.')}.") from error
    except UserError:
        raise
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ModelError(f"Network '{name}' does not take all of the options {sorted(options)}: {error}.") from error
    except (ValueError, FileNotFoundError) as error:
        raise ModelError(f"Network '{name}' cannot be built: {error}.") from error
    except RuntimeError as error:
        if not options.get("pretrained"):
            raise
        raise ModelError(f"The weights of '{name}' could not be loaded: {error}.") from error


@MODELS.register_module()
class UNetSegmentor(BaseModel):
    """A segmentation network that mmengine can train. Shapes: B images, C channels, H x W pixels, K classes.

    Networks of volumes (``spatial_dims=3``) take (B, C, D, H, W) in place of (B, C, H, W), and give alike.

    Args:
        network: Arguments of :func:`create_network`: ``dict(name="msvm_unet_tiny", num_classes=9)``, or
            ``dict(decoder="unet", encoder="resnet18", num_classes=9)``.
        loss: Config of a registered loss. It is called with what the network gives, (B, K, H, W), and the labels
            (B, H, W), and gives a scalar or a dict of them. None for a model that is not trained.
        threshold: Probability from which a pixel belongs to the only class of a network with K = 1.
        data_preprocessor: See mmengine's BaseModel; the default moves tensors to the model's device.

    Attributes:
        model: The network, a :class:`~vssm.medical.UNet`; ``model.encoder`` is its encoder.

    Raises:
        ModelError: See :func:`create_network`.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        loss: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
        data_preprocessor: Mapping[str, Any] | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor)
        self.model = create_network(**network)
        self.loss = None if loss is None else MODELS.build(dict(loss))
        self.threshold = threshold

    def init_weights(self) -> None:
        """Do nothing: the network is initialised, and its encoder may hold published weights.

        mmengine's Runner calls this before training; its own method would start the network's parts once more.
        """

    def probabilities(self, image: Tensor) -> Tensor:
        """Probabilities (B, K, H, W) of images (B, C, H, W), in float32, whether or not the network ends in them."""
        output = self.model(image).float()
        if not isinstance(self.model.activation, torch.nn.Identity):
            return output
        return output.sigmoid() if self.model.num_classes == 1 else output.softmax(dim=1)

    def forward(
        self, image: Tensor, label: Tensor | None = None, mode: str = "tensor", **meta: Any
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run the network.

        Args:
            image: Images (B, C, H, W).
            label: Class of each pixel (B, H, W), int64; needed by ``"loss"``, passed along by ``"predict"``.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.
            **meta: What else is in a batch; not used.

        Returns:
            ``"tensor"``: what the network gives, (B, K, H, W). ``"loss"``: ``{"loss": scalar}`` or the loss's own dict.
            ``"predict"``: one dict per image with ``prediction``, the class of each pixel (H, W), int64 (for K = 1
            whether it reaches the threshold), and ``label`` where it was given.

        Raises:
            ValueError: ``mode`` is none of the three, or labels or the loss are missing.
        """
        if mode == "tensor":
            return self.model(image)
        if mode == "loss":
            if label is None or self.loss is None:
                raise ValueError(f"mode 'loss' needs {'labels' if label is None else 'a loss in the config'}.")
            loss = self.loss(self.model(image), label)
            return dict(loss) if isinstance(loss, Mapping) else {"loss": loss}
        if mode == "predict":
            if self.model.num_classes == 1:
                classes = (self.probabilities(image)[:, 0] >= self.threshold).long()
            else:
                classes = self.model(image).argmax(dim=1)
            if label is None:
                return [{"prediction": one} for one in classes]
            return [{"prediction": one, "label": truth} for one, truth in zip(classes, label, strict=True)]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', not '{mode}'.")


@register_check
def _check_classes(model: torch.nn.Module, dataset: Any) -> None:
    """Refuse a network with another number of classes than its data; one output tells two classes apart."""
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not isinstance(model, UNetSegmentor) or not classes:
        return
    outputs = model.model.num_classes
    if outputs != len(classes) and (outputs, len(classes)) != (1, 2):
        refuse_classes(classes, outputs, "model.network.num_classes")
