"""Where the weights are in a checkpoint, and what they are called; the policy stands in `vssm.checkpoint`."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from ._checkpoint_file import CheckpointError, Inert
from ._pickle_survey import shown

__all__ = [
    "Renames",
    "count_classes",
    "listed",
    "new_name",
    "rename",
    "unwrap_state_dict",
    "without_wrappers",
]

# Where training programs keep the weights, the averaged ones first.
_WEIGHT_KEYS = ("state_dict_ema", "model_ema", "ema_model", "state_dict", "model_state_dict", "model")
_AVERAGED = _WEIGHT_KEYS[:3]
# Wrappers of a whole model: parallel training, averaging, this package's own training runs.
_PREFIXES = ("module.", "model.")
# Wrappers of any part of a model: compilation, sharding, gradient checkpointing.
_INNER_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# How often torch.optim.swa_utils.AveragedModel has averaged.
_COUNTER = "n_averaged"
# Where mmdet's, mmseg's and mmpretrain's models hold theirs, and the last of these its classifier.
_BACKBONE, _CLASSIFIER = "backbone.", "head.fc."

# Regular expression and what it becomes, as `re.sub` takes them.
Renames = Iterable[tuple[str, str | Callable[[re.Match], str]]]


def listed(names: Iterable[Any], limit: int = 5) -> str:
    """Enumerate names of unknown origin for a message, the first of them."""
    names = list(names)
    text = ", ".join(map(shown, names[:limit])) or "none"
    return text + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def unwrap_state_dict(checkpoint: Mapping[str, Any], averaged: bool = True, whole: bool = False) -> dict[str, Tensor]:
    """Give the weights of a checkpoint: nested or bare, the prefixes of wrappers removed.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        averaged: where there are both, take the weights averaged over training; else the raw ones.
        whole: give all weights of a detector or segmentor, not only its backbone's (and of a classifier its layer's).

    Raises:
        CheckpointError: it holds no tensors, or tensors under names that are not text or that are twice there.
    """
    keys = _WEIGHT_KEYS if averaged else sorted(_WEIGHT_KEYS, key=_AVERAGED.__contains__)
    seen = [id(checkpoint)]
    found: Any = checkpoint
    while found is not None:
        checkpoint = found
        for key in keys:
            if isinstance(checkpoint.get(key), Inert):
                raise CheckpointError(
                    f"the checkpoint holds a pickled {shown(checkpoint[key].of)} under '{key}', not a state dict"
                )
        nested = (checkpoint[key] for key in keys if isinstance(checkpoint.get(key), Mapping))
        found = next((inner for inner in nested if inner), None)
        if id(found) in seen:
            raise CheckpointError("the checkpoint holds itself")
        seen.append(id(found))
    weights = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    odd = [name for name in weights if not isinstance(name, str)]
    if odd:
        raise CheckpointError(f"the checkpoint holds weights under keys that are not text: {listed(map(repr, odd))}")
    if not weights:
        raise CheckpointError(f"the checkpoint holds no weights; its keys are {listed(checkpoint)}")
    weights = without_wrappers(weights)
    if whole:
        return weights
    if any(name.startswith(_BACKBONE) for name in weights):
        weights = {k.removeprefix(_BACKBONE): v for k, v in weights.items() if k.startswith((_BACKBONE, _CLASSIFIER))}
    return without_wrappers(weights)


def without_wrappers(weights: dict[str, Tensor], prefixes: Collection[str] = _PREFIXES) -> dict[str, Tensor]:
    """Take away what wrappers of models put before names, and their counters.

    Args:
        weights: a state dict.
        prefixes: wrappers of the whole model.

    Raises:
        CheckpointError: two names are the same then.
    """
    weights = _renamed(weights, lambda name: _INNER_WRAPPERS.sub("", name))
    # They come nested: an average of a parallel model saves module.module.
    while True:
        if _COUNTER in weights and all(name.startswith("module.") for name in weights if name != _COUNTER):
            weights = {name: value for name, value in weights.items() if name != _COUNTER}
        prefix = next((p for p in prefixes if weights and all(name.startswith(p) for name in weights)), "")
        if not prefix:
            return weights
        weights = {name[len(prefix) :]: value for name, value in weights.items()}


def _renamed(weights: Mapping[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        changed = change(name)
        if changed in result:
            raise CheckpointError(f"the checkpoint holds {shown(changed)} twice, under different names")
        result[changed] = value
    return result


def count_classes(weights: Mapping[str, Tensor], classifier: Collection[str] = ()) -> int | None:
    """Say how many classes a classifier was trained on, where its names tell.

    Args:
        weights: as `unwrap_state_dict` gives them.
        classifier: names of the model's classifier layers, which are looked for first.
    """
    names = [f"{layer}.weight" for layer in classifier if f"{layer}.weight" in weights]
    endings = ("head.weight", "head.fc.weight", "heads.0.weight", "head.fcs.0.weight")
    names += [name for name in weights if name.endswith(endings)]
    return len(weights[names[0]]) if names and weights[names[0]].dim() else None


def new_name(name: str, renames: Renames) -> str:
    """Give a key of a checkpoint its new name: every (pattern, replacement) is applied, in order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def rename(weights: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """Give the weights their new names, see `new_name`.

    Raises:
        CheckpointError: two of them get the same name.
    """
    return _renamed(weights, lambda name: new_name(name, renames))
