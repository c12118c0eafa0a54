"""Classification metrics."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .._errors import DataError


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Top-k accuracy in per cent, over each image exactly once whatever the number of processes.

    Per image only the rank of the true class is kept: one integer instead of K scores (200 MB for ImageNet's
    validation images), and mmengine can then cut off the images that the sampler repeated to give every process
    equally many, which metrics averaged per batch (timm's ``accuracy``) would count twice.

    Args:
        topk: The k of each figure; they are logged as ``accuracy/top{k}``.
        collect_device: See mmengine's BaseMetric. ``"gpu"`` stands for gathering through torch.distributed, gloo on
            a CPU included; ``"cpu"`` goes through pickle files in a shared folder.
        prefix: See mmengine's BaseMetric.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: Sequence[int] = (1, 5), collect_device: str = "gpu", prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the rank of each image's true class.

        Args:
            data_batch: Not used.
            data_samples: One dict per image: ``scores`` (K,) and ``label``.
        """
        scores = torch.stack([sample["scores"] for sample in data_samples])
        labels = torch.stack([torch.as_tensor(sample["label"]) for sample in data_samples]).to(scores.device)
        true = scores.gather(1, labels[:, None])
        # "Not smaller" rather than "greater": ties and NaN scores count against the model, never for it.
        ranks = (~(scores < true)).sum(dim=1) - 1
        self.results.extend(ranks.tolist())

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the metrics of all processes' images.

        mmengine takes one result of each process in turn and stops with the shortest. Where a stream gave the processes
        different numbers, they are dealt out anew before.

        Args:
            size: How many images there are.

        Raises:
            DataError: The processes saw another number.
        """
        parts = all_gather_object(len(self.results))
        if len(set(parts)) > 1:
            if sum(parts) != size:
                raise DataError(
                    f"The evaluation saw {sum(parts)} samples, but the data set has {size}; where a stream does not "
                    "know its length, dataset.num_samples has to give the right one."
                )
            results = [rank for part in all_gather_object(self.results) for rank in part]
            # What is repeated to fill up lies behind `size`.
            results += results[: -size % len(parts)]
            self.results = results[get_rank() :: len(parts)]
        return super().evaluate(size)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Return ``{"top1": per cent, ...}`` from the ranks of all images."""
        ranks = torch.tensor(results)
        return {f"top{k}": 100.0 * (ranks < k).double().mean().item() for k in self.topk}
