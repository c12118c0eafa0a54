"""Official checkpoints to files in this package's names, with the weights alone."""

import os
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor

from .._errors import UserError, did_you_mean
from ._checkpoint import count_classes, read_checkpoint, unwrap_state_dict

_BACKBONE = "backbone."


class ConversionError(UserError):
    """A checkpoint cannot be converted."""


def convert_checkpoint(source: str | os.PathLike, target: str | os.PathLike, model_name: str) -> str:
    """Write an official checkpoint's weights under this package's names.

    Of a training run's file the averaged weights are taken. A classifier's file can be loaded with
    ``timm.create_model(name, checkpoint_path=...)``. A detector's or segmentor's keeps the names of its neck and heads,
    which are mmdet's and mmseg's own, and serves as ``load_from`` or as an argument of ``tools/test.py``.

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
        nested = checkpoint.get("state_dict", checkpoint)
        if any(str(name).removeprefix("module.").startswith(_BACKBONE) for name in nested):
            weights, kind = _convert_detector(nested, model_name), "a detector or segmentor"
        else:
            weights, kind = _convert_classifier(checkpoint, model_name), "a classifier"
    except (ValueError, FileNotFoundError) as error:
        raise ConversionError(f"'{source}' cannot be converted: {error}.") from error
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous().clone() for name, value in weights.items()}
    if target.suffix == ".pth":
        torch.save(weights, part)
    else:
        from safetensors.torch import save_file

        save_file(weights, part, metadata={"format": "pt"})
    os.replace(part, target)
    return f"{target}: {len(weights)} tensors of {kind} with {model_name}."


def _convert_classifier(checkpoint: dict, model_name: str) -> dict[str, Tensor]:
    weights = unwrap_state_dict(checkpoint)
    classes = count_classes(weights)
    model = timm.create_model(model_name, **({} if classes is None else {"num_classes": classes}))
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        raise ValueError(f"timm's {model_name} has no rule for official names")
    converted = rename(checkpoint, model)
    model.load_state_dict(converted, strict=True)
    return converted


def _convert_detector(weights: dict, model_name: str) -> dict[str, Tensor]:
    from .._optional import require

    backbones = require("vssm.mm", "mm")
    stages = len(timm.create_model(model_name, features_only=True).feature_info)
    backbone = backbones.VSSMBackbone(model_name, out_indices=tuple(range(stages)))
    whole = torch.nn.ModuleDict({"backbone": backbone})
    converted = backbones.convert_detector_checkpoint(weights, whole)
    own = {name.removeprefix(_BACKBONE): value for name, value in converted.items() if name.startswith(_BACKBONE)}
    backbone.load_state_dict(own, strict=True)
    return converted
