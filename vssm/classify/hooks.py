"""Hooks for classifiers: MESA, and the demo's pictures."""

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, MODELS

from .. import viz
from ..engine.config import ConfigError
from .classifier import TimmClassifier


@HOOKS.register_module()
class MESAHook(Hook):
    """Sharpness-aware training for free (MESA, arXiv 2205.14083): agree with the average of the run's own weights.

    From its start on, the loss gets ``weight`` times the cross-entropy of the model's logits with the probabilities
    that the run's EMAHook's average gives the same mixed images, in eval mode and without gradients. Whether it has
    started follows only from the iteration, so a resumed run goes on as an uninterrupted one.

    Args:
        weight: Factor of the term.
        start: Share of the run's iterations before the term starts.
        begin_epoch: How many epochs pass before it starts, instead of ``start``; for runs with extra epochs at the end.

    Raises:
        ConfigError: ``weight`` is not positive, ``start`` lies outside of [0, 1), or ``begin_epoch`` is negative.
    """

    def __init__(self, weight: float = 1.0, start: float = 0.25, begin_epoch: int | None = None):
        if not weight > 0:
            raise ConfigError(f"MESAHook needs a positive weight, not {weight}.")
        if not 0 <= start < 1:
            raise ConfigError(f"MESAHook's start is a share of the run from 0 to below 1, not {start}.")
        if begin_epoch is not None and begin_epoch < 0:
            raise ConfigError(f"MESAHook's begin_epoch is 0 or more, not {begin_epoch}.")
        self.weight = weight
        self.start = start
        self.begin_epoch = begin_epoch

    def before_train(self, runner) -> None:
        """Show the classifier the average.

        Raises:
            ConfigError: The run has no EMAHook, or a model other than TimmClassifier.
        """
        averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        if not averages:
            raise ConfigError("MESAHook needs an average to agree with: add dict(type='EMAHook', ...) to custom_hooks.")
        self.classifier = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(self.classifier, TimmClassifier):
            raise ConfigError(f"MESAHook works with TimmClassifier, not with {type(self.classifier).__name__}.")
        self.classifier.set_mesa(averages[0].ema_model.module)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Switch the term on when its time has come."""
        if self.begin_epoch is not None:
            started = runner.epoch >= self.begin_epoch
        else:
            started = runner.iter >= round(self.start * runner.max_iters)
        self.classifier.mesa_weight = self.weight if started else 0.0

    def after_train(self, runner) -> None:
        """Drop the average."""
        self.classifier.set_mesa(None)


@HOOKS.register_module()
class DemoFiguresHook(Hook):
    """Draw what a run has learnt into its folder, once it is over.

    ``predictions.png`` (held-out images with the model's answers), ``learning_curve.png`` (loss and held-out top-1)
    and ``receptive_field.png`` (the effective receptive field of the untrained and of the trained model).

    Args:
        input_size: Side of the square images for the receptive field; larger than in training shows more of it.
        num_images: How many held-out images the receptive field is averaged over.
        stage: Which feature map's centre is looked at, as an index into the model's stages.
    """

    # After the logger, whose after_run closes the log that the learning curve is drawn from.
    priority = "LOWEST"

    def __init__(self, input_size: int = 128, num_images: int = 24, stage: int = -1):
        self.input_size = input_size
        self.num_images = num_images
        self.stage = stage

    @master_only
    def after_run(self, runner) -> None:
        """Draw the three pictures."""
        if runner._train_loop is None or runner._val_loop is None or isinstance(runner._train_loop, dict):
            return
        classifier = runner.model.module if is_model_wrapper(runner.model) else runner.model
        averaged = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        for hook in averaged:
            # The pictures show the weights that the held-out figure was measured with.
            hook.before_test_epoch(runner)
        was_training = classifier.training
        classifier.eval()
        try:
            folder = Path(runner.work_dir)
            dataset = runner.val_dataloader.dataset
            viz.plot_predictions(classifier, dataset, folder / "predictions.png")
            viz.plot_learning_curves([folder], folder / "learning_curve.png")
            images = torch.stack([dataset[index]["inputs"] for index in range(min(self.num_images, len(dataset)))])
            images = torch.nn.functional.interpolate(images, size=self.input_size, mode="bicubic", align_corners=False)
            viz.plot_receptive_fields(
                {
                    "before training": viz.effective_receptive_field(
                        self._untrained(runner).model, images, stage=self.stage
                    ),
                    "after training": viz.effective_receptive_field(classifier.model.cpu(), images, stage=self.stage),
                },
                folder / "receptive_field.png",
            )
        finally:
            classifier.train(was_training)
            for hook in averaged:
                hook.after_test_epoch(runner)
        runner.logger.info(f"Pictures: {', '.join(str(path) for path in sorted(folder.glob('*.png')))}")

    @staticmethod
    def _untrained(runner) -> torch.nn.Module:
        # Built anew instead of copied before training, so that the picture is right after --resume as well.
        with torch.random.fork_rng():
            torch.manual_seed(runner.seed)
            return MODELS.build(runner.cfg.model).eval()
