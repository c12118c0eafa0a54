"""Train, evaluate and predict: the work of the tools, which themselves only parse arguments."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process, master_only
from mmengine.registry import RUNNERS

from .._cli import say
from .._errors import UserError
from .._files import require_writable
from .._tasks import NamedModel, Run, Wanted, find_task, task_of, task_of_names
from .checkpoint import find_resumable, saved_steps, to_plain, write_atomically
from .config import ConfigError, explain_config_mistakes, load_config, use_amp, use_tta
from .lock import work_dir_of_one_run
from .look import look_at_data
from .models import require_checkpoint, without_pretrained
from .processes import join_processes
from .runner import Runner
from .sections import check_sections
from .types import only_known_types

T = TypeVar("T")


def parse_options(options: Sequence[str] | None) -> dict[str, object]:
    """Parse ``KEY=VALUE`` words with mmengine's rules: numbers, True, None, lists and tuples are understood.

    Raises:
        ConfigError: A word has no ``=``, or its brackets do not match.
    """
    if not options:
        return {}
    for word in options:
        if "=" not in word or word.startswith("="):
            raise ConfigError(f"--cfg-options takes KEY=VALUE, not '{word}'.")
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="+", action=DictAction)
    try:
        return parser.parse_args(["--", *options]).words
    except AssertionError as error:
        raise ConfigError(f"--cfg-options cannot be parsed: {error}.") from error


def _run_config(config: str, work_dir: str | None, options: Sequence[str] | None, launcher: str) -> Config:
    cfg = load_config(config, parse_options(options))
    task = find_task(cfg)
    if task is not None:
        # Its data are checked even where the config imports nothing of this package.
        task.load()
    folder = work_dir or cfg.get("work_dir") or Path("work_dirs") / Path(config).stem
    # A shell leaves the ~ of --work-dir=~/run and of a config's text as it is.
    cfg.work_dir = os.path.expanduser(str(folder))
    cfg.launcher = launcher
    with only_known_types():
        check_sections(cfg)
    return cfg


def _speaks(launcher: str) -> bool:
    """Whether this process is the first of its run, which is known before they have joined."""
    rank = {"pytorch": "RANK", "slurm": "SLURM_PROCID"}.get(launcher, "")
    return os.environ.get(rank, "0") == "0"


def _in_processes(job: Callable[[], T]) -> T:
    """Run a job that may join other processes, and leave them properly whatever happens."""
    try:
        with explain_config_mistakes():
            return job()
    except UserError:
        raise
    except FileNotFoundError as error:
        # Data sets of mmdet and mmseg leave it to open() to notice.
        raise ConfigError(f"The config names '{error.filename or error}', which does not exist.") from error
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train(
    config: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    options: Sequence[str] | None = None,
    launcher: str = "none",
) -> dict[str, float]:
    """Train from a config; the last lines printed are the metrics, a held-out top-1 last of all.

    Args:
        config: Path of a ``.py`` config.
        work_dir: Folder for checkpoints and logs; None: the config's, else ``work_dirs/<name of the config>``.
        resume: A checkpoint to go on from; ``"auto"``: the newest readable one in the work dir, if any.
        amp: Use mixed precision.
        options: ``KEY=VALUE`` words laid over the config.
        launcher: ``"none"``, ``"pytorch"`` or ``"slurm"``.

    Returns:
        The metrics of the final weights; nothing with ``runner_type = "FlexibleRunner"``.

    Raises:
        UserError: Something in the config, the data, the checkpoint or the options cannot be used.
    """
    cfg = _run_config(config, work_dir, options, launcher)
    if cfg.get("train_dataloader") is None:
        raise ConfigError(f"Config '{config}' has no train_dataloader, there is nothing to train on.")
    if amp:
        use_amp(cfg)
    if resume is None and cfg.get("resume") and not cfg.get("load_from"):
        resume = "auto"
    if resume and resume != "auto":
        cfg.resume, cfg.load_from = True, resume
    if cfg.get("load_from") and resume != "auto":
        require_checkpoint(cfg.load_from)

    def job() -> dict[str, float]:
        notes: list[str] = []
        if resume == "auto":
            path, notes = find_resumable(cfg.work_dir)
            cfg.resume = path is not None
            if path is not None:
                cfg.load_from = str(path)
                notes.append(f"Resuming from {path}.")
            else:
                begin = "from scratch"
                if cfg.get("load_from"):
                    require_checkpoint(cfg.load_from)
                    begin = f"with the weights of {cfg.load_from}"
                notes.append(f"No readable checkpoint in {cfg.work_dir}: starting {begin}.")
        others = [] if cfg.get("resume") else saved_steps(cfg.work_dir)
        if cfg.get("runner_type") == "FlexibleRunner":
            # mmengine's runner for sharded training; its evaluations are in the log.
            if cfg.get("load_from"):
                cfg.model = without_pretrained(cfg.model)
            if launcher != "none":
                join_processes(launcher, cfg.get("env_cfg") or {})
            RUNNERS.build(cfg).train()
            return {}
        runner = Runner.from_cfg(cfg)
        runner.resumes_newest = resume == "auto" and bool(cfg.resume)
        for note in notes:
            runner.logger.info(note)
        if others:
            runner.logger.warning(
                f"{cfg.work_dir} holds checkpoints of an earlier run, {others[0].name} for example: this run is a new "
                "one and replaces those of the same names; --resume then goes on from this run's."
            )
        runner.train()
        metrics = runner.final_metrics()
        _report(metrics)
        return metrics

    with work_dir_of_one_run(cfg.work_dir, main=_speaks(launcher)):
        return _in_processes(job)


def check(config: str, options: Sequence[str] | None = None, samples: int = 100) -> None:
    """Read a config's data as a run would, and say what is there.

    Args:
        config: Path of a ``.py`` config.
        options: ``KEY=VALUE`` words laid over the config.
        samples: How many samples of each part to read; 0: all.

    Raises:
        UserError: What would stop a run.
    """
    if samples < 0:
        raise ConfigError(f"--samples is 0 or more, not {samples}.")
    cfg = _run_config(config, None, options, "none")
    _in_processes(lambda: look_at_data(cfg, find_task(cfg), samples))


def test(
    config: str,
    checkpoint: str | None = None,
    work_dir: str | None = None,
    out: str | None = None,
    options: Sequence[str] | None = None,
    launcher: str = "none",
    tta: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test data; the last lines printed are the metrics.

    Args:
        config: Path of a ``.py`` config.
        checkpoint: A checkpoint of that config's model; None: the published weights, if ``model.model.pretrained``.
        work_dir: Folder for logs; None: the config's, else ``work_dirs/<name of the config>``.
        out: A JSON file for the metrics.
        options: ``KEY=VALUE`` words laid over the config.
        launcher: ``"none"``, ``"pytorch"`` or ``"slurm"``.
        tta: Average over the scales and flips of the config's ``tta_pipeline``.

    Returns:
        The metrics.

    Raises:
        UserError: Something in the config, the data, the checkpoint or the options cannot be used.
    """
    cfg = _run_config(config, work_dir, options, launcher)
    out = out and os.path.expanduser(out)
    if cfg.get("test_dataloader") is None:
        raise ConfigError(f"Config '{config}' has no test_dataloader, there is nothing to test on.")
    if checkpoint is None and not cfg.model.get("model", {}).get("pretrained"):
        raise ConfigError(
            "A CHECKPOINT is needed; for the published weights say --cfg-options model.model.pretrained=True."
        )
    if checkpoint is not None:
        require_checkpoint(checkpoint)
    if _speaks(launcher):
        require_writable(cfg.work_dir, folder=True)
        if out:
            require_writable(out)
    if tta:
        use_tta(cfg)
    cfg.resume, cfg.load_from = False, checkpoint

    def job() -> dict[str, float]:
        metrics = to_plain(Runner.from_cfg(cfg).test())
        if out and is_main_process():
            write_atomically(out, (json.dumps(metrics, indent=2) + "\n").encode())
        _report(metrics)
        return metrics

    return _in_processes(job)


