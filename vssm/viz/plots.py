"""The pictures themselves, drawn with matplotlib's object interface: no window system, no global state."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UserError
from .._optional import require

# Blue and orange stay apart for all common kinds of colour blindness; ink and grid are soft greys.
RIGHT, WRONG = "#1f6fb4", "#d9480f"
INK, FAINT = "#2b2f33", "#d5d9dd"


def _figure(width: float, height: float) -> Any:
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _plain_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


@torch.no_grad()
def plot_predictions(
    classifier: nn.Module, dataset: Any, path: str | os.PathLike, columns: int = 12, rows: int = 5, batch_size: int = 64
) -> float:
    """Draw held-out images with the model's answers: all that fit of the wrong ones, then right ones.

    Args:
        classifier: A :class:`~vssm.engine.TimmClassifier` in evaluation mode.
        dataset: Samples ``dict(inputs=(C, H, W), labels=int)`` with ``metainfo["classes"]``.
        path: The PNG to write.
        columns: Images per row.
        rows: Rows of images.
        batch_size: How many images go through the model at once.

    Returns:
        The share of right answers over the whole data set.
    """
    device = next(classifier.parameters()).device
    samples = [dataset[index] for index in range(len(dataset))]
    labels = torch.tensor([sample["labels"] for sample in samples])
    scores = torch.cat(
        [
            classifier(torch.stack([s["inputs"] for s in samples[i : i + batch_size]]).to(device), mode="tensor")
            .float()
            .softmax(dim=-1)
            .cpu()
            for i in range(0, len(samples), batch_size)
        ]
    )
    confidence, answers = scores.max(dim=-1)
    right = answers == labels
    wrong = (~right).nonzero().flatten().tolist()
    others = right.nonzero().flatten()
    # A fixed spread over the right ones, so that two runs show the same scans.
    room = max(columns * rows - len(wrong), 0)
    spread = others[torch.linspace(0, len(others) - 1, min(room, len(others))).long()].tolist() if room else []
    shown = (wrong + spread)[: columns * rows]

    classes = dataset.metainfo["classes"]
    figure = _figure(columns * 0.92, rows * 1.16 + 0.7)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, shown, strict=False):
        image = samples[index]["inputs"].float().mean(dim=0)
        colour = RIGHT if right[index] else WRONG
        axes.set_axis_on()
        axes.imshow(image, cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.2)
        answer = classes[answers[index]]
        text = f"{answer}  {confidence[index]:.0%}"
        if not right[index]:
            text = f"{answer}  {confidence[index]:.0%}, is {classes[labels[index]]}"
        axes.set_title(text, fontsize=8, color=colour, pad=3)
    share = right.float().mean().item()
    figure.suptitle(
        f"Held-out scans: {int(right.sum())} of {len(right)} right ({share:.1%})"
        + (f", {len(wrong)} wrong (first, in orange)." if wrong else "."),
        fontsize=12,
        color=INK,
    )
    figure.savefig(path)
    return share


def read_log(work_dir: str | os.PathLike) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Read the log of a run, resumed or not, as if it had never been interrupted.

    Args:
        work_dir: The run's folder, with mmengine's ``<time>/vis_data/scalars.json`` inside.

    Returns:
        The training records (with ``iter``, ``epoch``, ``loss``, ``lr``) and the evaluation records (with ``epoch``).

    Raises:
        UserError: There is no log.
    """
    files = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    train: list[dict[str, float]] = []
    evaluations: list[dict[str, float]] = []
    for file in files:
        records = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                # The last line of a killed run can be half a record.
                continue
        steps = [record for record in records if "loss" in record]
        if steps:
            # A resumed run repeats what came after its checkpoint; a run started anew repeats everything.
            train = [record for record in train if record["iter"] < steps[0]["iter"]]
            evaluations = [record for record in evaluations if record["epoch"] < steps[0]["epoch"]]
        train += steps
        evaluations += [
            {**record, "epoch": record["step"]}
            for record in records
            if "step" in record and any(key.startswith("accuracy/") for key in record)
        ]
    if not train and not evaluations:
        raise UserError(f"'{work_dir}' holds no log of a training run.")
    return train, evaluations


