"""Pictures of answers and of receptive fields."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .canvas import hide_axes, new_figure, save_figure
from .palette import INK, RIGHT, WRONG
from .receptive_field import high_contribution_side


@torch.no_grad()
def plot_predictions(
    classifier: nn.Module, dataset: Any, path: str | os.PathLike, columns: int = 10, rows: int = 4, batch_size: int = 64
) -> float:
    """Draw held-out images with the model's answers: all that fit of the wrong ones, then right ones.

    Args:
        classifier: Gives logits (B, K) for images (B, C, H, W) with ``mode="tensor"``; in evaluation mode.
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
    figure = new_figure(columns * 0.7, rows * 0.92 + 0.4)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.subplots(rows, columns, squeeze=False)
    hide_axes(grid)
    for axes, index in zip(grid.flat, shown, strict=False):
        image = samples[index]["inputs"].float().mean(dim=0)
        colour = RIGHT if right[index] else WRONG
        axes.set_axis_on()
        axes.imshow(image, cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.2)
        answer = classes[answers[index]]
        text = f"{answer} {confidence[index]:.0%}" if right[index] else f"{answer}, is {classes[labels[index]]}"
        axes.set_title(text, fontsize=8, color=colour, pad=2)
    share = right.float().mean().item()
    figure.suptitle(
        f"Held-out scans: {int(right.sum())} of {len(right)} right ({share:.1%})"
        + (f"; {len(wrong)} wrong, in orange and first." if wrong else "."),
        fontsize=10,
        color=INK,
    )
    save_figure(figure, path)
    return share


def plot_answers(answers: Sequence[Any], path: str | os.PathLike, columns: int = 4) -> Path:
    """Draw images with the classes that a model names for them.

    Args:
        answers: Each with ``image``, a file, and ``classes`` and ``probabilities``, the most probable first.
        path: The picture to write; its suffix chooses the format.
        columns: Images in a row.

    Returns:
        The path.
    """
    from ..engine.images import open_image

    columns = min(columns, len(answers))
    lines = max(len(answer.classes) for answer in answers)
    rows = -(-len(answers) // columns)
    side = min(7.0 / columns, 2.6)  # at most as wide as the documentation's column
    figure = new_figure(side * columns, (0.97 * side + 0.16 * lines + 0.1) * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    hide_axes(grid)
    for axes, answer in zip(grid.flat, answers, strict=False):
        image = open_image(answer.image)
        image.thumbnail((400, 400))
        axes.imshow(image)
        pairs = zip(answer.classes, answer.probabilities, strict=True)
        text = "\n".join(f"{name.split(',')[0]}  {probability:.0%}" for name, probability in pairs)
        axes.set_title(text, fontsize=8, color=INK, pad=4, loc="left")
    return save_figure(figure, path)


def plot_receptive_fields(
    fields: Mapping[str, Tensor], path: str | os.PathLike, share: float = 0.5, columns: int | None = None
) -> None:
    """Draw effective receptive fields side by side, each on its own scale.

    Brightness is the field to the power 0.2, as in VMamba's analysis: it makes far, weak contributions visible.

    Args:
        fields: A field (H, W) per title.
        path: The PNG to write.
        share: The square that holds this share of the field's sum is outlined.
        columns: Panels in a row; None: all in one.
    """
    columns = columns or len(fields)
    rows = -(-len(fields) // columns)
    side = min(3.3, 6.5 / columns)
    figure = new_figure(side * columns + 0.5, (side + 0.25) * rows + 0.35)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(fields) :]:
        axes.set_axis_off()
    from matplotlib.patches import Rectangle

    for axes, (title, field) in zip(panels, fields.items(), strict=False):
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
        axes.set_title(f"{title}\n{share:.0%} of it within {side} x {side} pixels", fontsize=8.5, color=INK)
        axes.set(xticks=[0, width - 1], yticks=[0, height - 1])
        axes.set_xticklabels(["1", str(width)])
        axes.set_yticklabels(["1", str(height)])
        axes.tick_params(colors=INK, labelsize=8, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(image, ax=panels.tolist(), fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("share of the largest gradient, to the power 0.2", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK, length=0)
    figure.suptitle("Effective receptive field of the last map's centre", fontsize=10, color=INK)
    save_figure(figure, path)
