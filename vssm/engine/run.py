"""What the tools do: train, evaluate, predict. Kept here so that the scripts only parse arguments."""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process, master_only
from mmengine.registry import RUNNERS

from .._errors import UserError
from .checkpoint import find_resumable, to_plain, write_atomically
from .config import ConfigError, explain_config_mistakes, load_config, use_amp, use_tta
from .predict import Prediction, Predictor, find_images
from .runner import Runner

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
    cfg.work_dir = work_dir or cfg.get("work_dir") or str(Path("work_dirs") / Path(config).stem)
    cfg.launcher = launcher
    return cfg


def _in_processes(job: Callable[[], T]) -> T:
    """Run a job that may join other processes, and leave them properly whatever happens."""
    try:
        with explain_config_mistakes():
            return job()
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
    """Train from a config; the last lines printed are the metrics, for a classifier the held-out top-1.

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
    notes: list[str] = []
    if resume == "auto":
        path, notes = find_resumable(cfg.work_dir)
        cfg.resume, cfg.load_from = path is not None, None if path is None else str(path)
        notes.append(
            f"Resuming from {path}." if path else f"No readable checkpoint in {cfg.work_dir}: starting from scratch."
        )
    elif resume:
        cfg.resume, cfg.load_from = True, resume

    def job() -> dict[str, float]:
        if cfg.get("runner_type") == "FlexibleRunner":
            # mmengine's runner for sharded training; its evaluations are in the log.
            RUNNERS.build(cfg).train()
            return {}
        runner = Runner.from_cfg(cfg)
        for note in notes:
            runner.logger.info(note)
        runner.train()
        metrics = runner.final_metrics()
        _report(metrics)
        return metrics

    return _in_processes(job)


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
    if cfg.get("test_dataloader") is None:
        raise ConfigError(f"Config '{config}' has no test_dataloader, there is nothing to test on.")
    if checkpoint is None and not cfg.model.get("model", {}).get("pretrained"):
        raise ConfigError(
            "A CHECKPOINT is needed; for the published weights say --cfg-options model.model.pretrained=True."
        )
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
        _say(line)
    # Top-1 last, where it is found without looking.
    for k, value in reversed(ranks):
        _say(f"held-out top-{k}: {value:.2f} %")


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
) -> int:
    """Classify images and print a table; draw what a detector or segmentor finds; label volumes with a medical run.

    Args:
        paths: Images and folders; without ``model`` the config and the checkpoint come first.
        model: A timm model's name.
        pretrained: Load the model's published weights.
        topk: How many classes to name per image.
        batch_size: Images per forward pass.
        device: Where to run; None: a GPU if there is one.
        json_file: A file for the answers.
        csv_file: A file for the answers.
        options: ``KEY=VALUE`` words laid over the config.
        out: A folder for the drawings of a detector or segmentor, or for a medical run's labels.
        score_threshold: A detector's objects below are not drawn.

    Returns:
        0, or 1 when an image could not be read; the others are answered all the same.

    Raises:
        UserError: The model, config, checkpoint or a folder cannot be used.
    """
    if model is None:
        cfg = load_config(paths[0], parse_options(options))
        if cfg.get("model", {}).get("type") == "UNetSegmentor":
            if out is None or json_file or csv_file:
                raise ConfigError("Medical runs answer with labels as files: give --out DIR, no --json or --csv.")
            return _label_medical(cfg, paths[1], paths[2:], device, out)
        files = find_images(paths[2:])
        if cfg.get("default_scope") in ("mmdet", "mmseg"):
            if out is None or json_file or csv_file:
                raise ConfigError("Detectors and segmentors answer with drawings: give --out DIR, no --json or --csv.")
            return _predict_dense(cfg, paths[1], files, device, out, score_threshold)
        if out is not None:
            raise ConfigError("--out DIR is for detectors, segmentors and medical runs; classes go to --json or --csv.")
        predictor = Predictor.from_run(cfg, paths[1], device)
    else:
        files = find_images(paths)
        predictor = Predictor.from_name(model, pretrained, device)
        if not pretrained:
            _say(f"Warning: {model} has random weights, because --pretrained was not given.", error=True)

    width = max(len("image"), *(len(file) for file in files))
    _say(f"{'image':<{width}}  probability  class")
    answers: list[Prediction] = []
    for answer in predictor(files, topk, batch_size):
        answers.append(answer)
        if answer.error:
            _say(answer.error, error=True)
        for rank, (name, probability) in enumerate(zip(answer.classes, answer.probabilities, strict=True)):
            _say(f"{answer.image if rank == 0 else '':<{width}}  {probability:>10.2%}   {name}")
    if json_file:
        write_atomically(json_file, (json.dumps([asdict(answer) for answer in answers], indent=2) + "\n").encode())
    if csv_file:
        _write_csv(csv_file, answers)
    return 1 if any(answer.error for answer in answers) else 0


def _label_medical(cfg: Config, checkpoint: str, paths: Sequence[str], device: str | None, out: str) -> int:
    from ..medical.predict import label_files

    for path in label_files(cfg, checkpoint, paths, out, device):
        _say(str(path))
    return 0


def _predict_dense(
    cfg: Config, checkpoint: str, files: Sequence[str], device: str | None, out: str, score_threshold: float
) -> int:
    from ..mm import DensePredictor

    failed = False
    for answer in DensePredictor(cfg, checkpoint, device, score_threshold)(files, out):
        if answer.error:
            failed = True
            _say(answer.error, error=True)
        else:
            found = ", ".join(f"{name} {value:.1%}" for name, value in answer.found[:10]) or "nothing"
            _say(f"{answer.image} -> {answer.drawing}: {found}")
    return 1 if failed else 0


def _write_csv(path: str, answers: Sequence[Prediction]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "rank", "class", "probability", "error"])
        for answer in answers:
            if answer.error:
                writer.writerow([answer.image, "", "", "", answer.error])
            for rank, (name, probability) in enumerate(zip(answer.classes, answer.probabilities, strict=True), 1):
                writer.writerow([answer.image, rank, name, probability, ""])


def _say(line: str, error: bool = False) -> None:
    import sys

    (sys.stderr if error else sys.stdout).write(line + "\n")
    (sys.stderr if error else sys.stdout).flush()


__all__ = ["UserError", "parse_options", "predict", "test", "train"]
