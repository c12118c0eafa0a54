r"""Quantise a model after training: a file with integers and steps, and a table of what it cost each layer.

vssm quantize vmamba_tiny_s1l8 --pretrained --recipe w8a8 --calibration IMAGES --out vmamba_w8a8.safetensors
vssm quantize vmamba_tiny_s1l8 --checkpoint work_dirs/flowers/epoch_30.pth --recipe ptq4vm \
    --calibration flowers/train --labelled flowers/val --out flowers.safetensors
"""

import argparse
import os

from .._cli import UsageError, say
from ._names import completes, model_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    completes(parser.add_argument("model", metavar="MODEL", help="a name of timm's registry"), model_names)
    parser.add_argument("--recipe", required=True, choices=("int8-dynamic", "w8a8", "ptq4vm"), help="how")
    parser.add_argument("--calibration", required=True, metavar="FOLDER", help="images, of no class in particular")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write: .safetensors")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="load the published weights")
    weights.add_argument("--checkpoint", metavar="PATH", help="load the weights of a file, of `vssm train` for example")
    parser.add_argument("--labelled", metavar="FOLDER", help="a folder for each class: tell top-1 before and after")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="to calibrate on (default: 256)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="N", help="side, or height and width (default: its own)"
    )
    parser.add_argument("--weight-bits", type=int, metavar="N", help="2 to 8 (default: the recipe's)")
    parser.add_argument("--input-bits", type=int, metavar="N", help="2 to 8 (default: the recipe's)")
    parser.add_argument("--hadamard", action="store_true", help="w8a8: rotate what the scans give")
    parser.add_argument("--alpha", type=float, default=0.5, help="of the smoothing (default: 0.5)")
    parser.add_argument("--clip", type=float, default=0.9995, help="w8a8: quantile of the scans' input (0.9995)")
    parser.add_argument("--epochs", type=int, default=50, metavar="N", help="ptq4vm: passes to learn in (default: 50)")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    if args.img_size and len(args.img_size) > 2:
        raise UsageError("--img-size takes one number or two")
    if not args.out.endswith(".safetensors"):
        raise UsageError(f"--out must end in .safetensors, not '{args.out}'")

    from .._files import require_writable
    from .._progress import track_stages
    from ..models.create import create_model, create_trained_model
    from ..quantize import as_table, calibration_images, quantize_model, report, save_quantized, top1

    args.out = os.path.expanduser(args.out)
    require_writable(args.out)
    if args.checkpoint:
        model = create_trained_model(args.model, args.checkpoint)
    else:
        model = create_model(args.model, pretrained=args.pretrained)
        if not args.pretrained:
            say(f"Warning: {args.model} has random weights.", error=True)
    model.eval()
    labelled = _labelled(args, model) if args.labelled else None
    batches = calibration_images(model, args.calibration, args.images, args.batch_size, args.img_size)
    names = ("weight_bits", "input_bits", "alpha", "clip", "hadamard", "epochs")
    options = {name: getattr(args, name) for name in names}
    with track_stages() as progress:
        quantized = quantize_model(model, args.recipe, batches, progress=progress, **options)
    size = "x".join(map(str, batches[0].shape[2:]))
    about = {"model": args.model, "recipe": args.recipe, "options": options, "img_size": size}
    save_quantized(quantized, args.out, about)
    say(as_table(report(model, quantized, batches[0])))
    say(f"{args.out}: {_megabytes(args.out):.2f} MB, the float32 weights {_weights(model):.2f} MB")
    count = sum(len(batch) for batch in batches)
    say(f"calibrated on {count} images of {size}; convolutions, norms, A, D, biases and states stay in float32")
    if args.recipe != "int8-dynamic":
        say("simulated: products run in float32, so nothing is faster yet")
    if labelled is not None:
        say(f"top-1: {top1(model, labelled()):.2f} % before, {top1(quantized, labelled()):.2f} % after")


def _labelled(args, model):
    """A function that goes through labelled images, batch by batch."""
    from pathlib import Path

    from .._errors import DataError
    from ..classify.data import ImageFolder
    from ..quantize import evaluation_options

    folder = Path(args.labelled).expanduser().absolute()
    data = ImageFolder(str(folder.parent), folder.name, evaluation_options(model, args.img_size))
    classes = len(data.metainfo["classes"])
    if classes != model.num_classes:
        raise DataError(f"'{folder}' has {classes} classes, the model {model.num_classes}.")

    def batches():
        import torch

        for start in range(0, len(data), args.batch_size):
            samples = [data[i] for i in range(start, min(start + args.batch_size, len(data)))]
            yield torch.stack([s["inputs"] for s in samples]), torch.tensor([s["labels"] for s in samples])

    return batches


def _megabytes(path: str) -> float:
    from pathlib import Path

    return Path(path).stat().st_size / 1e6


def _weights(model) -> float:
    return sum(value.nbytes for value in model.state_dict().values()) / 1e6
