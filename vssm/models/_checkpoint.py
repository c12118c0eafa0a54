"""Reading official checkpoints safely, and fitting their keys to ours."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "CONV_BLOCK_RENAMES",
    "EARLY_VMAMBA_NAMES",
    "check_fit",
    "count_classes",
    "new_name",
    "read_checkpoint",
    "rename",
    "reshape_like",
    "unwrap_state_dict",
]

# Where training programs keep the weights, the averaged ones first.
_WEIGHT_KEYS = ("state_dict_ema", "model_ema", "ema_model", "state_dict", "model_state_dict", "model")
_AVERAGED = _WEIGHT_KEYS[:3]
# Wrappers of parallel training, and of this package's own training runs.
_PREFIXES = ("module.", "model.")
# Where mmdet's and mmseg's models hold theirs.
_BACKBONE = "backbone."
# Regular expression -> name: what the first VMamba release called things, which the codes derived from it still read.
EARLY_VMAMBA_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
)
# Official name -> ours, for the layers of vssm.layers.conv_block: a downsampling layer moves to the next stage's start.
CONV_BLOCK_RENAMES = (
    (r"^patch_embed\.", "stem."),
    (r"^head\.", "head.fc."),
    (r"^(stem\..*)\.norm\.", r"\1.bn."),
    (r"^layers\.0\.downsample\.", "stages.1.downsample."),
    (r"^layers\.1\.downsample\.", "stages.2.downsample."),
    (r"^layers\.2\.downsample\.", "stages.3.downsample."),
    (r"\.downsample\.conv\.0\.conv\.", ".downsample.expand."),
    (r"\.downsample\.conv\.1\.conv\.", ".downsample.conv."),
    (r"\.downsample\.conv\.2\.norm\.", ".downsample.project.bn."),
    (r"\.downsample\.conv\.2\.", ".downsample.project."),
    (r"^layers\.", "stages."),
    (r"\.cpe([12])\.", r".pos_conv\1."),
)


class _Inert:
    """Stands in for a class that a checkpoint mentions (a yacs node, a numpy scalar): takes anything, does nothing."""

    def __new__(cls, *args, **kwargs):
        # Nodes of a configuration are dicts, made without arguments and filled item by item, which PyTorch's restricted
        # unpickler does for plain dicts alone.
        return super().__new__(cls) if args else OrderedDict()

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _stand_in(name: str) -> type:
    return type("Inert_" + name.replace(".", "_"), (_Inert,), {})


def _reason(error: Exception) -> str:
    """The telling line of an unpickling error, which begins with advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for i, line in enumerate(lines):
        if "WeightsUnpickler error" in line:
            return " ".join([line.split("WeightsUnpickler error:")[-1].strip(), *lines[i + 1 : i + 2]]).strip()
    return lines[0] if lines else type(error).__name__


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a .safetensors or PyTorch file without running code from it.

    Official files hold pickled configurations and optimiser states beside the weights. They are read with
    `weights_only=True`; every class that PyTorch does not know to be harmless is replaced by an inert stand-in.

    Args:
        path: the file.

    Returns:
        The checkpoint: a dict, nested as it was saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"cannot read {path}: truncated or not a safetensors file ({error})") from None
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in unknown]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        OSError,
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"cannot read {path}: truncated or not a PyTorch checkpoint ({_reason(error)})") from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"cannot read {path}: it holds a {type(checkpoint).__name__}, not a state dict")
    return checkpoint


def unwrap_state_dict(checkpoint: Mapping[str, Any], averaged: bool = True) -> dict[str, Tensor]:
    """The weights of a checkpoint: nested or bare, the prefixes of wrappers removed.

    Of a whole detector or segmentor these are its backbone's.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        averaged: where there are both, take the weights averaged over training; else the raw ones.

    Raises:
        ValueError: it holds no tensors.
    """
    for key in _WEIGHT_KEYS if averaged else sorted(_WEIGHT_KEYS, key=_AVERAGED.__contains__):
        if isinstance(checkpoint.get(key), Mapping) and checkpoint[key]:
            return unwrap_state_dict(checkpoint[key], averaged)
    weights = {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not weights:
        raise ValueError(f"the checkpoint holds no weights; its keys are {_some(checkpoint)}")
    weights = _without_wrappers(weights)
    if any(k.startswith(_BACKBONE) for k in weights):
        weights = {k[len(_BACKBONE) :]: v for k, v in weights.items() if k.startswith(_BACKBONE)}
    return _without_wrappers(weights)


def _without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # They come nested: an average of a parallel model saves module.module.
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), ""):
        weights = {k[len(prefix) :]: v for k, v in weights.items()}
    return weights


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """How many classes a classifier was trained on, where its names tell."""
    for name, value in weights.items():
        if name.endswith(("head.weight", "head.fc.weight", "heads.0.weight", "head.fcs.0.weight")):
            return len(value)
    return None


# Regular expression and what it becomes, as `re.sub` takes them.
Renames = Iterable[tuple[str, str | Callable[[re.Match], str]]]


def new_name(name: str, renames: Renames) -> str:
    """A key of a checkpoint under its new name: every (pattern, replacement) is applied, in order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def rename(weights: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """The weights under their new names, see `new_name`."""
    return {new_name(name, renames): value for name, value in weights.items()}


def reshape_like(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], but: Callable[[str], bool] = lambda name: False
) -> None:
    """Give tensors the shape of their namesakes in `own` where the number of values is the same, in place.

    Official files hold linear layers as 1 x 1 convolutions, and projections apart for each route or all in one.

    Args:
        weights: changed in place.
        own: a model's state dict.
        but: tells which names to leave alone.
    """
    for name, value in weights.items():
        if name in own and not but(name) and value.shape != own[name].shape and value.numel() == own[name].numel():
            weights[name] = value.reshape(own[name].shape)


def _some(names, limit: int = 5) -> str:
    names = [str(n) for n in names]
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def check_fit(weights: Mapping[str, Tensor], model: nn.Module, optional: Callable[[str], bool]) -> None:
    """Refuse a checkpoint that would leave a parameter of the model at its random start.

    Args:
        weights: in the model's own names.
        model: the model they are meant for.
        optional: tells of a key whether it may be missing, unexpected, or of another shape (the classifier and the
            first convolution, which timm adapts).

    Raises:
        ValueError: names the missing and unexpected keys and those of another shape.
    """
    own = model.state_dict()
    # Of a model cut down to its feature maps, these are gone or without use.
    pruned = tuple(part + "." for part in getattr(model, "pruned_parts", ()))
    missing = [k for k in own if k not in weights and not optional(k) and not k.startswith(pruned)]
    unexpected = [k for k in weights if k not in own and not optional(k) and not k.startswith(pruned)]
    shapes = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape and not optional(k) and not k.startswith(pruned)
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}: missing {_some(missing)}; unexpected "
            f"{_some(unexpected)}; wrong shape {_some(shapes)}"
        )
