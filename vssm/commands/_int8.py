"""`vssm export --int8`: a float ONNX file first, its int8 form from that."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from .._cli import UsageError, say

__all__ = ["add_int8_arguments", "check_int8_arguments", "export_int8"]


def add_int8_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--int8",
        choices=("dynamic", "static"),
        help="an .onnx file with 8-bit products and, if static, convolutions; the scans stay in float32",
    )
    parser.add_argument("--calibration", metavar="FOLDER", help="images for --int8")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="for --int8 at most (default: 256)")


def check_int8_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that do not go together."""
    if args.int8 and not args.calibration:
        raise UsageError("--int8 needs --calibration FOLDER, images to calibrate and to compare on")
    if args.calibration and not args.int8:
        raise UsageError("--calibration belongs to --int8")
    if args.int8 and not args.file.endswith(".onnx"):
        raise UsageError(f"--int8 writes an .onnx file, not '{args.file}'")


def export_int8(model: Any, args: argparse.Namespace, shape: tuple[int, ...], progress: Any) -> None:
    """Write the int8 file of a model and say what it is."""
    from ..export import export_model
    from ..quantize import QUANTIZED_OPS, calibration_images, quantize_onnx

    batches = calibration_images(model, args.calibration, max(args.images, shape[0]), shape[0], shape[2:])
    whole = [batch for batch in batches if len(batch) == shape[0]]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        export_model(model, source, shape, args.dynamic, args.keep_ops, args.tolerance, progress)
        before = source.stat().st_size / 1e6
        done = quantize_onnx(model, source, args.file, args.int8, whole)
    say(f"{done.path}: ONNX, int8, {done.path.stat().st_size / 1e6:.1f} MB; in float32 {before:.1f} MB")
    ops = ", ".join(QUANTIZED_OPS[args.int8])
    images = shape[0] * len(whole)
    say(f"{done.quantized} operators in int8 ({ops} with weights); {images} images of {args.calibration}")
    same = "" if done.agreement is None else f", the same class for {done.agreement:.1%} of the images"
    say(f"read back: outputs {done.relative:.1%} away from the model{same}")
