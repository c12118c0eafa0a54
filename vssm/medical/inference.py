"""Prediction of volumes slice by slice, as in TransUNet's protocol, and the loops that evaluate data sets so."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop
from mmengine.runner.amp import autocast
from torch import Tensor, nn

from .._progress import Progress, quietly
from .transforms import SliceTransform, resize


@torch.no_grad()
def predict_volume(
    model: nn.Module,
    volume: np.ndarray | Tensor,
    transform: SliceTransform,
    batch_size: int = 8,
    progress: Progress = quietly,
) -> np.ndarray:
    """Predict the labels of a volume slice by slice.

    Each slice is resized with order 3, normalised, and goes through the network; the class numbers are resized back
    with order 0.

    Args:
        model: A :class:`~vssm.medical.segmentor.UNetSegmentor`, in eval mode.
        volume: (D, H, W), float32.
        transform: Gives the size S and the normalisation.
        batch_size: Slices that go through the model at once.
        progress: Wraps the loop over the batches of slices, with a title.

    Returns:
        Class numbers (D, H, W), uint8.
    """
    volume = np.asarray(volume)
    device = next(model.parameters()).device
    labels = np.empty(volume.shape, dtype=np.uint8)
    for start in progress(range(0, len(volume), batch_size), "slices"):
        images = torch.stack([transform.image(image) for image in volume[start : start + batch_size]])
        for offset, answer in enumerate(model(images.to(device), mode="predict")):
            label = answer["prediction"].to(torch.uint8).cpu().numpy()
            labels[start + offset] = resize(label, volume.shape[1:], order=0)
    return labels


class VolumeLoop:
    """The evaluation of volumes, for loops of validation and of tests; a subclass says how a volume is predicted."""

    def predict(self, model: nn.Module, volume: Tensor) -> np.ndarray:
        """Give the class numbers (D, H, W) of a volume."""
        raise NotImplementedError

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Mapping[str, Sequence]) -> None:
        """Predict the volumes of a batch and hand them to the evaluator."""
        kind = "val" if isinstance(self, ValLoop) else "test"
        self.runner.call_hook(f"before_{kind}_iter", batch_idx=idx, data_batch=data_batch)
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model
        outputs = []
        for image, label, meta in zip(data_batch["image"], data_batch["label"], data_batch["meta"], strict=True):
            with autocast(enabled=self.fp16):
                prediction = self.predict(model, image)
            outputs.append({"prediction": prediction, "label": np.asarray(label), "meta": meta})
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(f"after_{kind}_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)


class _Slices(VolumeLoop):
    """Slice by slice, for both loops below."""

    def __init__(
        self, *args: Any, size: int = 224, mean: float = 0.0, std: float = 1.0, slices: int = 8, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.transform = SliceTransform(size, mean=mean, std=std)
        self.slices = slices

    def predict(self, model: nn.Module, volume: Tensor) -> np.ndarray:
        """See :func:`predict_volume`."""
        return predict_volume(model, volume, self.transform, self.slices)


@LOOPS.register_module()
class VolumeValLoop(_Slices, ValLoop):
    """Validate on volumes; arguments as :class:`VolumeTestLoop`."""


@LOOPS.register_module()
class VolumeTestLoop(_Slices, TestLoop):
    """Test on volumes, see :func:`predict_volume`.

    A batch of the data loader (``collate_fn=dict(type="list_collate")``) is a list of volumes.

    Args:
        *args: The runner, the data loader and the evaluator, see mmengine's loops.
        size: Side of the slices that the network gets.
        mean: Subtracted from the resized slices.
        std: Divided by, after that.
        slices: Slices that go through the network at once.
        **kwargs: See mmengine's loops.
    """
