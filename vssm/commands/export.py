"""Write a model to an ONNX, torch.export or TorchScript file, and compare what the file computes with the model.

vssm export vmamba_tiny_s1l8 vmamba.onnx --pretrained
vssm export vmamba_tiny_s1l8 vmamba_int8.onnx --pretrained --int8 static --calibration IMAGES
vssm export vmamba_tiny_s1l8 flowers.pt2 --checkpoint work_dirs/flowers/epoch_30.pth --dynamic batch
"""

import argparse

from .._cli import UsageError, say
from ._int8 import add_int8_arguments, check_int8_arguments, export_int8
from ._names import completes, model_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    completes(parser.add_argument("model", metavar="MODEL", help="a name of timm's registry"), model_names)
    parser.add_argument("file", metavar="FILE", help="the file to write: .onnx, .pt2 (torch.export) or .torchscript")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="load the published weights")
    weights.add_argument("--checkpoint", metavar="PATH", help="load the weights of a file, of `vssm train` for example")
    parser.add_argument("--features", action="store_true", help="export the feature maps of all stages, no classifier")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="N", help="side, or height and width (default: its own)"
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images (default: 1)")
    parser.add_argument(
        "--dynamic",
        nargs="+",
        choices=("batch", "size"),
        default=[],
        help="take any batch; any multiple of 32 as size (with --keep-ops)",
    )
    parser.add_argument(
        "--keep-ops", action="store_true", help="keep vssm's own operators, which need `import vssm_kernels` to run"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="deviation allowed, of the largest output (default: 1e-4)"
    )
    add_int8_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    if args.img_size and len(args.img_size) > 2:
        raise UsageError("--img-size takes one number or two")
    check_int8_arguments(args)

    from .._files import require_writable
    from .._progress import track_stages
    from ..export import FORMATS, export_model
    from ..models.create import create_model, create_trained_model

    require_writable(args.file)
    options = {"features_only": True} if args.features else {}
    if args.checkpoint:
        model = create_trained_model(args.model, args.checkpoint, **options)
    else:
        model = create_model(args.model, pretrained=args.pretrained, **options)
        if not args.pretrained:
            say(f"Warning: {args.model} has random weights.", error=True)
    cfg = model.pretrained_cfg if not args.features else model.default_cfg
    chans, *size = cfg["input_size"]
    height, width = (args.img_size * 2)[:2] if args.img_size else size
    shape = (args.batch_size, chans, height, width)
    with track_stages() as progress:
        if args.int8:
            return export_int8(model, args, shape, progress)
        done = export_model(model, args.file, shape, args.dynamic, args.keep_ops, args.tolerance, progress)
    mean, std = (tuple(round(x, 4) for x in cfg[key]) for key in ("mean", "std"))
    say(f"{done.path}: {FORMATS[done.path.suffix]}, {done.path.stat().st_size / 1e6:.1f} MB")
    say(f"images: float32 {shape}, RGB from 0 to 1, minus {mean}, over {std}")
    compared = ", ".join("x".join(map(str, s)) for s in done.shapes)
    share = f"{done.relative:.1e} of the largest output"
    say(f"largest deviation from the model: {done.deviation:.1e}, {share} ({compared})")
