"""Prediction of whole volumes by networks of volumes, in overlapping windows, and the loops that evaluate so."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop
from torch import Tensor, nn

from .._errors import DataError
from .._optional import require
from .._progress import Progress, quietly
from ..engine.config import ConfigError
from .inference import VolumeLoop
from .patches import normalize, patch_size
from .transforms import check_scaling

__all__ = ["WindowTestLoop", "WindowValLoop", "predict_windows"]


def _count_windows(size: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """As MONAI cuts: along each axis a step of a part of the patch, the last window at the end."""
    count = 1
    for length, side in zip(size, patch, strict=True):
        step = max(1, int(side * (1 - overlap)))
        count *= 1 + ceil(max(length - side, 0) / step)
    return count


@torch.no_grad()
def predict_windows(
    model: nn.Module,
    volume: np.ndarray | Tensor,
    patch: Sequence[int],
    overlap: float = 0.5,
    batch_size: int = 2,
    mean: float | None = 0.0,
    std: float | None = 1.0,
    progress: Progress = quietly,
) -> np.ndarray:
    """Predict the labels of a volume in windows of the size that the network was trained on.

    The probabilities of windows that overlap are averaged with Gaussian weights, which count a window's centre most, by
    MONAI's ``sliding_window_inference``. They are summed in the machine's own memory, however large the volume is.

    Args:
        model: A :class:`~vssm.medical.segmentor.UNetSegmentor` of volumes, in eval mode.
        volume: (D, H, W) or (C, D, H, W), float32.
        patch: Size of a window (D, H, W).
        overlap: Part of a window that it shares with the next one along each axis, below 1.
        batch_size: Windows that go through the network at once.
        mean: See :func:`~vssm.medical.patches.normalize`.
        std: See :func:`~vssm.medical.patches.normalize`.
        progress: Wraps the loop over the batches of windows, with a title.

    Returns:
        Class numbers (D, H, W), uint8.

    Raises:
        DataError: The volume has not as many channels as the network takes.
    """
    inferers = require("monai.inferers", "medical")
    pixels = normalize(np.asarray(volume), mean, std)
    network = model.model
    if len(pixels) != network.in_chans:
        raise DataError(
            f"The network takes volumes of {network.in_chans} channels, but this one has {len(pixels)}: its shape is "
            f"{tuple(np.shape(volume))}."
        )
    total = ceil(_count_windows(pixels.shape[1:], patch, overlap) / batch_size)
    steps: Iterator = iter(progress(range(total), "windows"))

    def probabilities(windows: Tensor) -> Tensor:
        next(steps, None)
        return model.probabilities(windows)

    summed = inferers.sliding_window_inference(
        torch.from_numpy(pixels)[None],
        roi_size=tuple(patch),
        sw_batch_size=batch_size,
        predictor=probabilities,
        overlap=overlap,
        mode="gaussian",
        padding_mode="replicate",
        sw_device=next(model.parameters()).device,
        device="cpu",
    )[0]
    for _ in steps:
        pass
    labels = summed[0] >= model.threshold if network.num_classes == 1 else summed.argmax(0)
    return labels.to(torch.uint8).numpy()


def _check_overlap(overlap: float) -> float:
    if not 0 <= overlap < 1:
        raise ConfigError(f"The overlap of windows is a number from 0 to below 1, not {overlap!r}.")
    return overlap


class _Windows(VolumeLoop):
    """Window by window, for both loops below."""

    def __init__(
        self,
        *args: Any,
        patch: Sequence[int],
        overlap: float = 0.5,
        windows: int = 2,
        mean: float | None = 0.0,
        std: float | None = 1.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_scaling(mean, std, own=True)
        self.options = dict(
            patch=patch_size(patch), overlap=_check_overlap(overlap), batch_size=windows, mean=mean, std=std
        )

    def predict(self, model: nn.Module, volume: Tensor) -> np.ndarray:
        """See :func:`predict_windows`."""
        return predict_windows(model, volume, **self.options)


@LOOPS.register_module()
class WindowValLoop(_Windows, ValLoop):
    """Validate on volumes in windows; arguments as :class:`WindowTestLoop`."""


@LOOPS.register_module()
class WindowTestLoop(_Windows, TestLoop):
    """Test on volumes in windows, see :func:`predict_windows`.

    A batch of the data loader (``collate_fn=dict(type="list_collate")``) is a list of volumes.

    Args:
        *args: The runner, the data loader and the evaluator, see mmengine's loops.
        patch: Size of a window (D, H, W), that of the patches in training.
        overlap: Part of a window that it shares with the next one.
        windows: Windows that go through the network at once.
        mean: Of the normalisation in training.
        std: Of the normalisation in training.
        **kwargs: See mmengine's loops.
    """
