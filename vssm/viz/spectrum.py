"""How long the states of a network last: the decays exp(dt A) of its scans, as half-lives."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .._errors import UserError
from .canvas import new_figure, plain_axes, save_figure
from .palette import BASELINE, INK, RIGHT

__all__ = ["half_lives_by_stage", "plot_half_lives"]

# More groups than this, such as the blocks of a plain net, are joined to quarters.
_MOST_GROUPS = 6


@torch.no_grad()
def half_lives_by_stage(network: nn.Module) -> dict[str, Tensor]:
    """Give the half-lives of all states of a network, in pixels of the map that is scanned.

    A mixer says them by its method `half_lives`. The step size is that at an input of zeros, softplus of its bias: it
    is what the parameters alone say, and an image lengthens and shortens it.

    Args:
        network: Any.

    Returns:
        For each stage, or each quarter of the blocks of a plain net, the half-lives (states,), float32.

    Raises:
        UserError: No state of the network decays.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        given = getattr(module, "half_lives", None)
        if callable(given):
            found = re.search(r"(?:^|\.)(stages|layers|blocks)\.(\d+)", name)
            group = f"{found[1][:-1]} {int(found[2]) + 1}" if found else name.split(".")[0]
            groups.setdefault(group, []).append(given().flatten().float().cpu())
    if not groups:
        raise UserError(f"{type(network).__name__} has no state that decays along a scan, so there are no half-lives.")
    names = list(groups)
    if len(names) > _MOST_GROUPS:
        ends = [round(len(names) * part / 4) for part in range(5)]
        parts = [names[a:b] for a, b in zip(ends, ends[1:], strict=False)]
        joined = {f"{part[0]} to {part[-1].split()[-1]}": part for part in parts}
    else:
        joined = {name: [name] for name in names}
    return {title: torch.cat([x for name in part for x in groups[name]]) for title, part in joined.items()}


def plot_half_lives(
    models: Mapping[str, Sequence[Mapping[str, Tensor] | None]], path: str | os.PathLike, bins: int = 40
) -> Path:
    """Draw how often each half-life occurs: a row for each model, a panel for each of its stages.

    Args:
        models: By name the half-lives by stage, see `half_lives_by_stage`: the learned ones, or None, and the initial
            ones.
        path: The picture to write; its suffix chooses the format.
        bins: Bars over the range of each model.

    Returns:
        The path.
    """
    columns = max(len(initial or learned or ()) for learned, initial in models.values())
    figure = new_figure(max(7.0, 1.75 * columns), 1.9 * len(models) + 0.4)
    panels = figure.subplots(len(models), columns, squeeze=False)
    for row, (name, (learned, initial)) in zip(panels, models.items(), strict=True):
        kinds = [
            (kind, stages, colour)
            for kind, stages, colour in (("initial", initial, BASELINE), ("learned", learned, RIGHT))
            if stages is not None
        ]
        every = torch.cat([x for _, stages, _ in kinds for x in stages.values()]).log10()
        low, high = every.min().item() - 0.05, every.max().item() + 0.05
        edges = torch.logspace(low, high, bins + 1).tolist()
        for axes in row[len(kinds[0][1]) :]:
            axes.set_axis_off()
        for kind, stages, colour in kinds:
            for axes, (stage, values) in zip(row, stages.items(), strict=False):
                share = [1 / len(values)] * len(values)
                filled = kind == "learned"
                axes.hist(
                    values.numpy(),
                    edges,
                    weights=share,
                    color=colour,
                    histtype="stepfilled" if filled else "step",
                    alpha=0.75 if filled else 1.0,
                    linewidth=1.4,
                    zorder=2 if filled else 3,
                    label=f"{kind}, median {values.median().item():.3g}",
                )
                axes.set_xscale("log")
                axes.set_yticks([])
                title = f"{name}\n{stage}" if len(models) > 1 and axes is row[0] else stage
                axes.set_title(title, fontsize=9, color=INK, loc="left")
        for axes in row[: len(kinds[0][1])]:
            plain_axes(axes)
            axes.tick_params(labelsize=7.5)
            axes.legend(fontsize=6.5, frameon=False, loc="upper left", handlelength=1.0, borderaxespad=0.1)
            axes.set_ylim(top=axes.get_ylim()[1] * 1.45)  # room for the legend
    for axes in panels[-1]:
        axes.set_xlabel("half-life, pixels", fontsize=8, color=INK)
    return save_figure(figure, path)
