"""What masked pre-training sees and makes of it: input, masked input and reconstruction, as pictures."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor

from ..engine.config import ConfigError, explain_config_mistakes, image_size
from ..engine.models import build_trained
from ..layers import mask_at
from ..profiling.subjects import Subject, outline_of
from ..viz import canvas
from .masked import MaskedPretraining, patch_moments, patchify

__all__ = ["counted_encoder", "draw_masked", "fill_in"]

COLUMNS = ("input", "masked", "reconstruction")


def counted_encoder(cfg: Config, name: str) -> Subject:
    """Build a run's encoder without weights, and say at which size the run works.

    Raises:
        ConfigError: The model cannot be built.
    """
    network = outline_of(cfg)
    size = cfg["train_dataloader"]["dataset"].get("patch") or image_size(cfg) or (224, 224)
    return Subject(name, network.encoder, (network.in_chans, *size))


def unpatchify(patches: Tensor, patch: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Undo `vssm.medical.masked.patchify`: (B, L, p_h p_w C) to (B, C, H, W); volumes alike."""
    dims = len(patch)
    x = patches.unflatten(2, (*patch, -1)).unflatten(1, tuple(grid))
    order = [axis for pair in zip(range(1, 1 + dims), range(1 + dims, 1 + 2 * dims), strict=True) for axis in pair]
    x = x.permute(0, 1 + 2 * dims, *order)
    for axis in range(2, 2 + dims):
        x = x.flatten(axis, axis + 1)
    return x


@torch.no_grad()
def fill_in(model: MaskedPretraining, image: Tensor, visible: Tensor) -> Tensor:
    """Lay the reconstruction into the masked places of images (B, C, ...).

    The network guesses normalised patches; each gets the mean and deviation of the true one.
    """
    truth = patchify(image, model.stride)
    mean, deviation = patch_moments(truth)
    guess = patchify(model.reconstruct(image, visible).float(), model.stride) * deviation + mean
    filled = torch.where(visible.flatten(1)[..., None], truth, guess)
    return unpatchify(filled, model.stride, visible.shape[2:])


def draw_masked(
    cfg: Mapping[str, Any],
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    count: int = 4,
    seed: int = 0,
    device: str = "cpu",
) -> str:
    """Draw samples of a run's training data: input, masked input and reconstruction; of volumes the middle slice.

    Args:
        cfg: The config of a run of `MaskedPretraining`.
        checkpoint: Its checkpoint.
        out: The picture to write.
        count: How many samples.
        seed: Of the crops and masks.
        device: Where to run.

    Returns:
        The file.

    Raises:
        ConfigError: The config is of another model.
        CheckpointError: The checkpoint cannot be read, or is of another model.
        DataError: The data cannot be read.
    """
    if cfg["model"]["type"] != "MaskedPretraining":
        raise ConfigError(f"Masked pictures are of a MaskedPretraining, but this config has a {cfg['model']['type']}.")
    model, _ = build_trained(cfg, checkpoint)
    model = model.to(device).eval()
    with explain_config_mistakes():
        data = DATASETS.build(cfg["train_dataloader"]["dataset"])
    figure = canvas.new_figure(7.5, 2.5 * count)
    grid = figure.subplots(count, len(COLUMNS), squeeze=False)
    canvas.hide_axes(grid)
    for axes, name in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(name, fontsize=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for row, number in zip(grid, np.linspace(0, len(data) - 1, count).round().astype(int), strict=True):
            sample = data[int(number)]
            x = (sample["image"] if "image" in sample else sample["inputs"])[None].float().to(device)
            visible = model.draw(x)
            low, high = (float(x.flatten().quantile(q)) for q in (0.005, 0.995))
            masked = x.masked_fill(~mask_at(visible, x.shape[2:]), (low + high) / 2)
            for axes, one in zip(row, (x, masked, fill_in(model, x, visible)), strict=True):
                axes.imshow(_pixels(one[0], low, high), cmap="gray", vmin=0, vmax=1)
    canvas.save_figure(figure, out)
    return str(out)


def _pixels(image: Tensor, low: float, high: float) -> np.ndarray:
    """(C, H, W), or (C, D, H, W) of which the middle slice counts, to a picture within 0 and 1."""
    image = image[:, image.shape[1] // 2] if image.ndim == 4 else image
    image = ((image - low) / max(high - low, 1e-6)).clamp(0, 1).cpu().numpy()
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0]
