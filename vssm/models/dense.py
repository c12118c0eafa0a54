"""Models cut down to the feature maps that detectors and segmentors take, and weights for them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..checkpoint import convert, rename, unwrap_state_dict
from ._family import DenseMaps, family_of
from ._plain import PlainBackbone, quarter_indices
from .adapter import convert_adapter, is_adapters
from .create import ModelError, create_model

__all__ = [
    "ADAPTER",
    "OUT_NORM",
    "BackboneWeights",
    "convert_features",
    "create_features",
    "default_indices",
    "dense_maps_of",
    "move_pyramid",
    "split_backbone",
]

# What the norms on the maps are called in detectors and segmentors, each with the number of the stage or block; in
# PlainMamba's official segmentors `norm_layer`.
OUT_NORM = "outnorm"
_OUT_NORMS = (OUT_NORM, "norm_layer")
# Where a backbone has its adapter.
ADAPTER = "adapter."
# Vim's official segmentors have in the backbone what is mmseg's neck here, `Feature2Pyramid`.
_PYRAMID = {"fpn1.": "neck.upsample_4x.", "fpn2.": "neck.upsample_2x."}


class _NormedFeatures(FeatureGetterNet):
    """timm's features with the model's own last norm on the last map; timm has no option for it by name."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "norm": True})
        # A net of stages applies its norm to the last map alone, a plain one to every map.
        self.norm = not isinstance(self.model, PlainBackbone)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = super().forward(x)
        if not self.norm:
            maps[-1] = self.model.get_submodule("norm")(maps[-1].movedim(1, -1)).movedim(-1, 1)
        return maps


def dense_maps_of(model: nn.Module) -> DenseMaps:
    """Say what detectors and segmentors do with a model's maps; with those of a model of no family, nothing."""
    family = family_of(model)
    return DenseMaps.AS_THEY_ARE if family is None else family.dense_maps


def default_indices(name: str, **options: Any) -> tuple[int, ...]:
    """Say which maps of a timm model a decoder takes: of its first four stages, or of the quarters of a plain net.

    Args:
        name: The model.
        **options: Passed to ``timm.create_model``.

    Raises:
        ModelError: See :func:`~vssm.models.create.create_model`.
    """
    with torch.device("meta"):
        info = getattr(create_model(name, **options), "feature_info", ())
    plain = len(info) > 4 and len({stage["reduction"] for stage in info}) == 1
    return quarter_indices(len(info)) if plain else tuple(range(4))


def create_features(name: str, pretrained: bool = False, out_norm: bool = True, **options: Any) -> FeatureGetterNet:
    """Create a timm model that gives feature maps, with the norm of its own that its family's detectors apply.

    Args:
        name: A model with ``forward_intermediates``.
        pretrained: Load the published weights.
        out_norm: Apply that norm, where the family's maps are :attr:`DenseMaps.OWN_NORM` or
            :attr:`DenseMaps.NEW_AND_OWN_NORMS`; the new norms are not part of it.
        **options: Passed to ``timm.create_model``: ``out_indices``, ``in_chans``, ...

    Returns:
        timm's module, which holds the model as ``model``.

    Raises:
        ModelError: See :func:`~vssm.models.create.create_model`; or the model has no feature maps.
    """

    def extract(model: nn.Module, out_indices: Any, **_: Any) -> FeatureGetterNet:
        """The model's class says which maps its detectors take; what timm adds is for extractors of other kinds."""
        normed = out_norm and dense_maps_of(model) in (DenseMaps.OWN_NORM, DenseMaps.NEW_AND_OWN_NORMS)
        return (_NormedFeatures if normed else FeatureGetterNet)(model, out_indices=out_indices)

    def create(load: bool) -> FeatureGetterNet:
        model: Any = create_model(name, pretrained=load, features_only=True, feature_cls=extract, **options)
        if not hasattr(model.model, "forward_intermediates"):
            raise ModelError(f"Model '{name}' has no feature maps to give (no forward_intermediates).")
        return model

    # The weights are fetched once it is known that there are such maps.
    model = create(False)
    return create(True) if pretrained else model


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


@dataclass
class BackboneWeights:
    """The weights of a detector's backbone.

    Attributes:
        net: Of the net itself, under the names that they came with.
        norms: Of the norms on its maps, under our names.
        adapter: Of a :class:`~vssm.models.adapter.ViTAdapter`, under the names that they have in it.
    """

    net: dict[str, Tensor]
    norms: dict[str, Tensor]
    adapter: dict[str, Tensor]


def split_backbone(weights: Mapping[str, Tensor]) -> BackboneWeights:
    """Take the weights of a backbone apart, official ones or ours; what belongs to a neck is left out.

    Args:
        weights: Names relative to the backbone.
    """
    parts = BackboneWeights({}, {}, convert_adapter(weights))
    for name, value in weights.items():
        if name.startswith(_OUT_NORMS):
            parts.norms[re.sub(r"^[a-z_]+", OUT_NORM, name)] = value
        elif name.startswith(ADAPTER):
            parts.adapter[name.removeprefix(ADAPTER)] = value
        elif not is_adapters(name) and not name.startswith(tuple(_PYRAMID)):
            parts.net[name] = value
    return parts


def move_pyramid(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the neck of a segmentor what official backbones hold of it.

    Args:
        weights: Of a whole segmentor.
    """
    return rename(weights, [(rf"^backbone\.{re.escape(theirs)}", ours) for theirs, ours in _PYRAMID.items()])
