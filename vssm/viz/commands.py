"""Draw pictures for `vssm visualize`: one function for each kind."""

import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .._cli import say
from .._errors import UserError, did_you_mean
from .._files import FreeNames
from .._progress import track
from .._tasks import NamedModel, Run, Wanted, task_of, task_of_names
from ..engine.config import load_config
from ..engine.images import find_images
from ..engine.run import parse_options
from ..models import PlainBackbone, quarter_indices
from .attention import choose_scans, look_from, plot_attention, record_scans
from .features import class_activation, feature_maps, plot_activations
from .plots import plot_receptive_fields
from .pruning import plot_pruning
from .receptive_field import effective_receptive_field
from .spectrum import half_lives_by_stage, plot_half_lives
from .subject import Subject, View, place_in, sample_photographs

__all__ = [
    "draw_activations",
    "draw_attention",
    "draw_overlays",
    "draw_pruning",
    "draw_receptive_fields",
    "draw_spectrum",
]


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Make random weights that are the same every time, without changing the global generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def _explain(subject: Subject, size: Sequence[int]) -> Iterator[None]:
    """Say in one sentence what timm asserts about sizes and stages, and which models have no maps."""
    try:
        yield
    except (AssertionError, IndexError, ValueError) as error:
        text = str(error).rstrip(".")
        raise UserError(
            f"{subject.name} cannot be drawn with images of {size[0]} x {size[1]} pixels: {text}."
        ) from error


def _files(images: Sequence[str]) -> list[str]:
    return find_images(images) if images else sample_photographs()


def _each_image(
    subjects: Sequence[Subject],
    images: Sequence[str],
    out: str | os.PathLike,
    size: Sequence[int] | None,
    draw: Callable[[Subject, View, Path], Path],
    suffix: str,
) -> int:
    """Draw every image with every model as ``out/<image>[_<model>].<suffix>``, and say what was written.

    Returns:
        0, or 1 when an image could not be read; the others are drawn all the same.
    """
    failed = False
    free_name = FreeNames()
    for file in _files(images):
        for subject in subjects:
            try:
                view = subject.view(file, size)
            except UserError as error:
                say(f"{error}", error=True)
                failed = True
                break
            name = free_name(Path(file).stem + (f"_{subject.name}" if len(subjects) > 1 else ""))
            with _explain(subject, view.inputs.shape[2:]):
                say(draw(subject, view, Path(out) / f"{name}.{suffix}"))
    return 1 if failed else 0


def draw_attention(
    subjects: Sequence[Subject],
    images: Sequence[str],
    out: str | os.PathLike,
    size: Sequence[int] | None = None,
    pixel: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    rollout: bool = False,
    suffix: str = "png",
) -> int:
    """Draw the attention of a pixel of each image.

    Args:
        subjects: The models.
        images: Files and folders; none: the sample photographs.
        out: Folder for the pictures.
        size: Height and width of the images; None: see `Subject.view`.
        pixel: (row, column) of the image files; None: their centre.
        modules: See `choose_scans`.
        rollout: Add the roll-out over the blocks of a stage.
        suffix: Format of the pictures.

    Returns:
        See `_each_image`.

    Raises:
        UserError: A model has no scan or no such module, or the pixel is outside of an image.
    """

    def draw(subject: Subject, view: View, path: Path) -> Path:
        place = place_in(view, pixel)
        recorded = record_scans(subject.network, view.inputs)
        names = choose_scans(recorded, modules)
        found = [look_from(recorded, name, place, rollout, track) for name in track(names, "attention")]
        return plot_attention(view.picture, found, path)

    return _each_image(subjects, images, out, size, draw, suffix)


