"""Checkpoints of the networks: the official layouts and ours, and ImageNet weights for VM-UNet's blocks."""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..checkpoint import (
    CheckpointError,
    MissingCheckpointError,
    about,
    check_fit,
    load_weights,
    new_name,
    read_checkpoint,
    rename,
    reshape_like,
    unwrap_state_dict,
)
from ..models.vmamba import BLOCK_RENAMES, EARLY_NAMES, STACKED, our_names
from .hymamba_encoder import DECODER_RENAMES, ENCODER_RENAMES

__all__ = ["checkpoint_filter_fn", "imagenet_filter_fn", "load_checkpoint"]


def _next_stage(match: re.Match) -> str:
    """Officially a downsampling layer ends a stage, here it begins the next."""
    return f"stages.{int(match[1]) + 1}.downsample."


# Official name -> ours, in order.
_MSVM_RENAMES = (
    (r"^encoder\.layer0\.0\.", "encoder.stem.conv1."),
    (r"^encoder\.layer0\.2\.", "encoder.stem.norm1."),
    (r"^encoder\.layer1\.0\.", "encoder.stem.conv2."),
    (r"^encoder\.layer1\.2\.", "encoder.stem.norm2."),
    (r"downsamples\.(\d+)\.", _next_stage),
    (r"\.downsample\.1\.", ".downsample.conv."),
    (r"\.downsample\.3\.", ".downsample.norm."),
    (r"^encoder\.", "encoder.backbone.model."),
    (r"^decoder\.out_layers\.0\.out\.", "head."),
    (r"^decoder\.out_layers\.0\.", "decoder.upsample."),
    (r"\.up\.", ".upsample."),
    (r"\.upsample\.expand\.0\.", ".upsample.expand.conv."),
    (r"\.upsample\.expand\.1\.", ".upsample.expand.bn."),
    (r"\.upsample\.expand\.3\.", ".upsample.conv."),
    (r"\.concat_layer\.", ".fuse."),
    (r"\.vss_layer\.", "."),
    (r"\.layers\.", ".stages."),
    (r"\.multiscale_conv\.dw_convs\.", ".convs."),
    *BLOCK_RENAMES,
)
_VM_RENAMES = (
    *EARLY_NAMES,
    (r"^patch_embed\.0\.", "encoder.backbone.stem.conv."),
    (r"^patch_embed\.2\.", "encoder.backbone.stem.norm."),
    (r"^layers\.(\d+)\.downsample\.", lambda match: f"encoder.backbone.{_next_stage(match)}"),
    (r"^layers\.", "encoder.backbone.stages."),
    (r"^layers_up\.", "decoder.stages."),
    (r"^final_up\.", "decoder.upsample."),
    (r"^final_conv\.", "head."),
    *BLOCK_RENAMES,
    (r"\.mhs\.x_ssproj_W$", ".mhs.x_ssproj.weight"),
    (r"\.mhs\.x_ssproj\.", ".head_proj."),
    (r"\.mhs\.cat_norm\.", ".merge_norm."),
    (r"\.mhs\.y_proj\.", ".merge_proj."),
)
# A head of MHS-UNet's mixer. The official module holds its parameters under two names; what is loaded last is used.
_HEAD = re.compile(r"(.*)\.mhs\.scanhead_([CXSZ])\.(?:mambaeng|scanning\.seq2seq_engine)\.(?:x_proj_weight|(\w+))$")


def _stack_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heads' parameters side by side, in the order in which the official mixer splits its channels."""
    stacked: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if match := _HEAD.match(name):
            heads.setdefault(f"{match[1]}.{match[3] or 'x_proj_weight'}", {})[match[2]] = value
        else:
            stacked[name] = value
    for name, parts in heads.items():
        stacked[name] = torch.cat([parts[letter] for letter in "CXSZ" if letter in parts])
    return stacked


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Checkpoints of our networks in their official layouts, or in ours, to our names and shapes.

    The weights may stand under ``state_dict``, ``model_state_dict`` and the like, behind ``module.``, ``_model.`` or
    ``vmunet.``. Counters that thop leaves in a model are dropped.

    Raises:
        ValueError: parameters of the model are missing from the checkpoint, or keys of it are not the model's.
    """
    weights = unwrap_state_dict(state_dict)
    for prefix in ("_model.", "vmunet."):
        # The training programs keep losses and counters besides the network, so not every key has the prefix.
        inner = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        weights = inner or weights
    weights = {name: value for name, value in weights.items() if not name.endswith(("total_ops", "total_params"))}
    if any(name.startswith("layers_up.") for name in weights):
        # Of a tensor under two names the last one counts, as in the official code.
        weights = _stack_heads({new_name(name, _VM_RENAMES): value for name, value in weights.items()})
    elif any(name.startswith("encoder.layer0.") for name in weights):
        weights = rename(weights, _MSVM_RENAMES)
    elif any(name.startswith("embeddings.") for name in weights):
        ours = (*ENCODER_RENAMES, (r"^(?!decoder\.|head\.)", "encoder."), *DECODER_RENAMES)
        weights = rename(weights, ours)
    reshape_like(weights, model.state_dict(), stacked=STACKED)
    check_fit(weights, model)
    return weights


def load_checkpoint(model: nn.Module, path: str | PathLike) -> None:
    """Load a trained network from a file, all of it.

    Args:
        model: of this package, such as `vssm.medical.vm_unet()`.
        path: a file in an official layout, or of our training; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or the weights are not this network's.
    """
    try:
        load_weights(model, checkpoint_filter_fn(read_checkpoint(path), model))
    except MissingCheckpointError:
        raise
    except CheckpointError as error:
        raise CheckpointError(about(path, error)) from error


def imagenet_filter_fn(state_dict: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Selects the weights that VM-UNet takes from an ImageNet checkpoint of the first VMamba, under our names.

    All of the encoder, and the blocks of the decoder, whose stages are taken for the encoder's in reverse. A stage of
    fewer blocks than the checkpoint's takes its first ones. Patch expanding and the head are not in such a file.

    Raises:
        ValueError: any of that is missing from the checkpoint or has another shape.
    """
    weights = our_names(unwrap_state_dict(state_dict), conv_embed=False)
    own, last = model.state_dict(), len(model.decoder.stages) - 1
    sources = {}
    for name in own:
        if match := re.match(r"encoder\.backbone\.(.*)", name):
            sources[name] = match[1]
        elif match := re.match(r"decoder\.stages\.(\d+)\.(blocks\..*)", name):
            sources[name] = f"stages.{last - int(match[1])}.{match[2]}"
    taken = {name: weights[source] for name, source in sources.items() if source in weights}
    stem = "encoder.backbone.stem.conv.weight"
    if stem in taken:
        taken[stem] = adapt_input_conv(own[stem].shape[1], taken[stem])
    reshape_like(taken, own, stacked=STACKED)
    check_fit(taken, model, optional=lambda name: name not in sources)
    return taken
