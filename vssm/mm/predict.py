"""Draw what a trained detector or segmentor finds in image files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from PIL import ImageOps
from torch import nn

from .._errors import UserError
from ..engine.config import ConfigError, explain_config_mistakes
from ..engine.images import open_image
from ..engine.models import build_trained

_SCOPES = ("mmdet", "mmseg")


@dataclass(frozen=True)
class DensePrediction:
    """The answer for one image.

    Attributes:
        image: The file.
        drawing: The file with the picture, None without an answer.
        found: Of a detector, the class and the score of each object drawn, the surest first; of a segmentor, the
            classes and their shares of the pixels, the largest first.
        error: Why there is no answer.
    """

    image: str
    drawing: str | None = None
    found: tuple[tuple[str, float], ...] = ()
    error: str | None = None


class DensePredictor:
    """A detector or segmentor of a run, with the pipeline, the classes and the visualiser that belong to it.

    Args:
        cfg: The run's config, of scope mmdet or mmseg.
        checkpoint: Its checkpoint, official names of a backbone included.
        device: Where to run; None: a GPU if there is one.
        score_threshold: Objects below are not drawn.

    Raises:
        ConfigError: The config lacks what prediction needs.
        CheckpointError: The checkpoint cannot be read, or does not fit the model.
    """

    def __init__(
        self, cfg: Config, checkpoint: str | os.PathLike, device: str | None = None, score_threshold: float = 0.3
    ):
        self.scope = cfg.get("default_scope")
        if self.scope not in _SCOPES:
            raise ConfigError(f"default_scope must be one of {', '.join(_SCOPES)}, not {self.scope!r}.")
        self.score_threshold = score_threshold
        init_default_scope(self.scope)
        dataset = _innermost((cfg.get("test_dataloader") or {}).get("dataset"))
        if not dataset or not dataset.get("pipeline"):
            raise ConfigError("The config has no test_dataloader.dataset.pipeline that says how images are prepared.")
        model, stored = build_trained(cfg, checkpoint)
        # Where there is one process, SyncBatchNorm is BatchNorm; on a CPU it does not run at all.
        self.model: nn.Module = revert_sync_batchnorm(model)
        with explain_config_mistakes():
            self.pipeline = _pipeline(dataset["pipeline"], self.scope)
            self.visualizer = VISUALIZERS.build(
                {**(cfg.get("visualizer") or {}), "name": f"predict_{id(self)}", "vis_backends": None}
            )
        self.model.to(device or get_device()).eval()
        self.meta = _meta(dataset, stored, self.scope)
        if getattr(self.model, "out_channels", None) == 1 and len(self.meta["classes"]) == 1:
            # One output channel answers 1 where the class is, and 0 elsewhere.
            self.meta["classes"] = ("background", *self.meta["classes"])
            self.meta["palette"] = [[0, 0, 0], *self.meta["palette"][:1]]
        self.visualizer.dataset_meta = self.meta

    @torch.inference_mode()
    def __call__(self, files: Sequence[str], out: str | os.PathLike) -> Iterator[DensePrediction]:
        """Draw boxes and masks, or a segmentation, on each image.

        Args:
            files: Image files.
            out: A folder for the drawings, named like the images; it is created.

        Yields:
            One :class:`DensePrediction` per file, in order; for a file that cannot be read, one with ``error``.
        """
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        for file in files:
            try:
                image = np.asarray(ImageOps.exif_transpose(open_image(file)))
            except UserError as error:
                yield DensePrediction(file, error=str(error))
                continue
            # mmcv's pipelines begin with OpenCV's order of channels.
            data = self.pipeline({"img": np.ascontiguousarray(image[..., ::-1]), "img_id": 0})
            batch = {name: [value] for name, value in data.items()}
            sample = self.model.test_step(batch)[0].cpu()
            if self.scope == "mmseg":
                # Of one output channel mmseg makes 0 and 1 as floats.
                sample.pred_sem_seg.data = sample.pred_sem_seg.data.long()
            drawing = folder / _free_name(Path(file).stem, taken)
            part = drawing.with_name(f".{drawing.stem}.part.png")
            self._draw(image, sample, str(part))
            os.replace(part, drawing)
            yield DensePrediction(file, str(drawing), self._found(sample))

    def _draw(self, image: np.ndarray, sample: Any, path: str) -> None:
        options = {"pred_score_thr": self.score_threshold} if self.scope == "mmdet" else {}
        self.visualizer.add_datasample("image", image, sample, draw_gt=False, out_file=path, **options)

    def _found(self, sample: Any) -> tuple[tuple[str, float], ...]:
        classes = self.meta["classes"]
        if self.scope == "mmdet":
            objects = sample.pred_instances
            objects = objects[objects.scores >= self.score_threshold]
            pairs = zip(objects.labels.tolist(), objects.scores.tolist(), strict=True)
        else:
            labels = sample.pred_sem_seg.data.flatten()
            numbers, counts = labels.unique(return_counts=True)
            pairs = zip(numbers.tolist(), (counts / len(labels)).tolist(), strict=True)
        return tuple((classes[label], value) for label, value in sorted(pairs, key=lambda pair: -pair[1]))


def _innermost(dataset: Any) -> Any:
    """The data set that others (repeated, wrapped) are made of."""
    while dataset and "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset


def _pipeline(steps: Sequence[dict], scope: str) -> Compose:
    """The test pipeline for an image that is in memory, without annotations."""
    kept = [step for step in steps if not str(step["type"]).rpartition(".")[2].startswith("Load")]
    return Compose([{"type": f"{scope}.LoadImageFromNDArray"}, *kept])


def _meta(dataset: dict, stored: dict, scope: str) -> dict[str, Any]:
    """Class names and colours: the checkpoint's, else the config's, else the data set's own."""
    # The data sets are registered in the scope's registry, in which building them looks first too.
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(dataset["type"])
    known = dict(getattr(kind, "METAINFO", {})) | dict(dataset.get("metainfo") or {})
    saved = stored.get("meta") or {}
    known |= {key: value for key, value in (saved.get("dataset_meta") or {}).items() if value is not None}
    if saved.get("CLASSES"):  # mmcv 1.x
        known["classes"] = saved["CLASSES"]
    if not known.get("classes"):
        raise ConfigError("Neither the checkpoint nor the config's data set names the classes.")
    if not known.get("palette"):
        known["palette"] = np.random.default_rng(0).integers(0, 256, (len(known["classes"]), 3)).tolist()
    return known


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}.png"
    taken.add(name)
    return name
