"""Draw what models do: scan routes, fields, attention, activations, pruning, half-lives, overlays, masks, curves.

vssm visualize routes --out routes.gif
vssm visualize erf PHOTOS --model vmamba_tiny_s1l8 swin_tiny_patch4_window7_224 --pretrained --out erf.png
vssm visualize attention PHOTO --model vmamba_tiny_s1l8 --pretrained --pixel 100 200 --out DIR
vssm visualize activations PHOTO --config CONFIG --checkpoint CHECKPOINT --out DIR
vssm visualize pruning PHOTO --model vim_small_patch16_224 --pretrained --sites 4 9 14 --keep 0.8 --out DIR
vssm visualize spectrum --config CONFIG --checkpoint CHECKPOINT --out spectrum.png
vssm visualize overlay PHOTOS --config CONFIG --checkpoint CHECKPOINT --out DIR
vssm visualize masked CONFIG CHECKPOINT --out masked.png
vssm visualize curves WORK_DIR WORK_DIR --out curves.png
"""

import argparse
import os
from collections.abc import Callable, Sequence

from .._cli import UsageError, say
from .._errors import UserError
from ._names import completes, config_names, model_names


def _routes(args: argparse.Namespace) -> None:
    from ..viz import PATTERNS, animate_routes, patterns_of, plot_routes

    height, width = _pair(args.size)
    draw = animate_routes if args.out.lower().endswith(".gif") else plot_routes
    say(draw(args.out, patterns_of(args.names) if args.names else PATTERNS, height, width))


def _erf(args: argparse.Namespace) -> None:
    from ..viz.commands import draw_receptive_fields

    if args.with_untrained and not (args.checkpoint or args.pretrained):
        raise UserError("--with-untrained compares with trained weights: give --checkpoint or --pretrained.")
    untrained = _subjects(args, random_weights=True) if args.with_untrained else []
    subjects = _subjects(args)
    say(draw_receptive_fields(subjects, args.images, args.out, _pair(args.img_size), untrained, args.stage))


def _attention(args: argparse.Namespace) -> int:
    from ..viz.commands import draw_attention

    size, suffix = _pair(args.img_size), args.format
    return draw_attention(
        _subjects(args), args.images, args.out, size, args.pixel, args.module, args.rollout, suffix=suffix
    )


def _activations(args: argparse.Namespace) -> int:
    from ..viz.commands import draw_activations

    size, suffix = _pair(args.img_size), args.format
    return draw_activations(_subjects(args), args.images, args.out, size, args.label, args.stage, suffix)


def _pruning(args: argparse.Namespace) -> int:
    from ..viz.commands import draw_pruning

    size, suffix = _pair(args.img_size), args.format
    return draw_pruning(_subjects(args), args.images, args.out, size, args.sites, args.keep, suffix)


def _spectrum(args: argparse.Namespace) -> None:
    from ..viz.commands import draw_spectrum

    trained = _subjects(args) if args.checkpoint or args.pretrained else None
    say(draw_spectrum(_subjects(args, random_weights=True), args.out, trained))


def _overlay(args: argparse.Namespace) -> int:
    from ..viz.commands import draw_overlays

    return draw_overlays(
        args.images,
        args.out,
        model=args.model,
        pretrained=args.pretrained,
        config=args.config,
        checkpoint=args.checkpoint,
        device=args.device,
        options=args.cfg_options,
        score_threshold=args.score_threshold,
        topk=args.topk,
    )


def _masked(args: argparse.Namespace) -> None:
    from ..engine.config import load_config
    from ..engine.run import parse_options
    from ..medical.masked_pictures import draw_masked

    if args.count < 1:
        raise UsageError("--count takes a whole number from 1")
    cfg = load_config(args.config, parse_options(args.cfg_options))
    say(draw_masked(cfg, args.checkpoint, args.out, args.count, args.seed, args.device))


def _curves(args: argparse.Namespace) -> None:
    from ..viz import plot_learning_curves

    say(plot_learning_curves(args.work_dirs, args.out, args.metrics))


def _subjects(args: argparse.Namespace, random_weights: bool = False) -> list:
    from ..engine.config import load_config
    from ..engine.run import parse_options
    from ..viz.commands import fixed_seed
    from ..viz.subject import build_subjects

    options = parse_options(args.cfg_options)
    configs = [load_config(path, options) for path in args.config]
    checkpoints, pretrained = ([], False) if random_weights else (args.checkpoint, args.pretrained)
    if not (random_weights or checkpoints or pretrained):
        say("Warning: random weights, because neither --checkpoint nor --pretrained was given.", error=True)
    with fixed_seed():
        return build_subjects(args.model, configs, checkpoints, pretrained, args.device)


def _pair(size: Sequence[int] | None) -> tuple[int, int] | None:
    """A side, or height and width, as both; None as it is."""
    return (size[0], size[-1]) if size else None


def _add_models(parser: argparse.ArgumentParser) -> None:
    images = "image files and folders (default: the photographs of scikit-learn's wheel)"
    parser.add_argument("images", nargs="*", metavar="IMAGES", help=images)
    _add_networks(parser)
    parser.add_argument(
        "--img-size", nargs="+", type=int, metavar="N", help="side, or height and width, to give the images"
    )


