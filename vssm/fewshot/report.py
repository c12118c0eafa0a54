"""Accuracy by session, as text, as JSON and as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..viz.canvas import new_figure, plain_axes, save_figure
from ..viz.palette import BASELINE, INK, SERIES
from .protocol import Outcome, Score

__all__ = ["plot_outcomes", "summary", "table"]

_GROUPS = ("all", "base", "old", "new")
_OURS = "sessions"


def _values(outcomes: Sequence[Outcome], method: str, session: int, group: str) -> list[float]:
    found = [getattr(outcome.scores[method][session], group) for outcome in outcomes]
    return [value for value in found if value is not None]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def table(outcomes: Sequence[Outcome], published: Mapping[str, str] | None = None) -> str:
    """Lay the accuracies out, mean and sample deviation where there are several seeds.

    Args:
        outcomes: One a seed.
        published: The authors' accuracy over all classes, by the number of the session.
    """
    first: list[Score] = outcomes[0].scores[_OURS]
    baselines = [method for method in outcomes[0].scores if method != _OURS]
    rows = [["session", "classes", *_GROUPS, *baselines, *(["published"] if published else [])]]
    for number, one in enumerate(first):
        row = [str(one.session), str(one.classes)]
        row += [_cell(_values(outcomes, _OURS, number, group)) for group in _GROUPS]
        row += [_cell(_values(outcomes, method, number, "all")) for method in baselines]
        rows.append(row + ([published.get(str(number), "-")] if published else []))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def summary(outcomes: Sequence[Outcome]) -> dict:
    """Return the accuracies of every seed, and of each method over all classes the mean by session."""
    methods = outcomes[0].scores
    sessions = range(len(methods[_OURS]))
    mean = {name: [statistics.mean(_values(outcomes, name, i, "all")) for i in sessions] for name in methods}
    return {"mean_all": mean, "seeds": [outcome.as_dict() for outcome in outcomes]}


def plot_outcomes(outcomes: Sequence[Outcome], path: Path, published: Mapping[str, str] | None = None) -> Path:
    """Draw the accuracies over the sessions: over all classes beside the baselines, and ours for old and new ones.

    Args:
        outcomes: One a seed; the band is from the worst to the best.
        path: The picture to write.
        published: See `table`.

    Returns:
        The path.
    """
    figure = new_figure(7.6, 3.2)
    panels = figure.subplots(1, 2, sharey=True)
    methods = outcomes[0].scores
    styles = dict(zip(methods, [(SERIES[0], "o", "-"), (BASELINE, "s", "--"), (SERIES[2], "^", "--")], strict=True))

    def line(axes, method: str, group: str, label: str, colour: str, marker: str, dash: str) -> None:
        points = [(one.session, _values(outcomes, method, i, group)) for i, one in enumerate(methods[method])]
        points = [(session, values) for session, values in points if values]
        places = [session for session, _ in points]
        means = [statistics.mean(values) for _, values in points]
        axes.plot(places, means, dash, color=colour, marker=marker, markersize=4, linewidth=1.8, label=label)
        if len(outcomes) > 1:
            low, high = [min(values) for _, values in points], [max(values) for _, values in points]
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)

    for method, (colour, marker, dash) in styles.items():
        line(panels[0], method, "all", "projector, all classes" if method == _OURS else method, colour, marker, dash)
    if published:
        places = list(map(int, published))
        panels[0].plot(places, list(map(float, published.values())), ":", color=INK, label="published")
    groups = zip(("base", "old", "new"), SERIES[:3], "os^", strict=True)
    for group, colour, marker in groups:
        line(panels[1], _OURS, group, f"projector, {group} classes", colour, marker, "-")
    for axes, title in zip(panels, ("Top-1 over all classes known (%)", "The same, by kind of class"), strict=True):
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        axes.set_xlabel("session", fontsize=8.5, color=INK)
        axes.set_xticks([one.session for one in methods[_OURS]])
        axes.legend(fontsize=8, frameon=False)
        plain_axes(axes)
    return save_figure(figure, path)
