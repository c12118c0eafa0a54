"""Learning curves from the logs of training runs of any task."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from .._errors import UserError, did_you_mean
from .._tasks import tasks
from .canvas import new_figure, plain_axes, save_figure
from .palette import INK, SERIES

__all__ = ["plot_learning_curves", "read_log"]

# Keys that mmengine writes next to the metrics.
_CLOCKS = {"step", "epoch", "iter", "time", "data_time", "memory"}

Records = list[dict[str, float]]


def read_log(work_dir: str | os.PathLike) -> tuple[Records, Records]:
    """Read the log of a run, resumed or not, as if it had never been interrupted.

    Args:
        work_dir: The run's folder, with mmengine's ``<time>/vis_data/scalars.json`` inside.

    Returns:
        The training records (with ``iter``, ``loss``, ``lr``, and ``epoch`` in a run that counts epochs) and the
        evaluation records (with ``epoch`` in such a run, else ``iter``, and the metrics).

    Raises:
        UserError: There is no log.
    """
    files = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    train: Records = []
    evaluations: Records = []
    for file in files:
        records = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                # The last line of a killed run can be half a record.
                continue
        steps = [record for record in records if "loss" in record]
        # An evaluation's step is an epoch where the run counts epochs.
        unit = "epoch" if "epoch" in (steps or train or [{"epoch": 0}])[0] else "iter"
        if steps:
            # A resumed run repeats what came after its checkpoint; a run started anew repeats everything.
            train = [record for record in train if record["iter"] < steps[0]["iter"]]
            evaluations = [record for record in evaluations if record[unit] < steps[0][unit]]
        train += steps
        evaluations += [
            {**record, unit: record["step"]}
            for record in records
            if "step" in record and "loss" not in record and set(record) - _CLOCKS
        ]
    if not train and not evaluations:
        raise UserError(f"'{work_dir}' holds no log of a training run.")
    return train, evaluations


def metrics_of(evaluations: Records) -> list[str]:
    """Names of the metrics in evaluation records, in the order in which they appear."""
    return list(dict.fromkeys(key for record in evaluations for key in record if key not in _CLOCKS))


def plot_learning_curves(
    work_dirs: Sequence[str | os.PathLike], path: str | os.PathLike, metrics: Sequence[str] | None = None
) -> Path:
    """Draw training loss and held-out metrics of one or more runs, over epochs or iterations.

    Args:
        work_dirs: The runs' folders.
        path: The picture to write; its suffix chooses the format.
        metrics: Names of metrics as the logs have them; None: those that runs of this kind are judged by, and the first
            metric of a run that has none of these.

    Returns:
        The path.

    Raises:
        UserError: A folder holds no log, or no run has such a metric.
    """
    logs = {_label(work_dir, work_dirs): read_log(work_dir) for work_dir in work_dirs}
    known = list(dict.fromkeys(name for _, evaluations in logs.values() for name in metrics_of(evaluations)))
    for name in metrics or ():
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"No run logged '{name}'{near}; there are {', '.join(known) or 'none'}.")
    headlines = {name: title for task in tasks() for name, title in task.headlines.items()}
    if metrics is None:
        metrics = [name for name in headlines if name in known] or known[:1]
    figure = new_figure(7.0, 2.9)
    panels = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
    colours = [SERIES[number % len(SERIES)] for number in range(len(logs))]
    units = set()
    for (label, (train, evaluations)), colour in zip(logs.items(), colours, strict=True):
        unit = "epoch" if "epoch" in (train or evaluations)[0] else "iteration"
        units.add(unit)
        last = train[-1] if train else None
        # Iterations as fractions of an epoch, so that all panels share their scale.
        per_unit = last["iter"] / last["epoch"] if last and unit == "epoch" else 1
        times = [record["iter"] / per_unit for record in train]
        panels[0].plot(times, [record["loss"] for record in train], color=colour, linewidth=1.8, label=label)
        for axes, name in zip(panels[1:], metrics, strict=True):
            scored = [record for record in evaluations if math.isfinite(record.get(name, math.nan))]
            if not scored:
                continue
            times = [record["epoch" if unit == "epoch" else "iter"] for record in scored]
            scores = [record[name] for record in scored]
            axes.plot(times, scores, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)
            axes.annotate(
                f"{scores[-1]:.4g}",
                (times[-1], scores[-1]),
                textcoords="offset points",
                xytext=(0, -15),
                ha="right",
                fontsize=9.5,
                fontweight="bold",
                color=colour,
            )
    from matplotlib.ticker import MaxNLocator

    for axes, title in zip(panels, ["Training loss", *(headlines.get(name, name) for name in metrics)], strict=True):
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        axes.set_xlabel(" or ".join(sorted(units)), fontsize=8.5, color=INK)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_axes(axes)
    panels[0].set_ylim(bottom=min(0, panels[0].get_ylim()[0]))
    if len(logs) > 1:
        panels[0].legend(fontsize=8.5, frameon=False)
    return save_figure(figure, path)


def _label(work_dir: str | os.PathLike, work_dirs: Sequence[str | os.PathLike]) -> str:
    """The folder's name, or its path where two have the same name."""
    names = [Path(other).name for other in work_dirs]
    return Path(work_dir).name if names.count(Path(work_dir).name) == 1 else str(work_dir)
