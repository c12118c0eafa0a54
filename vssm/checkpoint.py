"""Checkpoints: how they are read, how their names become ours, and what fits a model. Everything here uses this module.

**What is read.** `.safetensors` files and the zip files of `torch.save`, told apart by their content. No code of a file
runs: PyTorch's restricted reader (`weights_only=True`) reads it after a look through its pickle. Tensors, plain
containers, numbers, texts, NumPy values and mmengine's log histories come out as they went in.

**What is inert.** An object of any other class (a configuration, a path, an optimiser) becomes an `Inert` stand-in, or
a dict where it was filled like one, that carries the name of its class and does nothing. `inert_names` finds them. A
run is not resumed from a state that holds any. Files of the YOLO line hold a whole module of ultralytics's classes as
their "model" or "ema": its stand-in keeps the fields, and the weights are taken from these.

**What is refused.** Each of these is a `CheckpointError` of one sentence: functions that would have to be called
(`os.system`, `getattr`); any other pickled module in place of its state dict; compressed archives; tensors and arrays
larger than the file, and tensors, texts and containers that are many times larger together, since they name the same
values again and again; containers that hold themselves or are nested deeper than 64; tensors of classes of their own;
damaged files; formats of before PyTorch 1.6, web pages and other things that are no checkpoints, which are named.

**How names are mapped.** `unwrap_state_dict` finds the weights under the keys that training programs use, and takes
away what wrappers put before names: parallel training, compilation, sharding, averaging. A family's
`checkpoint_filter_fn`, made by `build_filter` from a table, turns official names into ours.

**What fits.** Every tensor of the model is in the file and every weight of the file in the model, of the same shape but
for sizes of one (and the layouts that a family declares), dense, of the model's kind of numbers, and finite. Only the
classifier may be left out, and the first convolution adapted, where the caller asked for other classes or channels.
Loading is all or nothing: a model that does not fit keeps what it had. NaN and infinite weights are refused everywhere,
also when a run is resumed, since no training recovers from them.
"""

import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ._checkpoint_file import CheckpointError, Inert, MissingCheckpointError, inert_names, read_checkpoint
from ._checkpoint_names import (
    Renames,
    count_classes,
    listed,
    new_name,
    rename,
    unwrap_state_dict,
    without_wrappers,
)

__all__ = [
    "CheckpointError",
    "Inert",
    "MissingCheckpointError",
    "StateDictError",
    "about",
    "adapt_to",
    "build_filter",
    "check_fit",
    "class_layers",
    "convert",
    "count_classes",
    "inert_names",
    "load_checkpoint",
    "load_weights",
    "mismatch_advice",
    "new_name",
    "read_checkpoint",
    "rename",
    "reshape_like",
    "unwrap_state_dict",
    "without_wrappers",
]

Names = Callable[[str], bool]
Hook = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


class StateDictError(CheckpointError, RuntimeError):
    """A state dict that needs another way into its model, which the message names."""


def _no(name: str) -> bool:
    return False


def reshape_like(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], but: Names = _no, stacked: Collection[str] = ()
) -> None:
    """Give tensors the shape of their namesakes in `own`, in place, where that moves no value.

    Sizes of one come or go: official files hold linear layers as 1 x 1 convolutions, and norms as (1, C, 1, 1).

    Args:
        weights: changed in place.
        own: a model's state dict.
        but: says which names not to change.
        stacked: endings of the names whose first two sizes, one for each route, may also be joined into one or split.
    """
    for name, value in weights.items():
        if name not in own or but(name) or value.shape == own[name].shape:
            continue
        given, wanted = tuple(value.shape), tuple(own[name].shape)
        same = _without_ones(given) == _without_ones(wanted)
        if name.endswith(tuple(stacked)):
            same = same or _joined(given) == wanted or given == _joined(wanted)
        if same and not _oddity(value):
            weights[name] = value.reshape(wanted)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def _joined(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0] * shape[1], *shape[2:]) if len(shape) > 1 else ()