def plot_learning_curve(work_dir: str | os.PathLike, path: str | os.PathLike, metric: str = "accuracy/top1") -> None:
    """Draw training loss and held-out top-1 over epochs.

    Args:
        work_dir: The run's folder.
        path: The PNG to write.
        metric: Name of the held-out figure, in per cent.

    Raises:
        UserError: There is no log in the folder.
    """
    train, evaluations = read_log(work_dir)
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)

    # Iterations as fractions of an epoch, so that both sides share their scale.
    last = train[-1] if train else {"iter": 1, "epoch": 1}
    per_epoch = last["iter"] / last["epoch"]
    left.plot(
        [record["iter"] / per_epoch for record in train],
        [record["loss"] for record in train],
        color=RIGHT,
        linewidth=2,
    )
    left.set_title("Training loss", fontsize=11, color=INK, loc="left")
    left.set_ylim(bottom=0)

    scores = [record[metric] for record in evaluations if metric in record]
    times = [record["epoch"] for record in evaluations if metric in record]
    right.plot(times, scores, color=WRONG, linewidth=2, marker="o", markersize=3.5)
    right.set_title("Held-out top-1 (%)", fontsize=11, color=INK, loc="left")
    if scores:
        right.annotate(
            f"{scores[-1]:.2f} %",
            (times[-1], scores[-1]),
            textcoords="offset points",
            xytext=(0, -16),
            ha="right",
            fontsize=10,
            fontweight="bold",
            color=WRONG,
        )
        # The last points lie close together: most of the height goes to the upper end.
        right.set_ylim(max(min(scores) - 5, 0), 101)
    from matplotlib.ticker import MaxNLocator

    for axes in (left, right):
        axes.set_xlabel("epoch", fontsize=9, color=INK)
        axes.set_xlim(0, last["epoch"] * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain_axes(axes)
    figure.savefig(path)


def plot_receptive_fields(fields: Mapping[str, Tensor], path: str | os.PathLike, share: float = 0.5) -> None:
    """Draw effective receptive fields side by side, each on its own scale.

    Brightness is the field to the power 0.2, as in VMamba's analysis: it makes far, weak contributions visible.

    Args:
        fields: A field (H, W) per title.
        path: The PNG to write.
        share: The square that holds this share of the field's sum is outlined.
    """
    from .receptive_field import high_contribution_side

    figure = _figure(3.6 * len(fields) + 0.6, 4.1)
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    from matplotlib.patches import Rectangle

    for axes, (title, field) in zip(panels, fields.items(), strict=True):
        height, width = field.shape
        shown = field.clamp_min(0).pow(0.2)
        image = axes.imshow(shown / shown.max().clamp_min(1e-12), cmap="magma", vmin=0, vmax=1)
        side = high_contribution_side(field, share)
        axes.add_patch(
            Rectangle(
                (width // 2 - side / 2, height // 2 - side / 2),
                side,
                side,
                fill=False,
                edgecolor="#7fe3ff",
                linewidth=1.6,
                linestyle=(0, (4, 2)),
            )
        )
        axes.set_title(f"{title}\n{share:.0%} of it within {side} x {side} pixels", fontsize=10, color=INK)
        axes.set(xticks=[0, width - 1], yticks=[0, height - 1])
        axes.set_xticklabels(["1", str(width)])
        axes.set_yticklabels(["1", str(height)])
        axes.tick_params(colors=INK, labelsize=8, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(image, ax=panels.tolist(), fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("share of the largest gradient, to the power 0.2", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK, length=0)
    figure.suptitle("Effective receptive field of the last map's centre", fontsize=12, color=INK)
    figure.savefig(path)
