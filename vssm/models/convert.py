"""Converts official checkpoints to files with this package's names and nothing but the weights."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .._errors import UserError, did_you_mean
from .._files import whole_file
from ..checkpoint import (
    CheckpointError,
    about,
    convert,
    count_classes,
    load_weights,
    read_checkpoint,
    unwrap_state_dict,
)
from ._family import DenseMaps
from .dense import (
    ADAPTER,
    OUT_NORM,
    convert_features,
    create_features,
    dense_maps_of,
    move_pyramid,
    split_backbone,
)

_BACKBONE = "backbone."


class ConversionError(UserError):
    """A checkpoint cannot be converted."""


def convert_checkpoint(source: str | os.PathLike, target: str | os.PathLike, model_name: str) -> str:
    """Write an official checkpoint's weights under this package's names.

    Of a training run's file the averaged weights are taken. A classifier's file can be loaded with
    ``timm.create_model(name, checkpoint_path=...)``. A detector's or segmentor's keeps the names of its neck and heads,
    which are mmdet's and mmseg's own, and serves as ``load_from`` or as an argument of ``vssm test``.

    Args:
        source: The checkpoint.
        target: A new file, ``.safetensors`` or ``.pth``.
        model_name: The model, or the model of the backbone.

    Returns:
        A sentence about what was written.

    Raises:
        UserError: The model is unknown; the checkpoint is missing, damaged or not of this model; a target of another
            kind. Nothing is written then.
    """
    target = Path(target)
    if target.suffix not in (".safetensors", ".pth"):
        raise ConversionError(f"The converted file must end in .safetensors or .pth, not '{target.name}'.")
    if not timm.is_model(model_name):
        raise ConversionError(f"timm knows no model '{model_name}'{did_you_mean(model_name, timm.list_models())}.")
    try:
        checkpoint = read_checkpoint(source)
        weights = unwrap_state_dict(checkpoint, whole=True)
        if any(name.startswith(_BACKBONE) for name in weights):
            weights, kind = _convert_detector(weights, model_name), "a detector or segmentor"
        else:
            weights, kind = _convert_classifier(checkpoint, model_name), "a classifier"
    except CheckpointError as error:
        raise ConversionError(f"'{source}' cannot be converted: {about(source, error)}") from error
    weights = {name: value.contiguous().clone() for name, value in weights.items()}
    try:
        with whole_file(target) as part:
            if target.suffix == ".pth":
                torch.save(weights, part)
            else:
                save_file(weights, part, metadata={"format": "pt"})
    except (RuntimeError, SafetensorError) as error:
        # Both libraries have errors of their own for a full disk.
        reason = str(error).splitlines()[0]
        raise ConversionError(f"The file '{target}' cannot be written; the disk may be full ({reason}).") from error
    return f"{target}: {len(weights)} tensors of {kind} with {model_name}."


def _convert_classifier(checkpoint: Mapping[str, Any], model_name: str) -> dict[str, Tensor]:
    classes = count_classes(unwrap_state_dict(checkpoint))
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    model = timm.create_model(model_name, **options)
    converted = convert(checkpoint, model)
    load_weights(model, converted)
    return converted


def _convert_detector(weights: Mapping[str, Tensor], model_name: str) -> dict[str, Tensor]:
    """Rename only the backbone: necks and heads are mmdet's and mmseg's own, and so are the norms on the maps."""
    weights = move_pyramid(weights)
    inner = {name[len(_BACKBONE) :]: value for name, value in weights.items() if name.startswith(_BACKBONE)}
    rest = {name: value for name, value in weights.items() if not name.startswith(_BACKBONE)}
    parts = split_backbone(inner)
    # With an adapter the net has no last norm.
    own_norm = not parts.adapter
    model = create_features(model_name, out_norm=own_norm)
    model = create_features(model_name, out_norm=own_norm, out_indices=tuple(range(len(model.feature_info))))
    norms, trunk = parts.norms, convert_features(parts.net, model)
    load_weights(model, trunk)
    expected = {f"{OUT_NORM}{i}.{part}" for i in model.feature_info.out_indices for part in ("weight", "bias")}
    if dense_maps_of(model.model) is DenseMaps.NEW_NORMS and norms.keys() != expected:
        raise CheckpointError(f"the norms on the backbone's maps are {sorted(norms)}, not {sorted(expected)}")
    named = {f"model.{name}": value for name, value in trunk.items()} | norms
    named |= {f"{ADAPTER}{name}": value for name, value in parts.adapter.items()}
    return {_BACKBONE + name: value for name, value in named.items()} | rest