def draw_activations(
    subjects: Sequence[Subject],
    images: Sequence[str],
    out: str | os.PathLike,
    size: Sequence[int] | None = None,
    label: str | None = None,
    stage: int = -1,
    suffix: str = "png",
) -> int:
    """Draw each stage's map and, of a classifier, what speaks for a class.

    Args:
        subjects: The models.
        images: Files and folders; none: the sample photographs.
        out: Folder for the pictures.
        size: Height and width of the images; None: see `Subject.view`.
        label: Name or number of the class; None: the most probable one.
        stage: Whose map is weighted by the class's gradient.
        suffix: Format of the pictures.

    Returns:
        See `_each_image`.

    Raises:
        UserError: There is no such class or stage.
    """

    def draw(subject: Subject, view: View, path: Path) -> Path:
        with torch.no_grad():
            maps = feature_maps(subject.network, view.inputs, _stages_to_draw(subject.network))
        if not _classifies(subject):
            if label is not None:
                raise UserError(f"{subject.name} is no classifier, so nothing in it speaks for '{label}'.")
            return plot_activations(view.picture, maps, path)
        number = None if label is None else _class_number(subject, label)
        heat, number, probability = class_activation(subject.network, view.inputs, number, stage)
        title = f"for '{subject.class_name(number).split(',')[0]}', {probability:.0%}"
        return plot_activations(view.picture, maps, path, heat, title)

    return _each_image(subjects, images, out, size, draw, suffix)


def draw_pruning(
    subjects: Sequence[Subject],
    images: Sequence[str],
    out: str | os.PathLike,
    size: Sequence[int] | None = None,
    sites: Sequence[int] | None = None,
    keep: float | None = None,
    suffix: str = "png",
) -> int:
    """Draw which patches of each image are left behind each site.

    Args:
        subjects: The models, plain nets.
        images: Files and folders; none: the sample photographs.
        out: Folder for the pictures.
        size: Height and width of the images; None: see `Subject.view`.
        sites: Blocks behind which to prune; None: those of the model.
        keep: The share of the patches that each site keeps; None: that of the model.
        suffix: Format of the pictures.

    Returns:
        See `_each_image`.

    Raises:
        UserError: A model cannot prune tokens, or neither it nor the arguments say how.
    """
    for subject in subjects:
        network = subject.network
        if not isinstance(network, PlainBackbone):
            raise UserError(f"{subject.name} is no plain net, such as Vim or PlainMamba: its tokens cannot be pruned.")
        known = network.pruning
        if known is None and (sites is None or keep is None):
            raise UserError(f"{subject.name} prunes no tokens: say where and how many with --sites and --keep.")
        try:
            if known is None:
                network.set_pruning(sites or (), 1.0 if keep is None else keep)
            else:
                sites_here, keep_here = sites or known.sites, known.keep if keep is None else keep
                network.set_pruning(sites_here, keep_here, known.decay, known.as_released)
        except ValueError as error:
            raise UserError(f"{subject.name} cannot be pruned like this: {error}.") from error

    def draw(subject: Subject, view: View, path: Path) -> Path:
        with torch.no_grad():
            kept = [patches[0] for patches in subject.network.kept_patches(view.inputs)]
        pruning = subject.network.pruning
        return plot_pruning(view.picture, kept, pruning.sites if pruning is not None else (), path)

    return _each_image(subjects, images, out, size, draw, suffix)


def _stages_to_draw(network: nn.Module) -> tuple[int, ...] | None:
    """All stages; of a plain net, whose every block is one to timm, the ends of its quarters."""
    return quarter_indices(len(network.blocks)) if isinstance(network, PlainBackbone) else None


def _classifies(subject: Subject) -> bool:
    return hasattr(subject.network, "forward_head") and getattr(subject.network, "num_classes", 0) > 0


def _class_number(subject: Subject, label: str) -> int:
    if label.lstrip("-").isdigit() and (subject.classes is None or label not in subject.classes):
        return int(label)
    known = list(subject.classes or ())
    for number, name in enumerate(known):
        if label in (name, *name.split(", ")):
            return number
    short = [name.split(",")[0] for name in known]
    raise UserError(f"{subject.name} has no class '{label}'{did_you_mean(label, short)}; give a name or a number.")


