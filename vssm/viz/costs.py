"""Pictures of what `vssm.profiling.benchmark` measured."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.models import get_pretrained_cfg

from .._errors import UserError
from .._files import write_beside
from ..models import family_of
from ..published import BASELINES, published
from .canvas import new_figure, plain_axes
from .palette import BASELINE, FAINT, INK, SERIES, family_colours

__all__ = ["plot_accuracy", "plot_costs", "plot_resolution"]

MARKERS = "osD^vX<>ph"

# The part of a name that says how large a model is.
_SIZE = re.compile(r"_(pico|nano|micro|tiny|small|base|large|m\d)(?=_|$)|l\d+$")

Row = Mapping[str, Any]


def plot_costs(rows: Sequence[Row], path: str | os.PathLike) -> Any:
    """Draw against resolution where a model was measured at several sizes, else accuracy against throughput.

    Args and errors as of `plot_accuracy` and `plot_resolution`.
    """
    sizes: dict[str, set] = {}
    for row in rows:
        sizes.setdefault(row["model"], set()).add(tuple(row["input"]))
    return (plot_resolution if any(len(seen) > 1 for seen in sizes.values()) else plot_accuracy)(rows, path)


def plot_accuracy(rows: Sequence[Row], path: str | os.PathLike) -> Any:
    """Draw the published top-1 accuracy against images per second, a panel a mode, and against GFLOPs.

    Models of a family that differ in size are joined by a line, whose name stands at its end; those of
    `vssm.published.BASELINES` are grey. Left out are models without a published accuracy, and rows of another input
    size than the accuracy is for. Of a mode that batch is drawn that most models were measured with, the larger of two.
    Where a model was measured with several scan backends the first counts.

    Args:
        rows: As `vssm.profiling.benchmark` yields them and `vssm.profiling.read_results` reads them.
        path: The picture to write; its suffix chooses the format.

    Returns:
        matplotlib's figure.

    Raises:
        UserError: No row can be drawn.
    """
    runs: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if "failed" not in row and _top1(row) is not None:
            runs.setdefault((row["mode"], row["batch"]), {}).setdefault(row["model"], row)
    if not any(family_of(model) for models in runs.values() for model in models):
        raise UserError("Nothing to draw: no model here has a published accuracy at the size that it was measured at.")
    fullest: dict[str, int] = {}
    for mode, batch in sorted(runs, key=lambda run: (len(runs[run]), run[1])):
        fullest[mode] = batch
    every = {name: row for models in runs.values() for name, row in models.items()}
    groups: dict[str, list[str]] = {}
    for name in sorted(every, key=lambda name: every[name]["gflops"]):
        groups.setdefault(_group(name), []).append(name)

    figure = new_figure(7.0, 4.3)
    axes = figure.subplots(1, len(fullest) + 1, sharey=True, squeeze=False)[0]
    drawn = [(runs[run], lambda row: row["images_per_s"]) for run in fullest.items()]
    drawn.append((every, lambda row: row["gflops"]))
    styles = _styles(groups)
    for ax, (models, cost) in zip(axes, drawn, strict=True):
        for group, style in styles.items():
            points = [(cost(models[n]), _top1(models[n])) for n in groups[group] if n in models]
            _line(ax, [x for x, _ in points], [y for _, y in points], style)
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis)
        plain_axes(ax)
        ax.tick_params(labelsize=8)
        ax.grid(True, axis="x", color=FAINT, linewidth=0.5)
    for ax, (mode, batch) in zip(axes, fullest.items(), strict=False):
        ax.set_xlabel(f"{_MODES[mode]} per second, batches of {batch}, measured", fontsize=8.5, color=INK)
    axes[-1].set_xlabel("GFLOPs, as the papers count", fontsize=8.5, color=INK)
    axes[0].set_ylabel("ImageNet-1k top-1, %, published", fontsize=8.5, color=INK)
    _name_lines(axes[-1], {g: (every[n[-1]]["gflops"], _top1(every[n[-1]])) for g, n in groups.items()}, styles)
    _title(figure, "Published accuracy against measured speed and FLOPs", rows[0], "top-1 not measured here")
    write_beside(path, lambda part: figure.savefig(part))
    return figure


def _group(name: str) -> str:
    """The line that a model is on: its family, with what else its name says but the size."""
    if name in BASELINES:
        return BASELINES[name].family
    family = family_of(name)
    more = _SIZE.sub("", name).replace("vssm_", "").removeprefix(family.name).strip("_")
    return f"{family.title} {more}".strip()


def _styles(groups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Colour and mark of each line: the family's colour, and another mark for each of its lines."""
    colours, seen = family_colours(), []
    styles = {}
    # What lies on the others comes last.
    for group, names in sorted(groups.items(), key=lambda item: item[1][0] not in BASELINES):
        family = family_of(names[0])
        colour = colours[family.name] if family else BASELINE
        styles[group] = dict(color=colour, marker=MARKERS[seen.count(colour) % len(MARKERS)], label=group)
        seen.append(colour)
    return styles


