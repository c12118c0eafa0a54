"""Classify image files with a trained run or with a model by name."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn

from .._errors import UserError
from ..checkpoint import read_checkpoint
from ..engine.config import test_data
from ..engine.images import find_images, open_image
from ..engine.models import build_trained
from ..models.create import ModelError, create_model, create_trained_model

__all__ = ["Prediction", "Predictor", "find_images"]


def _readable(classes: Sequence[str] | None) -> Sequence[str] | None:
    """ImageNet's folders are called n01440764 and so on: put words in their place."""
    imagenet = ImageNetInfo("imagenet-1k")
    return imagenet.label_descriptions() if classes and list(classes) == imagenet.label_names() else classes


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        image: The file.
        classes: Class names, the most probable first.
        probabilities: Their probabilities.
        error: Why there is no answer; the two above are empty then.
    """

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


class Predictor:
    """A model with the transform and the class names that belong to it.

    Args:
        model: Maps images (B, 3, H, W) to logits (B, K).
        transform: Maps an RGB image to a tensor (3, H, W).
        classes: The K class names; None: the classes' numbers.
        device: Where to run; None: a GPU if there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Callable[[Image.Image], Tensor],
        classes: Sequence[str] | None = None,
        device: str | None = None,
    ):
        self.device = device or get_device()
        self.model = model.eval().to(self.device)
        self.transform = transform
        self.classes = classes

    @classmethod
    def from_run(cls, cfg: Config, checkpoint: str | os.PathLike, device: str | None = None) -> "Predictor":
        """Take model and transform from a run's config, weights and class names from its checkpoint.

        Raises:
            ConfigError: The config has no test data set that says how images are transformed.
            CheckpointError: The checkpoint cannot be read, or does not fit the model.
        """
        kind, dataset = test_data(cfg)
        model, stored = build_trained(cfg, checkpoint)
        classes = (stored.get("meta", {}).get("dataset_meta") or {}).get("classes")
        return cls(model, kind.transform_from(dataset), _readable(classes), device)

    @classmethod
    def from_name(
        cls,
        name: str,
        pretrained: bool = False,
        device: str | None = None,
        checkpoint: str | os.PathLike | None = None,
    ) -> "Predictor":
        """Take a timm model by name, with the transform of its configuration.

        The classes' names are those that the checkpoint holds, else ImageNet's, if it has as many classes.

        Args:
            name: A name of timm's registry.
            pretrained: Load the published weights.
            device: Where to run; None: a GPU if there is one.
            checkpoint: A file with the weights, published or of a run, instead; it decides on the number of classes.

        Raises:
            ModelError: The name is unknown, or its weights cannot be had, or both kinds are asked for.
        """
        classes = None
        if checkpoint is None:
            model = create_model(name, pretrained=pretrained)
        elif pretrained:
            raise ModelError(
                "The published weights and those of a file exclude each other: say pretrained or checkpoint.",
                for_tools="--pretrained and --checkpoint exclude each other.",
            )
        else:
            model = create_trained_model(name, checkpoint)
            meta = read_checkpoint(checkpoint).get("meta")
            classes = (meta.get("dataset_meta") or {}).get("classes") if isinstance(meta, dict) else None
        transform = create_transform(**resolve_model_data_config(model), is_training=False)
        subset = infer_imagenet_subset(model)
        if not classes and subset:
            classes = ImageNetInfo(subset).label_descriptions()
        return cls(model, transform, _readable(classes), device)

    @torch.inference_mode()
    def __call__(self, files: Sequence[str], topk: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
        """Classify image files.

        Args:
            files: Image files.
            topk: How many classes to name per image; at most K are.
            batch_size: How many images go through the model at once.

        Yields:
            One :class:`Prediction` per file, in order; for a file that cannot be read, one with ``error``.
        """
        for start in range(0, len(files), batch_size):
            names = files[start : start + batch_size]
            inputs: list[Tensor] = []
            errors: dict[str, str] = {}
            for name in names:
                try:
                    inputs.append(self.transform(open_image(name)))
                except UserError as error:
                    errors[name] = str(error)
            answers: Iterator[tuple[list[int], list[float]]] = iter(())
            if inputs:
                scores = self.model(torch.stack(inputs).to(self.device)).float().softmax(dim=-1)
                top = scores.topk(min(topk, scores.shape[-1]), dim=-1)
                answers = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            for name in names:
                if name in errors:
                    yield Prediction(name, error=errors[name])
                    continue
                numbers, probabilities = next(answers)
                yield Prediction(name, tuple(map(self._class_name, numbers)), tuple(probabilities))

    def _class_name(self, number: int) -> str:
        if self.classes is None or number >= len(self.classes):
            return str(number)
        return self.classes[number]