def _free_title(title: str, taken: Container[str]) -> str:
    """Prime the title until no other has it."""
    while title in taken:
        title += "'"
    return title


def draw_receptive_fields(
    subjects: Sequence[Subject],
    images: Sequence[str],
    out: str | os.PathLike,
    size: Sequence[int] | None = None,
    untrained: Sequence[Subject] = (),
    stage: int = -1,
) -> Path:
    """Draw effective receptive fields side by side; where there are untrained models, those in the first row.

    Args:
        subjects: The models.
        images: Files and folders; none: the sample photographs.
        out: The picture.
        size: Height and width of the images; None: a square of each model's own side.
        untrained: The same models with random weights, or none.
        stage: Index of the map whose centre is looked at.

    Returns:
        The picture.

    Raises:
        UserError: An image cannot be read.
    """
    files = _files(images)
    rows = [("untrained", untrained), ("trained", subjects)] if untrained else [("", subjects)]
    fields = {}
    for word, row in rows:
        for subject in track(row, "receptive fields"):
            square = (subject.side, subject.side)
            inputs = torch.cat([subject.view(file, size or square).inputs for file in files])
            title = _free_title(", ".join(filter(None, (subject.name, word))), fields)
            with _explain(subject, inputs.shape[2:]):
                fields[title] = effective_receptive_field(
                    subject.network, inputs, stage, batch_size=2, progress=track
                ).cpu()
    plot_receptive_fields(fields, out, columns=len(subjects) if len(subjects) > 1 else None)
    return Path(out)


def draw_spectrum(
    untrained: Sequence[Subject], out: str | os.PathLike, trained: Sequence[Subject | None] | None = None
) -> Path:
    """Draw how long the states of models last, those of trained ones beside what they started with.

    Args:
        untrained: The models with random weights.
        out: The picture.
        trained: The same models with learned ones; None: there are none.

    Returns:
        The picture.

    Raises:
        UserError: A model has no state that decays.
    """
    models = {}
    for subject, learned in zip(untrained, trained or [None] * len(untrained), strict=True):
        models[_free_title(subject.name, models)] = (
            None if learned is None else half_lives_by_stage(learned.network),
            half_lives_by_stage(subject.network),
        )
    plot_half_lives(models, out)
    return Path(out)


def draw_overlays(
    images: Sequence[str],
    out: str | os.PathLike,
    model: str | None = None,
    pretrained: bool = False,
    config: str | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
    options: Sequence[str] | None = None,
    score_threshold: float = 0.3,
    topk: int = 3,
) -> int:
    """Draw what a model says over the images, in the way of its task.

    Args:
        images: Files and folders, of the kind that the run takes. None given: the sample photographs.
        out: Folder for the pictures.
        model: A model of timm's registry by name.
        pretrained: With its published weights.
        config: A run's config, instead of ``model``.
        checkpoint: The run's checkpoint, or a file with the weights of ``model``.
        device: Where to run.
        options: ``KEY=VALUE`` words laid over the config.
        score_threshold: Objects below are not drawn.
        topk: How many classes are named for an image.

    Returns:
        0, or 1 when an image could not be read; the others are drawn all the same.

    Raises:
        UserError: The model, config, checkpoint or a folder cannot be used.
    """
    if (model is None) == (config is None):
        raise UserError("Name one model with --model, or one run with --config and --checkpoint.")
    wanted = Wanted(device, str(out), topk, score_threshold=score_threshold)
    if config is None:
        return task_of_names().draw(NamedModel(model, pretrained, checkpoint), images or sample_photographs(), wanted)
    if checkpoint is None:
        raise UserError("A run's answers come from its weights: give --checkpoint FILE.")
    cfg = load_config(config, parse_options(options))
    return task_of(cfg).draw(Run(cfg, checkpoint), images or sample_photographs(), wanted)