def _name_lines(ax: Any, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the names of lines to the right of a panel, in the order of their ends and apart from each other."""
    low, high = ax.get_ylim()
    gap = (high - low) / 21
    names = sorted(ends, key=lambda name: ends[name][1], reverse=True)
    place = high
    for i, name in enumerate(names):
        x, y = ends[name]
        # As high as its end, unless those above or those still to come need the room.
        place = max(min(place, y), low + gap * (len(names) - 1 - i))
        ax.annotate(
            name,
            (x, y),
            xytext=(1.05, place),
            textcoords=("axes fraction", "data"),
            fontsize=8,
            va="center",
            color=(colour := styles[name]["color"]),
            arrowprops=dict(arrowstyle="-", color=colour, linewidth=0.6, alpha=0.6, shrinkA=1, shrinkB=3),
            annotation_clip=False,
        )
        place -= gap


def plot_resolution(rows: Sequence[Row], path: str | os.PathLike) -> Any:
    """Draw images per second, and peak memory where it was measured, against the side of the images.

    A line a model; several, where it was measured with several batches, modes or scan backends. Sizes at which a model
    failed are missing from its line.

    Args:
        rows: As `vssm.profiling.benchmark` yields them and `vssm.profiling.read_results` reads them.
        path: The picture to write; its suffix chooses the format.

    Returns:
        matplotlib's figure.

    Raises:
        UserError: No row can be drawn.
    """
    done = [row for row in rows if "failed" not in row]
    if not done:
        raise UserError("Nothing to draw: no model could be measured.")
    telling = [
        key for key in ("mode", "batch", "scan backend") if len({row.get(key) for row in _of_one(done, key)}) > 1
    ]
    lines: dict[str, list[Row]] = {}
    for row in done:
        words = [
            f"batch {row[key]}" if key == "batch" else str(row[key]) for key in telling if row.get(key) is not None
        ]
        lines.setdefault(", ".join([row["model"], *words]), []).append(row)
    costs: dict[str, Callable[[Row], float | None]] = {"images per second": lambda row: row["images_per_s"]}
    if any(row.get("mebibytes") for row in done):
        costs["peak MiB of a call, beyond weights and images"] = lambda row: row.get("mebibytes")
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots(1, len(costs), squeeze=False)[0]
    sides = sorted({row["input"][-1] for row in done})
    for ax, (label, cost) in zip(axes, costs.items(), strict=True):
        for i, (name, its) in enumerate(lines.items()):
            points = sorted((row["input"][-1], cost(row)) for row in its if cost(row))
            style = dict(color=SERIES[i % len(SERIES)], marker=MARKERS[i % len(MARKERS)], label=name)
            _line(ax, [side for side, _ in points], [value for _, value in points], style)
        ax.set_xscale("log")
        ax.set_xticks(sides, [str(side) for side in sides])
        ax.minorticks_off()
        ax.set_yscale("log")
        _plain_ticks(ax.yaxis)
        plain_axes(ax)
        ax.set_xlabel("side of the image, pixels", fontsize=8.5, color=INK)
        ax.set_ylabel(label, fontsize=8.5, color=INK)
    _legend(figure, axes[0])
    _title(figure, "Speed and memory against resolution" if len(costs) > 1 else "Speed against resolution", done[0])
    write_beside(path, lambda part: figure.savefig(part))
    return figure


_MODES = {"infer": "images", "train": "training images"}


def _of_one(rows: Sequence[Row], key: str) -> list[Row]:
    """Rows that `key` may tell apart: of a scan backend only the rows that have one."""
    return [row for row in rows if key != "scan backend" or row.get(key) is not None]


def _top1(row: Row) -> float | None:
    """The published accuracy; None where there is none for the size that was measured."""
    name = row["model"]
    known = BASELINES.get(name) or (published(name) if timm.is_model(name) else None)
    if known is None or list(get_pretrained_cfg(row["model"]).input_size) != list(row["input"]):
        return None
    return float(known.top1)


def _line(ax: Any, x: Sequence[float], y: Sequence[float], style: dict[str, Any]) -> None:
    ax.plot(x, y, linewidth=1.5, markersize=6, markeredgecolor="white", markeredgewidth=0.6, **style)


def _plain_ticks(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten of a logarithmic axis."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _legend(figure: Any, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), fontsize=8.5, frameon=False)


def _title(figure: Any, title: str, row: Row, note: str = "") -> None:
    """The title, and below it what ran."""
    words = [row.get("gpu") or row.get("cpu") or row.get("device")]
    if "threads" in row:
        words.append(f"{row['threads']} thread{'s' * (str(row['threads']) != '1')}")
    words.append(row.get("dtype"))
    words.append("autocast" if row.get("autocast") else None)
    words.append(f"TF32 {row['TF32']}" if "TF32" in row else None)
    words.append("compiled" if row.get("compiled") else None)
    words.append("channels last" if row.get("layout") == "channels last" else None)
    words.append(note)
    about = ", ".join(word for word in words if word)
    figure.suptitle(f"{title}\n", fontsize=10, color=INK, x=0.01, ha="left")
    figure.text(0.01, 0.945, about, fontsize=8, color=INK, va="top")
