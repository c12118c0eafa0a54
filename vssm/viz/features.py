"""Feature maps of any timm model or U-Net, and what in them speaks for a class (Grad-CAM)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._errors import UserError
from ..models import TokenEmbedding
from .canvas import hide_axes, new_figure, save_figure, size_of
from .palette import INK

__all__ = ["class_activation", "feature_maps", "plot_activations", "require_all_tokens"]


def feature_maps(model: nn.Module, images: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
    """The maps of a network's stages, before the last norm.

    Args:
        model: a timm model with ``forward_intermediates``; a U-Net of `vssm.medical`, whose maps are the encoder's and
            then the decoder's; or a model whose ``forward_features`` gives a map, its only one.
        images: (B, C, H, W), as the model takes them.
        stages: indices of the maps wanted; None: all.

    Returns:
        Maps (B, C', H', W').

    Raises:
        ValueError: the model has no such maps.
    """
    name = type(model).__name__
    if hasattr(model, "forward_intermediates"):
        if hasattr(model, "decoder"):
            encoded, decoded = model.forward_intermediates(images)
            maps = [*encoded, *decoded]
            return maps if stages is None else [maps[stage] for stage in stages]
        indices = None if stages is None else list(stages)
        return model.forward_intermediates(
            images, indices=indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
    if stages is not None and list(stages) != [-1]:
        raise ValueError(f"{name} has no forward_intermediates: only its last map (stage -1) is there.")
    if not hasattr(model, "forward_features"):
        raise ValueError(f"{name} has no feature map: it has neither forward_intermediates nor forward_features.")
    features = model.forward_features(images)
    if features.ndim != 4:
        raise ValueError(f"{name}.forward_features gives the shape {tuple(features.shape)}, no map.")
    return [features]


def require_all_tokens(network: nn.Module) -> None:
    """Refuse a net that prunes tokens, of which only some positions of a map see the image.

    Raises:
        UserError: it does.
    """
    if getattr(network, "pruning", None) is not None:
        raise UserError(
            f"{type(network).__name__} prunes tokens here, and this picture needs all of them: leave its pruning out, "
            "with --cfg-options model.model.pruning=None for a run."
        )


def class_activation(
    model: nn.Module, image: Tensor, label: int | None = None, stage: int = -1
) -> tuple[Tensor, int, float]:
    """Find where a stage's map speaks for a class: Grad-CAM (arXiv 1610.02391, eq. 1 and 2).

    The map is ReLU(sum over channels c of a_c F_c), a_c the mean over positions of the gradient of the class's logit
    with respect to F_c. Nothing of the last map reaches a classifier that looks at a class token alone: there the map
    before it is taken for the last.

    Args:
        model: a timm classifier in evaluation mode, with ``feature_info`` that names the modules of its stages.
        image: (1, C, H, W).
        label: the class; None: the one with the largest logit.
        stage: index of the stage whose map is weighted.

    Returns:
        The map (H', W'), not negative; the class; its probability.

    Raises:
        UserError: the model has no classifier, no such class or no such stage, or prunes tokens.
    """
    name = type(model).__name__
    require_all_tokens(model)
    stages = [entry["module"] for entry in getattr(model, "feature_info", [])]
    if not stages or getattr(model, "num_classes", 0) < 1:
        raise UserError(f"{name} is no classifier with named stages, so no map speaks for a class of it.")
    if not -len(stages) <= stage < len(stages):
        raise UserError(f"{name} has the stages 0 to {len(stages) - 1}, not {stage}.")
    if label is not None and not 0 <= label < model.num_classes:
        raise UserError(f"{name} has the classes 0 to {model.num_classes - 1}, not {label}.")
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    tokens = getattr(model, "tokens", None)
    tokens = tokens if isinstance(tokens, TokenEmbedding) and tokens.cls_token is not None else None
    if tokens is not None and model.global_pool == "token" and len(stages) > 1 and stage in (-1, len(stages) - 1):
        stage = len(stages) - 2
    hook = model.get_submodule(stages[stage]).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(image)[0]
    finally:
        hook.remove()
    label = int(logits.argmax()) if label is None else label
    features = kept[0]
    (gradient,) = torch.autograd.grad(logits[label], features)
    with torch.no_grad():
        (reference,) = feature_maps(model, image, [stage])
        if features.ndim == 3 and tokens is not None:
            size = tuple(reference.shape[2:])
            features, gradient = (tokens.split(x)[0].unflatten(1, size) for x in (features, gradient))
        if features.ndim != 4:
            raise UserError(f"Stage {stage} of {name} gives the shape {tuple(features.shape)}, no map.")
        if not (features.shape == reference.shape and torch.allclose(features, reference, atol=1e-4)):
            features, gradient = features.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)  # channels last
        weights = gradient.mean((2, 3), keepdim=True)
        return (weights * features).sum(1)[0].relu(), label, float(logits.softmax(-1)[label])


def plot_activations(
    picture: Any, maps: Sequence[Tensor], path: str | os.PathLike, activation: Tensor | None = None, title: str = ""
) -> Path:
    """Draw what a network makes of an image: the strength of each stage's map, and what speaks for a class.

    Strength is the root of the mean square over channels, each map on its own scale.

    Args:
        picture: the image, a Pillow image or (H, W, 3).
        maps: maps (1, C', H', W') or (C', H', W').
        path: the picture to write; its suffix chooses the format.
        activation: (H', W'), see `class_activation`; drawn over the image.
        title: of the last panel.

    Returns:
        The path.
    """
    count = 1 + len(maps) + (activation is not None)
    height, width = size_of(picture)
    side = 7.0 / count  # as wide as the documentation's column
    figure = new_figure(7.0, side * height / width + 0.4)
    panels = figure.subplots(1, count, squeeze=False)
    hide_axes(panels)
    panels = panels[0]
    extent = (0, width, height, 0)
    panels[0].imshow(picture, extent=extent)
    panels[0].set_title("image", fontsize=8.5, color=INK, pad=3)
    for number, (axes, features) in enumerate(zip(panels[1:], maps, strict=False), 1):
        strength = features.detach().float().cpu().reshape(features.shape[-3:]).pow(2).mean(0).sqrt()
        axes.imshow(strength, cmap="viridis", extent=extent, interpolation="nearest")
        shape = " x ".join(map(str, features.shape[-2:]))
        axes.set_title(f"map {number}\n{features.shape[-3]} x {shape}", fontsize=8, color=INK, pad=3)
    if activation is not None:
        axes = panels[-1]
        axes.imshow(picture, extent=extent)
        size = (height, width)
        heat = F.interpolate(activation.detach().float().cpu()[None, None], size=size, mode="bilinear")[0, 0]
        heat = heat / heat.max().clamp_min(1e-30)
        axes.imshow(heat, cmap="inferno", alpha=0.25 + 0.6 * heat.numpy(), vmin=0, vmax=1, extent=extent)
        axes.set_title(title.replace("', ", "'\n"), fontsize=8, color=INK, pad=3)
    return save_figure(figure, path)
