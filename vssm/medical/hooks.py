"""Hooks of the medical recipes: a frozen encoder at the start, selection by the training loss, tables per organ."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from .._files import write_beside
from ..engine.config import ConfigError
from .metrics import VolumeMetric
from .report import plot_overlays, write_tables


@HOOKS.register_module()
class FreezeEncoderHook(Hook):
    """Keep the encoder's parameters as they are in the first epochs (MSVM-UNet, arXiv 2408.13735).

    Whether they are frozen follows only from the epoch, so a resumed run goes on as an uninterrupted one. Frozen
    parameters get no gradient and so no weight decay either. With several processes the config needs
    ``find_unused_parameters=True``.

    Args:
        epochs: How many epochs.
        name: Name of the encoder's module.

    Raises:
        ConfigError: ``epochs`` is negative.
    """

    def __init__(self, epochs: int = 10, name: str = "encoder"):
        if epochs < 0:
            raise ConfigError(f"FreezeEncoderHook's epochs is 0 or more, not {epochs}.")
        self.epochs = epochs
        self.name = name

    def before_train(self, runner: Any) -> None:
        """Find the encoder.

        Raises:
            ConfigError: The model has no module of that name.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == self.name]
        if not found:
            raise ConfigError(f"FreezeEncoderHook finds no module named '{self.name}' in {type(model).__name__}.")
        self.encoder = found[0]

    def before_train_epoch(self, runner: Any) -> None:
        """Freeze the encoder, or unfreeze it."""
        self.encoder.requires_grad_(runner.epoch >= self.epochs)

    def after_train(self, runner: Any) -> None:
        """Unfreeze the encoder."""
        self.encoder.requires_grad_(True)


@HOOKS.register_module()
class TrainLossHook(Hook):
    """Choose a checkpoint, or stop a run, by the mean training loss of an epoch, as the official trainings do.

    VM-UNet keeps the checkpoint with the lowest training loss on Synapse; MSVM-UNet stops when it has not fallen for 15
    epochs.

    Args:
        save_best: Write ``best_train_loss.pth`` whenever it is the lowest so far.
        patience: Epochs without a new lowest after which training stops; None: never.
    """

    priority = "LOW"

    def __init__(self, save_best: bool = False, patience: int | None = None):
        self.save_best = save_best
        self.patience = patience

    def before_train_epoch(self, runner: Any) -> None:
        """Start a new mean."""
        self.total, self.count = 0.0, 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Add one iteration's loss."""
        self.total = self.total + outputs["loss"].detach().double()
        self.count += 1

    def after_train_epoch(self, runner: Any) -> None:
        """Compare the epoch's mean with the lowest so far."""
        mean = torch.as_tensor(self.total / max(self.count, 1))
        all_reduce(mean, op="mean")
        hub = runner.message_hub
        # In the message hub, and so in the checkpoints: a resumed run knows what it has reached.
        best, waited = hub.get_info("lowest_train_loss", math.inf), hub.get_info("epochs_without_lower_loss", 0)
        lower = mean.item() < best
        hub.update_info("lowest_train_loss", mean.item() if lower else best)
        hub.update_info("epochs_without_lower_loss", 0 if lower else waited + 1)
        if lower and self.save_best:
            runner.save_checkpoint(
                runner.work_dir, "best_train_loss.pth", save_optimizer=False, save_param_scheduler=False, by_epoch=True
            )
        if self.patience is not None and not lower and waited + 1 >= self.patience:
            runner.logger.info(f"The training loss has not fallen for {waited + 1} epochs: training stops.")
            runner.train_loop.stop_training = True


@HOOKS.register_module()
class EncoderFileHook(Hook):
    """Write the encoder of a pre-training alone into the run's folder when training ends.

    Fine-tuning configs take the file as ``pretrained``; HyMamba's has the layout of the official one.

    Args:
        name: Of the file.
    """

    priority = "VERY_LOW"

    def __init__(self, name: str = "encoder_only.pth"):
        self.name = name

    @master_only
    def after_train(self, runner: Any) -> None:
        """Write the file."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        path = Path(runner.work_dir) / self.name
        weights, untrained = model.encoder_weights()
        write_beside(path, lambda part: torch.save(weights, part))
        rest = f" (not trained, because no map depends on them: {', '.join(untrained)})" if untrained else ""
        runner.logger.info(f"The encoder alone, for fine-tuning: {path}{rest}")


@HOOKS.register_module()
class OrganTableHook(Hook):
    """Write ``organs.csv`` and ``organs.md``, the scores per case and class, into the run's folder after a test."""

    priority = "LOW"

    @master_only
    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Write the tables of the test's VolumeMetric, if it has one."""
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, VolumeMetric) and metric.table():
                files = write_tables(metric.table(), Path(runner.work_dir) / "organs")
                runner.logger.info(f"Scores per case and class: {', '.join(map(str, files))}")


@HOOKS.register_module()
class OverlayHook(Hook):
    """Draw slices of the first volumes of a test into the run's folder: image, truth and prediction side by side.

    Args:
        most: How many volumes.
    """

    priority = "LOW"

    def __init__(self, most: int = 3):
        self.most = most

    @master_only
    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw ``<case>.png`` for each volume of a batch."""
        if batch_idx == 0:
            self.drawn = 0
        for image, output in zip(data_batch["image"], outputs, strict=True):
            if self.drawn >= self.most or output["prediction"].ndim != 3:
                return
            self.drawn += 1
            columns = {"truth": output["label"], "prediction": output["prediction"]}
            case = output["meta"]["case"]
            pixels = np.asarray(image)
            plot_overlays(
                pixels[0] if pixels.ndim == 4 else pixels,  # the first of several channels
                columns,
                runner.test_dataloader.dataset.metainfo["classes"],
                Path(runner.work_dir) / f"{case}.png",
                title=case,
                flip=output["meta"]["spacing"] is not None,
            )
