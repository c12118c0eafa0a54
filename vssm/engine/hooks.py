"""Hooks for every run: repeatable epochs and safe checkpoints."""

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS

from .checkpoint import write_atomically
from .config import ConfigError, check_options


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed Python, NumPy and torch at the start of each training epoch from (run's seed, epoch, rank).

    Drop path, mixing, augmentation and the seeds of the data workers then depend on nothing that came before in the
    process, so a run that was killed and resumed has the losses of one that was not. The order of the samples has its
    own seed, equal on all ranks, in mmengine's DefaultSampler.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner) -> None:
        """Refuse data workers that outlive an epoch.

        Raises:
            ConfigError: ``persistent_workers`` is set: such workers are seeded once, in the first epoch they see.
        """
        if runner.train_dataloader.persistent_workers:
            raise ConfigError(
                "train_dataloader.persistent_workers must be False: workers that live on are not seeded again, "
                "and a resumed run would differ from an uninterrupted one."
            )

    def before_train_epoch(self, runner) -> None:
        """Seed all generators."""
        # A seed sequence keeps (seed 0, epoch 1) and (seed 1, epoch 0) apart, which a sum would not.
        seed = int(np.random.SeedSequence([runner.seed, runner.epoch, get_rank()]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        # Data that come in an order of their own have no sampler that mmengine would tell.
        if hasattr(runner.train_dataloader.dataset, "set_epoch"):
            runner.train_dataloader.dataset.set_epoch(runner.epoch)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe against being killed at any moment.

    mmengine deletes the outdated checkpoint before it writes the new one, and writes both the checkpoint and the
    ``last_checkpoint`` pointer in place. Here the new file is complete under its name first; then the pointer is
    replaced; only then does the outdated file go.

    Args:
        **kwargs: Arguments of mmengine's CheckpointHook.

    Raises:
        ConfigError: It has no such argument.
    """

    def __init__(self, **kwargs: Any):
        # mmengine would hand them on when it saves, after an epoch.
        check_options(CheckpointHook.__init__, kwargs, "default_hooks.checkpoint")
        kwargs.setdefault("backend_args", {"backend": "atomic"})
        super().__init__(**kwargs)

    def _init_rule(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._init_rule(*args, **kwargs)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"default_hooks.checkpoint.save_best is {self.save_best!r}: {str(error.args[0]).rstrip('.')}; say "
                "'greater' or 'less' as default_hooks.checkpoint.rule."
            ) from error

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        for name in getattr(self, "key_indicators", None) or () if metrics else ():
            # Which figures there are is known with the first evaluation.
            if name not in ("auto", *metrics):
                raise ConfigError(
                    f"default_hooks.checkpoint.save_best is '{name}', but the evaluation gives {', '.join(metrics)}."
                )
        super()._save_best_checkpoint(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            steps = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
            outdated = steps[: -self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts :], self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        write_atomically(Path(runner.work_dir) / "last_checkpoint", self.last_ckpt.encode())
        for old in outdated:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
