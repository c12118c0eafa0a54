"""Images to calibrate on, and the share of labelled ones that a model gets right."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from .._errors import DataError
from .._inputs import list_files, picture_suffixes, read_rgb
from .layers import QuantizeError

__all__ = ["calibration_images", "evaluation_options", "top1"]


def evaluation_options(model: nn.Module, img_size: Sequence[int] | None = None) -> dict:
    """Return the arguments of timm's transform that a model is evaluated with.

    Args:
        model: A timm model.
        img_size: Side, or height and width; None: the model's own.
    """
    options = resolve_model_data_config(model)
    if img_size:
        height, width = (*img_size, *img_size)[:2]
        options["input_size"] = (options["input_size"][0], height, width)
    return options


def calibration_images(
    model: nn.Module,
    folder: str | os.PathLike,
    count: int = 256,
    batch_size: int = 32,
    img_size: Sequence[int] | None = None,
    transform: Callable | None = None,
) -> list[Tensor]:
    """Read images as a model is evaluated on them, spread evenly over all that there are.

    Args:
        model: A timm model, whose configuration says how images are transformed.
        folder: Is searched through for images.
        count: How many images at most.
        batch_size: Images in a batch.
        img_size: Side, or height and width; None: the model's own.
        transform: Image to tensor, in place of the model's.

    Raises:
        DataError: There are no images, or one cannot be read.
        QuantizeError: `count` or `batch_size` is below 1.
    """
    if count < 1 or batch_size < 1:
        raise QuantizeError("The number of images and that in a batch must be at least 1.")
    files = sorted(map(str, list_files(Path(folder), picture_suffixes(), deep=True))) if os.path.isdir(folder) else []
    if not files:
        raise DataError(f"The folder '{folder}' holds no images to calibrate on.")
    count = min(count, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    transform = transform or create_transform(**evaluation_options(model, img_size), is_training=False)
    images = [transform(read_rgb(file)) for file in chosen]
    return [torch.stack(images[start : start + batch_size]) for start in range(0, count, batch_size)]


@torch.no_grad()
def top1(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of images, in percent, whose most probable class is right.

    Args:
        model: Images (B, C, H, W) to logits (B, K).
        batches: Images and class numbers (B,).
    """
    right = total = 0
    for images, labels in batches:
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return 100 * right / total
