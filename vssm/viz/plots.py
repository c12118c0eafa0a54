"""The pictures themselves, drawn with matplotlib's object interface: no window system, no global state."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UserError
from .._folders import write_beside
from .._optional import require

# Blue and orange stay apart for all common kinds of colour blindness; ink and grid are soft greys.
RIGHT, WRONG = "#1f6fb4", "#d9480f"
INK, FAINT = "#2b2f33", "#d5d9dd"
# For more than two things: the two above, then others of Okabe and Ito's that stay apart from them.
COLOURS = (RIGHT, WRONG, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


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


def _bare(grid: Any) -> None:
    """Neither frames nor ticks, on any panel."""
    for axes in grid.flat:
        axes.set_axis_off()


def _size(picture: Any) -> tuple[int, int]:
    """(height, width) of a Pillow image or an array (H, W, ...)."""
    return (picture.height, picture.width) if hasattr(picture, "height") else tuple(picture.shape[:2])


def _save(figure: Any, path: str | os.PathLike) -> Path:
    """Write a figure; the suffix chooses the format. See `_write`.

    Raises:
        UserError: The suffix is no format of a picture, or the file cannot be written.
    """
    formats = figure.canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in formats:
        raise UserError(f"'{path}' has no suffix of a picture; there are {', '.join(sorted(formats))}.")
    return _write(path, figure.savefig)


def _write(path: str | os.PathLike, write: Callable[[Path], Any]) -> Path:
    """Let a function write a picture, whole or not at all; its folder is made.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        write_beside(path, write)
    except OSError as error:
        raise UserError(f"The picture '{path}' cannot be written: {error.strerror or error}.") from error
    return Path(path)


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
    _save(figure, path)
    return share


def plot_answers(answers: Sequence[Any], path: str | os.PathLike, columns: int = 4) -> Path:
    """Draw images with the classes that a model names for them.

    Args:
        answers: Each with ``image``, ``classes`` and ``probabilities``: :class:`~vssm.engine.predict.Prediction`.
        path: The picture to write; its suffix chooses the format.
        columns: Images in a row.

    Returns:
        The path.
    """
    from ..engine.data import open_image

    columns = min(columns, len(answers))
    lines = max(len(answer.classes) for answer in answers)
    rows = -(-len(answers) // columns)
    figure = _figure(2.6 * columns, (2.1 + 0.17 * lines) * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    _bare(grid)
    for axes, answer in zip(grid.flat, answers, strict=False):
        image = open_image(answer.image)
        image.thumbnail((400, 400))
        axes.imshow(image)
        pairs = zip(answer.classes, answer.probabilities, strict=True)
        text = "\n".join(f"{name.split(',')[0]}  {probability:.0%}" for name, probability in pairs)
        axes.set_title(text, fontsize=8.5, color=INK, pad=4, loc="left")
    return _save(figure, path)


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
    from .receptive_field import high_contribution_side

    columns = columns or len(fields)
    rows = -(-len(fields) // columns)
    figure = _figure(3.6 * columns + 0.6, 3.75 * rows + 0.35)
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
    _save(figure, path)