@master_only
def _report(metrics: dict[str, float]) -> None:
    others = [f"{name}: {value:.4g}" for name, value in metrics.items() if not name.startswith("accuracy/")]
    ranks = [(name.rpartition("top")[2], value) for name, value in metrics.items() if name.startswith("accuracy/top")]
    for line in others:
        say(line)
    # Top-1 last, where it is found without looking.
    for k, value in reversed(ranks):
        say(f"held-out top-{k}: {value:.2f} %")


def predict(
    paths: Sequence[str],
    model: str | None = None,
    pretrained: bool = False,
    topk: int = 5,
    batch_size: int = 32,
    device: str | None = None,
    json_file: str | None = None,
    csv_file: str | None = None,
    options: Sequence[str] | None = None,
    out: str | None = None,
    score_threshold: float = 0.3,
    checkpoint: str | None = None,
) -> int:
    """Answer for images and volumes as the task of a config, or of a model's name, does it.

    Args:
        paths: Images and folders; without ``model`` the config and the checkpoint come first.
        model: A timm model's name.
        pretrained: Load the model's published weights.
        topk: How many classes to name per image.
        batch_size: Images per forward pass.
        device: Where to run; None: a GPU if there is one.
        json_file: A file for answers as numbers.
        csv_file: A file for answers that are a table.
        options: ``KEY=VALUE`` words laid over the config.
        out: A folder for answers that are files: drawings or labels.
        score_threshold: Objects below are left out.
        checkpoint: A file with the weights of ``model``, instead of the published ones.

    Returns:
        0, or 1 when an image could not be read; the others are answered all the same.

    Raises:
        UserError: The model, config, checkpoint or a folder cannot be used.
    """
    json_file, csv_file, out = (path and os.path.expanduser(path) for path in (json_file, csv_file, out))
    for file in filter(None, (json_file, csv_file)):
        require_writable(file)
    if out:
        require_writable(out, folder=True)
    wanted = Wanted(device, out, topk, batch_size, score_threshold, json_file, csv_file)
    if model is not None:
        return task_of_names().predict(NamedModel(model, pretrained, checkpoint), paths, wanted)
    cfg = load_config(paths[0], parse_options(options))
    return task_of(cfg).predict(Run(cfg, paths[1]), paths[2:], wanted)


__all__ = ["UserError", "check", "parse_options", "predict", "test", "train"]
