"""Pictures of what `vssm.profiling.benchmark` measured."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.models import get_pretrained_cfg

from .._errors import UserError
from .._files import write_beside
from ..published import published
from .canvas import FAINT, INK, new_figure, plain_axes

__all__ = ["plot_accuracy", "plot_costs", "plot_resolution"]

# Okabe and Ito's colours without the yellow, which is faint on white: apart for all common kinds of colour blindness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
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
    """Draw the published top-1 accuracy against images per second, a panel a mode and batch, and against GFLOPs.

    Models of a family that differ in size are joined by a line. Left out are models without a published accuracy (see
    `vssm.published`; timm's are among these), and rows of another input size than the accuracy is for. Where a model
    was measured with several scan backends the first counts.

    Args:
        rows: As `vssm.profiling.benchmark` yields them and `vssm.profiling.read_results` reads them.
        path: The picture to write; its suffix chooses the format.

    Returns:
        matplotlib's figure.

    Raises:
        UserError: No row can be drawn.
    """
    panels: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if "failed" not in row and _top1(row) is not None:
            panels.setdefault((row["mode"], row["batch"]), {}).setdefault(row["model"], row)
    if not panels:
        raise UserError("Nothing to draw: no model here has a published accuracy at the size that it was measured at.")
    every = {name: row for models in panels.values() for name, row in models.items()}
    families = sorted({_family(name) for name in every})
    groups: dict[str, list[str]] = {}
    for name in sorted(every, key=lambda name: every[name]["gflops"]):
        groups.setdefault(_SIZE.sub("", name), []).append(name)
    series = sorted(groups, key=lambda group: (_family(groups[group][0]), group))

    figure = new_figure(4.3 * (len(panels) + 1) + 0.4, 5.6)
    axes = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
    drawn = [(models, lambda row: row["images_per_s"]) for models in panels.values()]
    drawn.append((every, lambda row: row["gflops"]))
    for ax, (models, cost) in zip(axes, drawn, strict=True):
        for i, group in enumerate(series):
            points = [(cost(models[n]), _top1(models[n]), n) for n in groups[group] if n in models]
            colour = COLOURS[families.index(_family(groups[group][0])) % len(COLOURS)]
            style = dict(color=colour, marker=MARKERS[i % len(MARKERS)], label=group)
            _line(ax, [x for x, *_ in points], [y for _, y, _ in points], style)
            for x, y, name in points:
                ax.annotate(
                    _size_letter(name),
                    (x, y),
                    textcoords="offset points",
                    # Accuracy falls with speed and rises with FLOPs, so the name stands next to the line.
                    xytext=(5, -9) if ax is axes[-1] else (5, 3),
                    fontsize=6.5,
                    color=colour,
                )
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis)
        plain_axes(ax)
        ax.grid(True, axis="x", color=FAINT, linewidth=0.5)
    for ax, (mode, batch) in zip(axes, panels, strict=False):
        ax.set_xlabel(f"{_MODES[mode]} per second, batch {batch}", fontsize=9.5, color=INK)
    axes[-1].set_xlabel("GFLOPs, as the papers count", fontsize=9.5, color=INK)
    axes[0].set_ylabel("ImageNet-1k top-1 (%), published", fontsize=9.5, color=INK)
    _legend(figure, axes[-1])
    note = "top-1 as published by the authors, not measured here"
    _title(figure, "Published accuracy against measured speed and FLOPs", rows[0], note)
    write_beside(path, lambda part: figure.savefig(part))
    return figure


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
    figure = new_figure(5.4 * len(costs) + 0.4, 5.0)
    axes = figure.subplots(1, len(costs), squeeze=False)[0]
    sides = sorted({row["input"][-1] for row in done})
    for ax, (label, cost) in zip(axes, costs.items(), strict=True):
        for i, (name, its) in enumerate(lines.items()):
            points = sorted((row["input"][-1], cost(row)) for row in its if cost(row))
            style = dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=name)
            _line(ax, [side for side, _ in points], [value for _, value in points], style)
        ax.set_xscale("log")
        ax.set_xticks(sides, [str(side) for side in sides])
        ax.minorticks_off()
        ax.set_yscale("log")
        _plain_ticks(ax.yaxis)
        plain_axes(ax)
        ax.set_xlabel("side of the image, pixels", fontsize=9.5, color=INK)
        ax.set_ylabel(label, fontsize=9.5, color=INK)
    _legend(figure, axes[0])
    _title(figure, "Speed and memory against resolution" if len(costs) > 1 else "Speed against resolution", done[0])
    write_beside(path, lambda part: figure.savefig(part))
    return figure


_MODES = {"infer": "images", "train": "training images"}


def _of_one(rows: Sequence[Row], key: str) -> list[Row]:
    """Rows that `key` may tell apart: of a scan backend only the rows that have one."""
    return [row for row in rows if key != "scan backend" or row.get(key) is not None]


def _family(name: str) -> str:
    """The file that defines a model, such as "vmamba"."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def _size_letter(name: str) -> str:
    """Such as "T" of a tiny model, and "M2" where the name has "m2"."""
    size = (_SIZE.search(name) or [None, None])[1] or ""
    return size.upper() if size[1:].isdigit() else size[:1].upper()


def _top1(row: Row) -> float | None:
    """The published accuracy; None where there is none for the size that was measured."""
    known = published(row["model"]) if timm.is_model(row["model"]) else None
    if known is None or list(get_pretrained_cfg(row["model"]).input_size) != list(row["input"]):
        return None
    return float(known.top1)


def _line(ax: Any, x: Sequence[float], y: Sequence[float], style: dict[str, Any]) -> None:
    ax.plot(x, y, linewidth=1.5, markersize=7, markeredgecolor="white", markeredgewidth=0.6, **style)


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
    figure.suptitle(title, fontsize=12, color=INK)
    figure.axes[0].set_title(", ".join(word for word in words if word), fontsize=8.5, color=INK, loc="left")
