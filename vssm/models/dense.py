"""Models cut down to the feature maps that detectors and segmentors take, and weights for them."""

from collections.abc import Mapping
from typing import Any

from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..checkpoint import convert, unwrap_state_dict
from ._family import DenseMaps, family_of
from .create import ModelError, create_model

__all__ = ["OUT_NORM", "convert_features", "create_features", "dense_maps_of"]

# What the norms on the maps are called in detectors and segmentors, official and ours, each with the stage's number.
OUT_NORM = "outnorm"


class _NormedFeatures(FeatureGetterNet):
    """timm's features with the model's own last norm on the last map; timm has no option for it by name."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "norm": True})


def dense_maps_of(model: nn.Module) -> DenseMaps:
    """Say what detectors and segmentors do with a model's maps; with those of a model of no family, nothing."""
    family = family_of(model)
    return DenseMaps.AS_THEY_ARE if family is None else family.dense_maps


def create_features(name: str, pretrained: bool = False, out_norm: bool = True, **options: Any) -> FeatureGetterNet:
    """Create a timm model that gives feature maps, with the norm of its own that its family's detectors apply.

    Args:
        name: A model with ``forward_intermediates``.
        pretrained: Load the published weights.
        out_norm: Apply that norm, where the family's maps are :attr:`DenseMaps.OWN_NORM`.
        **options: Passed to ``timm.create_model``: ``out_indices``, ``in_chans``, ...

    Returns:
        timm's module, which holds the model as ``model``.

    Raises:
        ModelError: See :func:`~vssm.models.create.create_model`; or the model has no feature maps.
    """

    def create(feature_cls: type, load: bool) -> FeatureGetterNet:
        model: Any = create_model(name, pretrained=load, features_only=True, feature_cls=feature_cls, **options)
        if not hasattr(model.model, "forward_intermediates"):
            raise ModelError(f"Model '{name}' has no feature maps to give (no forward_intermediates).")
        return model

    # Only the class of the model says what its detectors do; the weights are fetched once that is known.
    model = create(FeatureGetterNet, False)
    if out_norm and dense_maps_of(model.model) is DenseMaps.OWN_NORM:
        return create(_NormedFeatures, pretrained)
    return create(FeatureGetterNet, True) if pretrained else model


def convert_features(weights: Mapping[str, Tensor], features: FeatureGetterNet) -> dict[str, Tensor]:
    """Give the weights of an official backbone or classifier the names that they have in a feature extractor.

    A wider input than the official three channels has its first convolution filled as timm does it.

    Args:
        weights: Names relative to the backbone, official or ours.
        features: As :func:`create_features` gives it.

    Returns:
        The weights under the names of ``features``, without those that only a classifier has.

    Raises:
        CheckpointError: They are not those of this model; the message names what is missing, unexpected or misshapen.
    """
    model = features.model
    trunk = convert(unwrap_state_dict(weights), model)
    own = model.state_dict()
    cfg: Any = features.pretrained_cfg
    first_conv = (cfg or {}).get("first_conv")
    for name in [f"{first_conv}.weight"] if isinstance(first_conv, str) else []:
        if name in trunk and name in own and trunk[name].shape != own[name].shape:
            trunk[name] = adapt_input_conv(own[name].shape[1], trunk[name])
    kept = {f"model.{name}": value for name, value in trunk.items() if name in own}
    # What a pruned classifier still holds and never uses.
    pruned = tuple(part + "." for part in getattr(model, "pruned_parts", ()))
    return {f"model.{name}": own[name] for name in own if name.startswith(pruned)} | kept