def _oddity(value: Tensor) -> str:
    """Say what keeps a tensor from being a weight, if anything."""
    if type(value) not in (Tensor, nn.Parameter):
        return f"of the class {type(value).__name__}"
    if value.is_nested or value.layout != torch.strided:
        return "sparse or nested"
    if value.is_quantized:
        return "quantised"
    return "without values (on the meta device)" if value.is_meta else ""


def _kind(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return "bool"
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else "int"


def _wrong_numbers(value: Tensor, own: Tensor) -> str:
    """Say why a tensor's numbers cannot become those of a model's tensor, if they cannot."""
    given, wanted = _kind(value), _kind(own)
    counter = given == "float" and wanted == "int" and bool((value == value.round()).all())
    if given != wanted and not counter:
        return f"{str(value.dtype).removeprefix('torch.')} instead of {str(own.dtype).removeprefix('torch.')}"
    return ""


def _infinite(value: Tensor, own: Tensor) -> bool:
    if not value.is_floating_point() or not own.is_floating_point():
        return False
    # Also what is finite in the file and too large for the model.
    if bool(value.to(own.dtype if own.dtype.itemsize > 1 else torch.float32).isfinite().all()):
        return False
    # A mask of the model's own may be infinite.
    return own.is_meta or bool(own.isfinite().all())


def _same_shape(given: Sequence[int], wanted: Sequence[int], free: int | None) -> bool:
    pairs = enumerate(zip(given, wanted, strict=False))
    return len(given) == len(wanted) and all(a == b or i == free for i, (a, b) in pairs)


def check_fit(
    weights: Mapping[str, Tensor], model: nn.Module, optional: Names = _no, free: Mapping[str, int] | None = None
) -> None:
    """Refuse weights that would leave a parameter of the model at its random start, or that are none.

    Args:
        weights: in the model's own names.
        model: the model they are meant for.
        optional: says of a key whether it may be missing, unexpected, or of another shape.
        free: names, optional or not, whose shape may differ in the size with this number and in no other.

    Raises:
        CheckpointError: names the missing and unexpected keys, those of another shape, and those whose values cannot be
            a weight's: sparse, quantised, without values, of another kind of numbers, NaN or infinite.
    """
    own = model.state_dict()
    # A model cut down to its feature maps has or needs these no longer.
    pruned = tuple(part + "." for part in getattr(model, "pruned_parts", ()))

    def needed(name: str) -> bool:
        return not optional(name) and not name.startswith(pruned)

    missing = [k for k in own if k not in weights and needed(k)]
    unexpected = [k for k in weights if k not in own and needed(k)]
    free = free or {}
    shapes = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in weights
        and (needed(k) or k in free)
        and not _oddity(weights[k])
        and not _same_shape(weights[k].shape, own[k].shape, free.get(k))
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"the checkpoint does not fit this {type(model).__name__}: missing {listed(missing)}; unexpected "
            f"{listed(unexpected)}; wrong shape {listed(shapes)}"
        )
    shared = [k for k in own if k in weights and not k.startswith(pruned)]
    odd = [f"{k} ({reason})" for k in shared if (reason := _oddity(weights[k]) or _wrong_numbers(weights[k], own[k]))]
    if odd:
        raise CheckpointError(f"the checkpoint holds tensors that cannot be weights: {listed(odd)}")
    infinite = [k for k in shared if _infinite(weights[k], own[k])]
    if infinite:
        raise CheckpointError(f"the checkpoint holds values that are NaN or infinite, in {listed(infinite)}")


# ---- families


