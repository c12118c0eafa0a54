"""How detectors of the YOLO line are trained, where mmdet does it otherwise: augmentation and warm-up."""

import random
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmdet.datasets.transforms import RandomAffine
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

__all__ = ["CentredAffine", "GainJitter", "MosaicOffHook", "YOLOWarmupHook"]


@TRANSFORMS.register_module()
class CentredAffine(RandomAffine):
    """Enlarge an image about its centre, shift it, and cut or fill it to one size; whole images and mosaics alike.

    mmdet's transform enlarges about the upper left corner, and asks for the difference of the sizes beforehand. What
    boxes become is mmdet's. It is in mmengine's root registry.

    Args:
        size: Width and height of the result.
        scaling_ratio_range: Smallest and largest factor.
        max_translate_ratio: Largest shift, as a share of the result's width and height.
        border_val: What is put around the image.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scaling_ratio_range: tuple[float, float] = (0.5, 1.5),
        max_translate_ratio: float = 0.1,
        border_val: tuple[int, int, int] = (114, 114, 114),
    ):
        super().__init__(0.0, max_translate_ratio, tuple(scaling_ratio_range), 0.0, border_val=tuple(border_val))
        self.size = tuple(size)

    def transform(self, results: dict) -> dict:
        """Change `img`, `img_shape` and `gt_bboxes`; boxes that leave the image go."""
        self._given = results["img"].shape
        results["img"], self.border = _grown(results["img"], self.size)
        return super().transform(results)

    @cache_randomness
    def _get_random_homography_matrix(self, height: int, width: int) -> np.ndarray:
        scale = random.uniform(*self.scaling_ratio_range)
        shifts = [random.uniform(-self.max_translate_ratio, self.max_translate_ratio) for _ in range(2)]
        x = width * (0.5 + shifts[0]) - scale * self._given[1] / 2
        y = height * (0.5 + shifts[1]) - scale * self._given[0] / 2
        return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]], dtype=np.float32)


def _grown(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """An image with even differences to a size, and half of these: what mmdet adds on each side."""
    width, height = size
    odd = [(height - image.shape[0]) % 2, (width - image.shape[1]) % 2]
    if any(odd):
        image = cv2.copyMakeBorder(image, 0, odd[0], 0, odd[1], cv2.BORDER_CONSTANT, value=(114, 114, 114))
    return image, ((width - image.shape[1]) // 2, (height - image.shape[0]) // 2)


@TRANSFORMS.register_module()
class GainJitter(BaseTransform):
    """Multiply hue, saturation and value by random factors from 1 - gain to 1 + gain; mmdet adds random numbers.

    It is in mmengine's root registry.

    Args:
        gains: Of hue, saturation and value.
    """

    def __init__(self, gains: tuple[float, float, float] = (0.015, 0.7, 0.4)):
        self.gains = tuple(gains)

    def transform(self, results: dict) -> dict:
        """Change `img`, (H, W, 3), 8 bits, blue first."""
        factors = 1 + np.random.uniform(-1, 1, 3) * self.gains
        image = cv2.cvtColor(results["img"], cv2.COLOR_BGR2HSV).astype(np.float32) * factors
        image[..., 0] %= 180  # degrees over two
        image = np.clip(image, 0, [179, 255, 255]).astype(np.uint8)
        results["img"] = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
        return results


@HOOKS.register_module()
class MosaicOffHook(Hook):
    """Train with whole images, no mosaics, in the last epochs.

    Args:
        epochs: How many.
    """

    def __init__(self, epochs: int = 10):
        self.epochs = epochs

    def before_train_epoch(self, runner: Any) -> None:
        """Tell the data set, whose workers start anew each epoch."""
        if runner.epoch >= runner.max_epochs - self.epochs:
            runner.train_dataloader.dataset.update_skip_type_keys(("Mosaic",))


@HOOKS.register_module()
class YOLOWarmupHook(Hook):
    """Raise learning rates and momentum linearly in the first epochs, the rates of biases from above.

    The schedule goes on beneath: it is given its own rates back after each step. It is in mmengine's root registry.

    Args:
        epochs: Length; at least 100 steps.
        bias_lr: Where the rates of biases start; all others start at 0.
        momentum: Where the momentum starts.
    """

    priority = "NORMAL"  # the schedule's hook has a lower one

    def __init__(self, epochs: float = 3, bias_lr: float = 0.1, momentum: float = 0.8):
        self.epochs, self.bias_lr, self.momentum = epochs, bias_lr, momentum
        self._own: list[tuple[float, float]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set the rates of this step."""
        steps = max(round(self.epochs * len(runner.train_dataloader)), 100)
        share = runner.iter / steps
        self._own = []
        if share >= 1:
            return
        biases = {id(p) for name, p in runner.model.named_parameters() if "bias" in name}
        for group in runner.optim_wrapper.optimizer.param_groups:
            own = (group["lr"], group.get("momentum", 0.0))
            start = self.bias_lr if all(id(p) in biases for p in group["params"]) else 0.0
            group["lr"] = start + share * (own[0] - start)
            if "momentum" in group:
                group["momentum"] = self.momentum + share * (own[1] - self.momentum)
            self._own.append(own)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Give the schedule its own rates back."""
        for group, (rate, momentum) in zip(runner.optim_wrapper.optimizer.param_groups, self._own, strict=False):
            group["lr"] = rate
            if "momentum" in group:
                group["momentum"] = momentum
