"""Any timm model by name, with a sentence for each thing that can be wrong with the request."""

import inspect
import os
from pathlib import Path
from typing import Any

import timm
from torch import nn

from .._errors import UserError, did_you_mean
from .._inputs import read_json
from ..checkpoint import CheckpointError, count_classes, read_checkpoint, unwrap_state_dict

__all__ = ["ModelError", "create_model", "create_trained_model"]

# Arguments of timm.create_model that say where weights come from and how a model is built, not what it is.
_OF_CALLERS = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}


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
    if name.startswith("local-dir:"):
        _check_folder(Path(name.removeprefix("local-dir:")))
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ModelError(f"Model '{name}' does not take all of the options {sorted(options)}: {error}.") from error
    except UserError as error:
        start = f"The weights of '{name}' could not be loaded: "
        for_tools = error.for_tools and f"{start}{error.for_tools.rstrip('.')}."
        raise ModelError(f"{start}{str(error).rstrip('.')}.", for_tools=for_tools) from error
    except Exception as error:
        # Hub clients raise many unrelated types when there is no network, no such file or no such tag.
        if not pretrained and "Invalid pretrained tag" not in str(error):
            raise
        raise ModelError(f"The weights of '{name}' could not be loaded: {type(error).__name__}: {error}") from error


def _check_folder(folder: Path) -> None:
    """Refuse a folder of the hub's form whose config.json timm would trip over, or be led elsewhere by."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise ModelError(f"'{path}' does not exist.") from error
    if not isinstance(config, dict):
        raise ModelError(f"'{path}' holds no table of a model's settings.")
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(key) or {}, dict):
            raise ModelError(f"'{path}' gives {key} as {config[key]!r}, which is no table.")
    own = [key for key in config.get("model_args") or {} if key in _OF_CALLERS]
    if own:
        raise ModelError(f"'{path}' has {own[0]} among its model_args; that is for who creates the model.")
    cfg = config.get("pretrained_cfg") or config
    for key in ("first_conv", "classifier"):
        names = cfg.get(key)
        if not all(isinstance(one, str) for one in (names if isinstance(names, list) else [names or ""])):
            raise ModelError(f"'{path}' gives {key} as {names!r}; it is a layer's name, or several.")


def create_trained_model(name: str, checkpoint: str | os.PathLike, **options: Any) -> nn.Module:
    """Create a timm model with the weights of a file, with as many classes as its classifier has.

    Args:
        name: A name from timm's registry.
        checkpoint: An official checkpoint, or one of this package's training runs; read without running code from it.
        **options: Passed to ``timm.create_model``, ``features_only`` for example.

    Returns:
        The model.

    Raises:
        ModelError: As :func:`create_model`; or the file is missing, damaged or not of this model.
    """
    try:
        stored = read_checkpoint(checkpoint)
        weights = unwrap_state_dict(stored)
    except CheckpointError as error:
        raise ModelError(f"The weights of '{name}' could not be loaded: {str(error).rstrip('.')}.") from error
    layer = timm.get_pretrained_cfg_value(name, "classifier") if timm.is_model(name) else None
    classes = count_classes(weights, (layer,) if isinstance(layer, str) else layer or ())
    ours = timm.is_model(name) and timm.models.model_entrypoint(name).__module__.startswith("vssm.")
    # Read once, and by nothing but the safe reader.
    overlay: dict[str, Any] = {"state_dict": stored if ours else weights}
    if classes is not None:
        # In both places, or timm would put a random classifier in place of the trained one.
        options["num_classes"] = overlay["num_classes"] = classes
    model = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    for part in (model, getattr(model, "model", None)):
        cfg = getattr(part, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            cfg.pop("state_dict", None)
    return model
