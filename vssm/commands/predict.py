"""Classify images, draw what a detector or segmentor finds in them, or label volumes with a medical run.

vssm predict CONFIG CHECKPOINT IMAGE_OR_FOLDER ...
vssm predict CONFIG CHECKPOINT IMAGE_OR_FOLDER ... --out DIR --json FILE
vssm predict MEDICAL_CONFIG CHECKPOINT VOLUME_OR_FOLDER ... --out DIR
vssm predict --model vmamba_tiny_s1l8 --pretrained IMAGE_OR_FOLDER ...
vssm predict --model spatialmamba_tiny --checkpoint FILE IMAGE_OR_FOLDER ...
"""

import argparse

from .._cli import UsageError
from ._names import completes, config_names, model_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = (
        "%(prog)s CONFIG CHECKPOINT IMAGES... [--out DIR] | "
        "%(prog)s --model NAME [--pretrained | --checkpoint FILE] IMAGES..."
    )
    paths = parser.add_argument("paths", nargs="+", metavar="IMAGES", help="image files and folders")
    completes(paths, config_names)
    model = parser.add_argument("--model", metavar="NAME", help="a timm model instead of a config and its checkpoint")
    completes(model, model_names)
    parser.add_argument("--pretrained", action="store_true", help="load the published weights of --model")
    parser.add_argument("--checkpoint", metavar="FILE", help="load the weights of --model from this file")
    parser.add_argument("--topk", type=int, default=5, help="how many classes to name per image (default: 5)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per forward pass (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the answers to this file: classes; boxes and masks in COCO's result form; or the index of label "
        "maps, which go to DIR/labels, without --out to FILE_labels",
    )
    parser.add_argument("--csv", metavar="FILE", help="write a classifier's answers to this file")
    parser.add_argument("--out", metavar="DIR", help="folder for a detector's or segmentor's drawings, or labels")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="name objects from here on (default: 0.3)")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit code or None."""
    if args.topk < 1 or args.batch_size < 1:
        raise UsageError("--topk and --batch-size must be at least 1")
    if args.model is None and len(args.paths) < 3:
        raise UsageError("CONFIG, CHECKPOINT and at least one image are needed, or --model NAME and at least one image")
    if args.model is not None and (args.cfg_options or args.out):
        raise UsageError("--cfg-options and --out belong to a config, not to --model")
    if args.model is None and (args.pretrained or args.checkpoint):
        raise UsageError("--pretrained and --checkpoint belong to --model; a run's weights come from CHECKPOINT")
    if args.pretrained and args.checkpoint:
        raise UsageError("--pretrained and --checkpoint exclude each other")

    from ..engine.run import predict

    return predict(
        args.paths,
        model=args.model,
        pretrained=args.pretrained,
        topk=args.topk,
        batch_size=args.batch_size,
        device=args.device,
        json_file=args.json,
        csv_file=args.csv,
        options=args.cfg_options,
        out=args.out,
        score_threshold=args.score_threshold,
        checkpoint=args.checkpoint,
    )
