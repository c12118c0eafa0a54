"""Find objects or classes in image files with a trained detector or segmentor, as drawings and as numbers."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from torch import nn

from .._errors import UserError
from .._files import FreeNames, write_beside
from ..engine.config import ConfigError, explain_config_mistakes
from ..engine.images import open_image
from ..engine.models import build_trained
from .results import CocoNumbers, coco_results, save_label_map

_SCOPES = ("mmdet", "mmseg")


@dataclass(frozen=True)
class DensePrediction:
    """The answer for one image.

    Attributes:
        image: The file.
        drawing: The file with the picture, None without one.
        found: Of a detector, the class and the score of each object drawn, the surest first; of a segmentor, the
            classes and their shares of the pixels, the largest first.
        error: Why there is no answer.
        label_map: The file with a segmentor's class of each pixel, None without one.
        numbers: The answer as it goes into a file, see :meth:`DensePredictor.in_numbers`.
    """

    image: str
    drawing: str | None = None
    found: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    label_map: str | None = None
    numbers: tuple[dict[str, Any], ...] = ()


class DensePredictor:
    """A detector or segmentor of a run, with the pipeline, the classes and the visualiser that belong to it.

    Args:
        cfg: The run's config, of scope mmdet or mmseg.
        checkpoint: Its checkpoint, official names of a backbone included.
        device: Where to run; None: a GPU if there is one.
        score_threshold: Objects below are left out.

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
        self._coco: CocoNumbers | None = None
        self._dataset = dataset

    @torch.inference_mode()
    def __call__(
        self,
        files: Sequence[str],
        out: str | os.PathLike | None = None,
        label_maps: str | os.PathLike | None = None,
        numbers: bool = False,
    ) -> Iterator[DensePrediction]:
        """Find objects, or a class for each pixel, in image files.

        Args:
            files: Image files.
            out: A folder for drawings of boxes and masks, or of a segmentation, named like the images.
            label_maps: A folder for a segmentor's label maps, named like the images.
            numbers: Answer with numbers too.

        Yields:
            One :class:`DensePrediction` per file, in order; for a file that cannot be read, one with ``error``.

        Raises:
            FileError: An answer cannot be written.
        """
        free_name = FreeNames()
        for file in files:
            try:
                image = np.asarray(open_image(file))
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
            else:
                sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= self.score_threshold]
            name = f"{free_name(Path(file).stem)}.png"
            drawing = None if out is None else Path(out) / name
            if drawing:
                write_beside(drawing, partial(self._draw, image, sample))
            label_map = None if label_maps is None else Path(label_maps) / name
            if label_map:
                save_label_map(sample.pred_sem_seg.data.squeeze(0).numpy(), self.meta["palette"], label_map)
            answer = DensePrediction(file, _text(drawing), self._found(sample), label_map=_text(label_map))
            yield replace(answer, numbers=self._numbers(answer, sample)) if numbers else answer

    def in_numbers(self, answers: Iterable[DensePrediction]) -> Any:
        """Return answers in the form in which they are written as JSON.

        Args:
            answers: Those that were asked for with ``numbers``.

        Returns:
            Of a detector, COCO's result form: a list of objects, see :func:`~vssm.mm.results.coco_results`. Of a
            segmentor, ``categories``, by number, and ``images``: for each file its label map, or an ``error``.
        """
        if self.scope == "mmdet":
            return [entry for answer in answers for entry in answer.numbers]
        images: list[dict[str, Any]] = []
        for answer in answers:
            images += [dict(file_name=answer.image, error=answer.error)] if answer.error else answer.numbers
        categories = [
            dict(id=number, name=name, color=[int(value) for value in color])
            for number, (name, color) in enumerate(zip(self.meta["classes"], self.meta["palette"], strict=True))
        ]
        return dict(categories=categories, images=images)

    def _numbers(self, answer: DensePrediction, sample: Any) -> tuple[dict[str, Any], ...]:
        if self.scope == "mmseg":
            height, width = sample.pred_sem_seg.data.shape[-2:]
            entry = dict(file_name=answer.image, width=width, height=height, label_map=answer.label_map)
            return (dict(entry, shares=dict(answer.found)),)
        names = self.meta["classes"]
        if self._coco is None:
            with DATASETS.switch_scope_and_registry(self.scope) as registry:
                coco = registry.get("CocoDataset").METAINFO["classes"]
            self._coco = CocoNumbers(self._dataset, names, coco)
        image_id = self._coco.image_id(answer.image)
        return tuple(coco_results(sample.pred_instances, answer.image, image_id, self._coco.categories, names))

    def _draw(self, image: np.ndarray, sample: Any, path: Path) -> None:
        options = {"pred_score_thr": self.score_threshold} if self.scope == "mmdet" else {}
        self.visualizer.add_datasample("image", image, sample, draw_gt=False, out_file=str(path), **options)

    def _found(self, sample: Any) -> tuple[tuple[str, float], ...]:
        classes = self.meta["classes"]
        if self.scope == "mmdet":
            objects = sample.pred_instances
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


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
