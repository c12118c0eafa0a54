"""`vssm fscil`: the later sessions of a trained base session, from its config."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch.utils.data import Subset

from .. import _progress
from .._cli import say
from .._files import require_writable, whole_file, write_atomically
from .._tasks import task_of
from ..engine.config import ConfigError, check_options, explain_config_mistakes, load_config
from ..engine.models import build_trained, require_checkpoint
from ..engine.run import parse_options
from ..published import RUNS
from .classifier import IncrementalClassifier
from .data import SessionClasses, labels_of
from .protocol import Recipe, look_at, run_sessions
from .report import plot_outcomes, summary, table

__all__ = ["fscil"]


def fscil(
    config: str,
    checkpoint: str | os.PathLike,
    work_dir: str | None = None,
    seeds: Sequence[int] = (0,),
    device: str | None = None,
    options: Sequence[str] | None = None,
) -> dict:
    """Learn the later sessions, once for each seed; print a table, and write ``sessions.json`` and ``sessions.png``.

    The model after the last session is ``sessions_seed<seed>.pth``.

    Args:
        config: Path of a ``.py`` config with ``incremental``, arguments of :class:`~vssm.fewshot.protocol.Recipe`.
        checkpoint: Of the base session.
        work_dir: Folder for what is written; None: the config's, else ``work_dirs/<name of the config>``.
        seeds: Of the shots that are drawn, and of training.
        device: Where to run; None: a GPU if there is one.
        options: ``KEY=VALUE`` words laid over the config.

    Returns:
        What is in ``sessions.json``.

    Raises:
        UserError: The config, the checkpoint or the data cannot be used.
    """
    cfg = load_config(config, parse_options(options))
    task_of(cfg).load()
    if "incremental" not in cfg:
        raise ConfigError(f"Config '{config}' has no 'incremental', which says how the later sessions are learnt.")
    check_options(Recipe.__init__, cfg.incremental, "incremental")
    recipe = Recipe(**cfg.incremental)
    if len(set(seeds)) < len(seeds) or min(seeds, default=-1) < 0:
        raise ConfigError(f"--seeds takes different numbers of 0 and more, not {' '.join(map(str, seeds)) or 'none'}.")
    require_checkpoint(checkpoint)
    folder = Path(work_dir or cfg.get("work_dir") or Path("work_dirs") / Path(config).stem).expanduser()
    require_writable(folder, folder=True)

    model, stored = build_trained(cfg, checkpoint)
    if not isinstance(model, IncrementalClassifier) or model.model.projector.new is not None:
        raise ConfigError("The model has to be an IncrementalClassifier after the base session, without 'incremental'.")
    train, test = _data(cfg, model)
    split = train.split
    net = model.model.eval().to(device or get_device())
    base = Subset(train, [i for i, label in enumerate(train.labels) if label < split.sizes[0]])
    workers = cfg.test_dataloader.get("num_workers", 0)
    kept = look_at(net, base, test, workers, _progress.track)
    labels = labels_of(train.source)
    outcomes = []
    for seed in seeds:
        outcome = run_sessions(net, kept, train.source, labels, split, recipe, seed, _progress.track)
        model.model = outcome.net
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        meta = {"dataset_meta": {"classes": list(test.metainfo["classes"])}, "base_session": str(checkpoint)}
        with whole_file(folder / f"sessions_seed{seed}.pth") as part:
            torch.save({"state_dict": weights, "meta": meta}, part)
        outcome.net = None
        outcomes.append(outcome)
    published = _published(config)
    result = {
        "config": str(config),
        "checkpoint": str(checkpoint),
        "recipe": dataclasses.asdict(recipe),
        "sizes": split.sizes,
        "shots": "listed" if split.listed else split.shots,
        **({"published": published} if published else {}),
        **summary(outcomes),
    }
    write_atomically(folder / "sessions.json", (json.dumps(result, indent=1) + "\n").encode())
    picture = plot_outcomes(outcomes, folder / "sessions.png", published)
    say(table(outcomes, published))
    say(f"Written: {folder / 'sessions.json'}, {picture}, {folder / f'sessions_seed{seeds[0]}.pth'}")
    return result


def _data(cfg: Config, model: IncrementalClassifier) -> tuple[SessionClasses, SessionClasses]:
    """All training images and all test images of all sessions, both with the test images' transform."""
    sections = [cfg.train_dataloader.dataset, cfg.test_dataloader.dataset]
    for section, key in zip(sections, ("train_dataloader", "test_dataloader"), strict=True):
        if section.get("type") != "SessionClasses":
            raise ConfigError(f"{key}.dataset has to be a SessionClasses, not a {section.get('type')}.")
    train, test = (section.to_dict() for section in sections)
    train["dataset"]["transform"] = test["dataset"].get("transform")
    with explain_config_mistakes():
        of_train, of_test = (SessionClasses(**{**_without_type(part), "session": None}) for part in (train, test))
    sizes, count = of_train.split.sizes, model.model.head.etf_vec.shape[1]
    if sizes[0] != model.base_classes or sum(sizes) > count or of_test.split.order != of_train.split.order:
        raise ConfigError(
            f"The data have {sizes[0]} base classes of {sum(sizes)}, but the model has {model.base_classes} of {count}."
        )
    return of_train, of_test


def _without_type(section: dict) -> dict:
    return {key: value for key, value in section.items() if key != "type"}


def _published(config: str) -> dict[str, str]:
    """The authors' accuracy by session, where the config is of one of their data sets."""
    run = next((run for path, run in RUNS.items() if Path(path).stem == Path(config).stem), None)
    return {name.removeprefix("Session "): value for name, value in run.metrics.items()} if run else {}