def _layers(model: nn.Module, field: str) -> tuple[str, ...]:
    """Names of layers in the model's own pretrained_cfg."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get(field) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _adapted(model: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    """Weights of the first convolutions, whose channels timm adapts, and of the classifier, which it may drop."""
    convs = frozenset(f"{layer}.weight" for layer in _layers(model, "first_conv"))
    return convs, frozenset(f"{layer}.{part}" for layer in _layers(model, "classifier") for part in ("weight", "bias"))


def build_filter(
    renames: Renames = (),
    *,
    prepare: Hook | None = None,
    finish: Hook | None = None,
    stacked: Collection[str] = (),
    stem: str = "stem.",
    note: str = "",
) -> Callable[..., dict[str, Tensor]]:
    """Make a family's `checkpoint_filter_fn`, which timm calls with a checkpoint and the model that is to take it.

    The filter unwraps the checkpoint, renames what is not in our names yet, restores shapes and checks the fit. The
    layers that timm adapts to other classes and channels are those that the model's `pretrained_cfg` names.

    Args:
        renames: (regular expression, replacement) pairs from official names to ours, applied in order.
        prepare: changes weights in official names before that, given (weights, model).
        finish: changes weights after that, in our names, given (weights, model); also those that had our names.
        stacked: see `reshape_like`.
        stem: what a name of ours begins with in every model of the family, and no official name does.
        note: what to add to the message when a checkpoint does not fit.

    Returns:
        The filter: `(state_dict, model, averaged=True)` to a dict in our names and shapes. `averaged` is that of
        `unwrap_state_dict`. It raises `CheckpointError` where the checkpoint does not fit.
    """
    renames = tuple(renames)

    def checkpoint_filter_fn(state_dict, model: nn.Module, averaged: bool = True) -> dict:
        """Official checkpoints and our own, nested or not, to our names and shapes.

        Args:
            state_dict: the checkpoint.
            model: the model it is meant for.
            averaged: prefer the weights averaged over training where there are both.

        Raises:
            CheckpointError: parameters of the model are missing from the checkpoint, keys of it are not the model's, or
                values in it cannot be weights.
        """
        weights = unwrap_state_dict(state_dict, averaged)
        own = model.state_dict()
        if not any(name.startswith(stem) for name in weights):
            weights = rename(prepare(weights, model) if prepare else weights, renames)
        if finish:
            weights = finish(weights, model)
        convs, classifier = _adapted(model)
        reshape_like(weights, own, but=lambda name: name in convs or name in classifier, stacked=stacked)
        try:
            free = dict.fromkeys(convs, 1) | dict.fromkeys(classifier, 0)
            check_fit(weights, model, optional=classifier.__contains__, free=free)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{note}") from None
        return weights

    return checkpoint_filter_fn


def convert(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Give a checkpoint's weights the names of a timm model, by the rule in the model's own file where there is one.

    Args:
        checkpoint: as `read_checkpoint` gives it, or a state dict.
        model: a timm model, of this package or not.

    Raises:
        CheckpointError: the weights are not those of the model; where the model's file has no rule this is not checked.
    """
    filter_fn = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    code = getattr(filter_fn, "__code__", None)
    # Some files of timm have a function of that name for another purpose.
    if filter_fn is None or code is None or code.co_argcount < 2:
        return unwrap_state_dict(checkpoint)
    ours = type(model).__module__.startswith(f"{__package__}.")
    return filter_fn(checkpoint if ours else unwrap_state_dict(checkpoint), model)


def adapt_to(weights: dict[str, Tensor], model: nn.Module, channels: bool = True, classes: bool = False) -> None:
    """Fit the first convolution to the model's image channels, in place, and see that no other layer starts afresh.

    Args:
        weights: in the model's names.
        model: a timm model with its `pretrained_cfg`.
        channels: whether the caller asked for other channels; where not, they have to be the file's.
        classes: whether the classifier may be missing or of other classes.

    Raises:
        CheckpointError: a layer would stay random although the caller did not ask for a new one.
    """
    own = model.state_dict()
    convs, classifier = _adapted(model)
    for name in convs & own.keys() & weights.keys():
        given, wanted = weights[name].shape[1], own[name].shape[1]
        if given != wanted and channels and given == 3:
            weights[name] = adapt_input_conv(wanted, weights[name])
        elif given != wanted:
            raise CheckpointError(f"the checkpoint is for images of {given} channels, the model for {wanted}")
    check_fit(weights, model, optional=lambda name: classes and name in classifier)


