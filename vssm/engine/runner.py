"""mmengine's Runner with safe checkpoints, processes on a CPU, and a console for people."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from mmengine.dist import is_main_process
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner import Runner as MMRunner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import class_layers
from .checkpoint import (
    CheckpointError,
    check_fits,
    check_training_state,
    convert_to_own_names,
    find_resumable,
    read_checkpoint,
    to_plain,
)
from .checks import check_run
from .config import on_gpu
from .models import without_pretrained
from .processes import join_processes
from .schedules import Schedules


class _ForPeople(logging.Filter):
    """Keep blocks of text (environment, config, hook tables) and mmengine's small talk in the log file only."""

    _small_talk = ("Exp name:", "Distributed training is not used", "Checkpoints will be saved to", "per class results")
    # What mmengine's hooks and mmseg's metrics make of each other's retired classes and unset names.
    _for_its_developers = (
        '"FileClient" will be deprecated',
        '"HardDiskBackend" is the alias',
        "The prefix is not set in metric class",
    )

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            return not message.startswith(self._for_its_developers)
        return not ("\n" in message or message.startswith(self._small_talk))


class _ShortFormatter(logging.Formatter):
    """``time  message``, with the level's name only where it is not INFO."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return f"{self.formatTime(record, '%H:%M:%S')}  {level}{record.getMessage()}"


def _keep_worker_seed(worker_id: int) -> None:
    """Leave a data worker with the seed that torch gave it.

    torch seeds each worker from the main process's generator, which EpochSeedHook sets per epoch. mmengine would
    seed it only from the run's seed: the same augmentations in every epoch.
    """


@RUNNERS.register_module("VssmRunner")
class Runner(MMRunner):
    """mmengine's Runner; see there for the arguments.

    It differs in these points:

    - Checkpoints are read with ``weights_only=True``, load strictly, and are written atomically, whatever hook the
      config names. Official names of a backbone's weights are converted.
    - Without CUDA, ``launcher="pytorch"`` uses gloo and DDP on the CPU, with BatchNorm for SyncBatchNorm.
    - Data workers keep the seeds that torch gives them, see :class:`~vssm.engine.hooks.EpochSeedHook`.
    - What a run logs goes to its own folder, also where an earlier run of the process named its visualizer alike.
    - The console shows progress; the environment, the config and the hooks go only to the log file.

    Attributes:
        last_metrics: What the latest evaluation returned, or None.
        resumes_newest: Whether the checkpoint to resume from was chosen as the newest of the work dir.
    """

    last_metrics: dict[str, float] | None = None
    resumes_newest: bool = False

    def setup_env(self, env_cfg: dict) -> None:
        """Join the other processes, see :func:`~vssm.engine.processes.join_processes`."""
        if self.distributed:
            join_processes(self.launcher, env_cfg)
        super().setup_env(env_cfg)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; nothing is fetched for it where a checkpoint follows."""
        if isinstance(model, Mapping) and (self._load_from or self._resume):
            model = without_pretrained(model)
        return super().build_model(model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move the model to its device, and into DDP when there are several processes."""
        if self.distributed and not on_gpu() and not is_model_wrapper(model):
            # torch has SyncBatchNorm for GPUs only; without several processes mmengine itself takes it out.
            model = revert_sync_batchnorm(model)
            # mmengine's default hands DDP a GPU's number, which DDP refuses for a model on a CPU.
            model_wrapper_cfg = {
                "type": "MMDistributedDataParallel",
                "broadcast_buffers": False,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
                "device_ids": None,
                **(model_wrapper_cfg or {}),
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build one of this run's own: mmengine takes that of an earlier run of the process, if it is named alike."""
        if isinstance(visualizer, Mapping) and "name" in visualizer:
            kinds = [Visualizer]
            for kind in kinds:
                kind._instance_dict.pop(visualizer["name"], None)
                kinds += kind.__subclasses__()
        return super().build_visualizer(visualizer)

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        """Build mmengine's logger with a quieter console; what this package logs goes to it too."""
        logger = super().build_logger(*args, **kwargs)
        files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        # The other handlers keep today's standard output, which may be another when the next line is logged.
        logging.getLogger("vssm").handlers = [*files, logging.lastResort] if is_main_process() else files
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.addFilter(_ForPeople())
                handler.setFormatter(_ShortFormatter())
        return logger

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a data loader whose workers keep torch's seeds; a data set that has ``set_loader`` is told of it."""
        if isinstance(dataloader, Mapping) and "worker_init_fn" not in dataloader:
            dataloader = {**dataloader, "worker_init_fn": {"type": _keep_worker_seed}}
        loader = MMRunner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed)
        if hasattr(loader.dataset, "set_loader"):
            loader.dataset.set_loader(loader)
        return loader

    def build_train_loop(self, loop: Any) -> Any:
        """Build the loop and its data, which have to fit the model, see :func:`~vssm.engine.checks.check_run`."""
        loop = super().build_train_loop(loop)
        check_run(self.model, loop.dataloader, "train_dataloader")
        return loop

    def build_val_loop(self, loop: Any) -> Any:
        """Build the loop and its data, see :meth:`build_train_loop`."""
        loop = super().build_val_loop(loop)
        check_run(self.model, loop.dataloader, "val_dataloader")
        return loop

    def build_test_loop(self, loop: Any) -> Any:
        """Build the loop and its data, see :meth:`build_train_loop`."""
        loop = super().build_test_loop(loop)
        check_run(self.model, loop.dataloader, "test_dataloader")
        return loop

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Register the hooks, with :class:`~vssm.engine.hooks.AtomicCheckpointHook` for mmengine's CheckpointHook.

        mmdet's and mmseg's own base configs name the latter, or nothing at all.
        """
        hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1}, **(hooks or {})}
        checkpoint = hooks["checkpoint"]
        if isinstance(checkpoint, Mapping) and checkpoint.get("type") == "CheckpointHook":
            hooks["checkpoint"] = {**checkpoint, "type": "AtomicCheckpointHook"}
        super().register_default_hooks(hooks)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks; then note metrics, and make what is about to be saved readable without unpickling."""
        super().call_hook(fn_name, **kwargs)
        if fn_name in ("after_val_epoch", "after_test_epoch"):
            self.last_metrics = dict(kwargs.get("metrics") or {})
        elif fn_name == "before_save_checkpoint":
            checkpoint = kwargs["checkpoint"]
            for key, value in checkpoint.items():
                checkpoint[key] = to_plain(value)

    def save_checkpoint(self, out_dir: str, *args: Any, backend_args: dict | None = None, **kwargs: Any) -> None:
        """Save a checkpoint, atomically unless it goes to remote storage."""
        if backend_args is None and "://" not in str(out_dir):
            backend_args = {"backend": "atomic"}
        super().save_checkpoint(out_dir, *args, backend_args=backend_args, **kwargs)

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = "cpu",
        strict: bool = True,
        revise_keys: list[tuple[str, str]] | tuple[tuple[str, str], ...] = ((r"^module\.", ""),),
    ) -> dict[str, Any]:
        """Load weights from a local file.

        With ``load_classes = False`` in the config, layers of another number of classes start afresh; see
        :func:`~vssm.checkpoint.class_layers`.

        Args:
            filename: The checkpoint.
            map_location: Where its tensors go.
            strict: Only True: nothing is ever left at its random start.
            revise_keys: (pattern, replacement) pairs applied to the keys.

        Returns:
            The whole checkpoint.

        Raises:
            CheckpointError: The file cannot be read safely, or does not fit the model exactly; or training is to be
                resumed from a file that holds only weights.
        """
        if not strict:
            raise CheckpointError("Checkpoints load strictly; strict=False is not offered.")
        checkpoint = read_checkpoint(filename, map_location)
        if self._resume:
            check_training_state(filename, checkpoint, self.optim_wrapper, self.param_schedulers)
        state_dict = checkpoint["state_dict"]
        for pattern, replacement in revise_keys:
            state_dict = {re.sub(pattern, replacement, key): value for key, value in state_dict.items()}
        model = self.model.module if is_model_wrapper(self.model) else self.model
        if isinstance(model, BaseTTAModel):
            model = model.module
        checkpoint["state_dict"] = state_dict = convert_to_own_names(filename, model, state_dict)
        # A run that starts from weights of other classes says so; the layers of the classes start afresh.
        new = [] if self._resume or self.cfg.get("load_classes", True) else class_layers(model, state_dict)
        check_fits(filename, model, state_dict, new)
        if new:
            own = model.state_dict()
            checkpoint["state_dict"] = {name: own[name] if name in new else state_dict[name] for name in state_dict}
        # EMAHook swaps the averaged and the raw weights in here, so the dict is read again below.
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=True)
        self._has_loaded = True
        self.logger.info(f"Loaded {filename}")
        if new:
            self.logger.warning(f"These layers have other classes and start afresh: {', '.join(new)}")
        return checkpoint

    def load_or_resume(self) -> None:
        """Load or resume from the checkpoint of the config.

        Where ``resumes_newest`` is set and the file turns out not to fit, the next older one of the work dir is tried.

        Raises:
            CheckpointError: See :meth:`load_checkpoint` and :meth:`resume`; the newest file's where none fits.
        """
        first: CheckpointError | None = None
        while self._load_from or not self.resumes_newest:
            try:
                return super().load_or_resume()
            except CheckpointError as error:
                if not self.resumes_newest:
                    raise
                first = first or error
                self.logger.warning(f"Skipping it: {error}")
            older, notes = find_resumable(self.work_dir, before=self._load_from)
            self._load_from = None if older is None else str(older)
            for note in notes:
                self.logger.warning(note)
        if first is not None:
            raise first

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continue the training that a checkpoint belongs to, to the end and by the schedules that the config has now.

        Where these differ from those of the checkpoint's run, as for a longer run, the learning rate goes on where the
        config's schedules are at this step, and the log says so.

        Raises:
            CheckpointError: See :meth:`load_checkpoint`; or the optimiser's state belongs to another config.
        """
        schedules = Schedules(self.param_schedulers)
        options = _options_of(self.optim_wrapper)
        length = _length(self.train_loop.max_epochs, self.train_loop.max_iters, self._by_epoch)
        try:
            super().resume(filename, *args, **kwargs)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise CheckpointError(f"Checkpoint '{filename}' holds the optimiser of another config: {error}.") from error
        self._say_what_differs(filename, schedules, options, length)
        sampler = getattr(self.train_dataloader, "sampler", None)
        if hasattr(sampler, "seed"):
            # The sampler was built before the checkpoint's seed was known.
            sampler.seed = self.seed

    @property
    def _by_epoch(self) -> bool:
        return isinstance(self.train_loop, EpochBasedTrainLoop)

    def _say_what_differs(self, filename: str, schedules: Schedules, options: list[dict], length: str) -> None:
        known = self.message_hub.runtime_info
        old = _length(known.get("max_epochs"), known.get("max_iters"), self._by_epoch)
        if old != length:
            self.logger.info(f"The run of '{filename}' was {old} long; this one is {length} long.")
        differences = schedules.differences(self.param_schedulers)
        if differences:
            # An epoch that was broken off begins anew.
            done = self.epoch * len(self.train_dataloader) if self._by_epoch else self.iter
            schedules.replay(self.param_schedulers, self.epoch if self._by_epoch else 0, done, filename)
            self.logger.info(
                f"The schedules of '{filename}' are replaced by those of the config, from this step on: "
                f"{', '.join(differences)}."
            )
        kept = {}
        for own, group in zip(options, _options_of(self.optim_wrapper), strict=True):
            # What a schedule sets is not the optimiser's own.
            names = [key for key in own if not key.startswith("initial_") and f"initial_{key}" not in own]
            kept |= {key: group[key] for key in names if group.get(key, own[key]) != own[key]}
        if kept:
            said = ", ".join(f"{key}={value}" for key, value in sorted(kept.items()))
            self.logger.warning(f"The optimiser keeps these settings of '{filename}', the config has others: {said}")

    def final_metrics(self) -> dict[str, float]:
        """Return the metrics of the weights that training ended with, measuring them if it has not been done.

        A run that was killed in its last evaluation, or that was complete when it was resumed, ends without one.
        """
        if self.last_metrics is None and self._val_loop is not None:
            self.val_loop.run()
        return self.last_metrics or {}


def _length(epochs: Any, iterations: Any, by_epoch: bool) -> str:
    return f"{epochs} epochs" if by_epoch else f"{iterations} iterations"


def _options_of(optimizer: Any) -> list[dict[str, Any]]:
    """The settings of an optimiser's groups; of several optimisers, those of all."""
    parts = optimizer.values() if hasattr(optimizer, "optim_wrappers") else [optimizer]
    groups = [group for part in parts for group in part.param_groups]
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]