def _add_networks(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument("--model", nargs="+", default=[], metavar="NAME", help="names of timm's registry")
    completes(model, model_names)
    parser.add_argument("--pretrained", action="store_true", help="load the published weights of --model")
    config = parser.add_argument(
        "--config", nargs="+", default=[], metavar="CONFIG", help="runs' configs, names or paths"
    )
    completes(config, config_names)
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="FILE", help="one for each --model and --config, in that order"
    )
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the configs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    kinds = parser.add_subparsers(required=True, metavar="WHAT")

    def command(name: str, function: Callable, help: str, out: str) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=help, description=help)
        sub.set_defaults(draw=function, out_is_folder=out == "DIR")
        sub.add_argument("--out", required=True, metavar=out)
        return sub

    sub = command("routes", _routes, "Scan routes over a map: a picture, or an animation as .gif.", "FILE")
    sub.add_argument("names", nargs="*", metavar="NAME", help="families, models or volumes (default: every family)")
    sub.add_argument("--size", nargs="+", type=int, default=[6], metavar="N", help="side, or height and width (6)")

    sub = command("erf", _erf, "Effective receptive fields, models side by side.", "FILE")
    _add_models(sub)
    sub.add_argument("--with-untrained", action="store_true", help="each model with random weights too")
    sub.add_argument("--stage", type=int, default=-1, help="the map whose centre is looked at (default: the last)")

    sub = command(
        "attention",
        _attention,
        "What a pixel takes from all others in the scans: per route, merged, rolled out.",
        "DIR",
    )
    _add_models(sub)
    sub.add_argument("--pixel", nargs=2, type=int, metavar=("ROW", "COLUMN"), help="of the image (default: centre)")
    sub.add_argument("--module", nargs="+", metavar="NAME", help="scans (default: each stage's last)")
    sub.add_argument("--rollout", action="store_true", help="add the roll-out over the blocks of the stage")
    sub.add_argument("--format", default="png", help="of the pictures: png, jpg, svg, pdf (default: png)")

    sub = command(
        "activations", _activations, "Maps of the stages, and where the last one speaks for a class (Grad-CAM).", "DIR"
    )
    _add_models(sub)
    sub.add_argument("--label", metavar="CLASS", help="name or number (default: the most probable)")
    sub.add_argument("--stage", type=int, default=-1, help="the map that is weighted (default: the last)")
    sub.add_argument("--format", default="png", help="of the pictures: png, jpg, svg, pdf (default: png)")

    sub = command("pruning", _pruning, "Patches that a plain net keeps where it prunes tokens.", "DIR")
    _add_models(sub)
    sub.add_argument("--sites", nargs="+", type=int, metavar="N", help="blocks to prune behind (default: the model's)")
    sub.add_argument("--keep", type=float, metavar="R", help="share of the patches that each keeps (the model's)")
    sub.add_argument("--format", default="png", help="of the pictures: png, jpg, svg, pdf (default: png)")

    sub = command("spectrum", _spectrum, "How long states last: half-lives, learned and initial, by stage.", "FILE")
    _add_networks(sub)

    sub = command("overlay", _overlay, "Boxes and masks, segments, labels or classes over images.", "DIR")
    sub.add_argument("images", nargs="*", metavar="IMAGES", help="image files, volumes of a medical run, and folders")
    completes(sub.add_argument("--model", metavar="NAME", help="a classifier of timm's registry"), model_names)
    sub.add_argument("--pretrained", action="store_true", help="load the published weights of --model")
    config = sub.add_argument("--config", metavar="CONFIG", help="a run's config, by name or path, instead of --model")
    completes(config, config_names)
    sub.add_argument("--checkpoint", metavar="FILE", help="its checkpoint, or weights of --model")
    sub.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")
    sub.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    sub.add_argument("--score-threshold", type=float, default=0.3, help="draw objects from here on (default: 0.3)")
    sub.add_argument("--topk", type=int, default=3, help="how many classes to name (default: 3)")

    about = "Masked pre-training: samples of a run, what is left of them, and what it fills in."
    sub = command("masked", _masked, about, "FILE")
    completes(sub.add_argument("config", metavar="CONFIG", help="the run's config, by name or path"), config_names)
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="its checkpoint")
    sub.add_argument("--count", type=int, default=4, metavar="N", help="how many samples (default: 4)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of crops and masks (default: 0)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    sub.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")

    sub = command("curves", _curves, "Training loss and held-out metrics of runs.", "FILE")
    sub.add_argument("work_dirs", nargs="+", metavar="WORK_DIR", help="folders of runs")
    sub.add_argument("--metrics", nargs="+", metavar="NAME", help="as the log has them, such as accuracy/top1 or mIoU")


def run(args: argparse.Namespace) -> int | None:
    """Do what the arguments say; return the exit code or None."""
    for name in ("size", "img_size"):
        if getattr(args, name, None) and (len(getattr(args, name)) > 2 or min(getattr(args, name)) < 1):
            raise UsageError(f"--{name.replace('_', '-')} takes one or two positive numbers")

    from .._files import require_writable

    args.out = os.path.expanduser(args.out)
    require_writable(args.out, folder=args.out_is_folder)
    return args.draw(args)