# ---- loading


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], new: Collection[str] = ()) -> None:
    """Load weights into a model: all of them, or none if anything does not fit.

    Args:
        model: any module.
        weights: in its own names.
        new: names that stay as they are in the model, whatever the weights have there.

    Raises:
        CheckpointError: see `check_fit`.
    """
    new = frozenset(new)
    check_fit(weights, model, optional=new.__contains__)
    own = model.state_dict()
    model.load_state_dict({name: own[name] if name in new else weights[name] for name in own}, strict=True)


def class_layers(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Name the layers that differ between a model and weights only in their number of classes.

    In a timm model those are its classifier's; outside of timm models, such as in the heads of a detector, all that
    differ in their first size.
    """
    own = model.state_dict()
    parts = {
        f"{prefix}." if prefix else "": part
        for prefix, part in model.named_modules()
        if isinstance(getattr(part, "pretrained_cfg", None), Mapping)
    }
    found = []
    for name in own.keys() & weights.keys():
        given, wanted = weights[name].shape, own[name].shape
        if given == wanted or len(given) != len(wanted) or not len(given) or given[1:] != wanted[1:]:
            continue
        prefix = max((p for p in parts if name.startswith(p)), key=len, default=None)
        if prefix is None or name[len(prefix) :] in _adapted(parts[prefix])[1]:
            found.append(name)
    return [name for name in own if name in found]


def load_checkpoint(model: nn.Module, path: str | Path, new_classifier: bool = False) -> list[str]:
    """Load a file into a timm model: an official checkpoint, or one of this package, of a run or not.

    Args:
        model: a timm model.
        path: the file.
        new_classifier: leave the classifier as it is where the file's has another number of classes.

    Returns:
        The names that were left out.

    Raises:
        CheckpointError: the file cannot be read, or does not fit; the model is as it was then.
    """
    try:
        weights = convert(read_checkpoint(path), model)
        left_out = class_layers(model, weights) if new_classifier else []
        load_weights(model, weights, left_out)
    except MissingCheckpointError:
        raise
    except CheckpointError as error:
        raise CheckpointError(about(path, error)) from error
    return left_out


def about(path: Any, error: Exception) -> str:
    """Make a sentence about a file of what is wrong with it."""
    text = str(error).rstrip(".")
    return f"{text}." if text.startswith("Checkpoint '") else f"Checkpoint '{path}' cannot be loaded: {text}."


def mismatch_advice(model: nn.Module, state_dict: Mapping[str, Any]) -> str:
    """Say how to load a state dict that `load_state_dict` cannot take, if there is a way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights = convert(state_dict, model)
        other = class_layers(model, weights)
        check_fit(weights, model, optional=frozenset(other).__contains__)
    except Exception:
        return ""
    where = "vssm.checkpoint.load_checkpoint(model, FILE) or timm.create_model(NAME, pretrained=True, "
    where += "pretrained_cfg_overlay=dict(file=FILE))"
    classes = count_classes(weights, _layers(model, "classifier")) if other else None
    name = type(model).__name__
    if other:
        return (
            f"These weights are of {classes} classes, and this {name} has {model.num_classes}: create it with "
            f"num_classes={classes}, or leave the classifier out with new_classifier=True; load them with {where}."
        )
    own = model.state_dict()
    if own.keys() == state_dict.keys():
        key = next(key for key, x in own.items() if x.shape != state_dict[key].shape)
        shapes = f"{tuple(state_dict[key].shape)}, here {tuple(own[key].shape)}"
        return f"These are weights of a {name} whose {key} is {shapes}; load them with {where}, which resizes it."
    return f"These are weights of a {name} under other names; load them with {where}."
