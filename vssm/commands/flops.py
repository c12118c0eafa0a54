"""Count parameters, operations and activations of models by name, and of whatever configs describe.

vssm flops vmamba_tiny_s1l8 'vssd_*' resnet50 --img-size 224 512
vssm flops mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco --depth 1
vssm flops vmamba_tiny_s1l8 --count flops --backward --json
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from .._cli import UsageError, program, say
from .._errors import UserError
from ._names import completes, names


def _size(text: str) -> tuple[int, int]:
    """(H, W) of "224" or "800x1280"."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HxW")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    about = "models and configs by their names, wildcards of names, and paths of configs"
    completes(parser.add_argument("what", nargs="+", metavar="MODEL|CONFIG", help=about), names)
    parser.add_argument(
        "--count",
        choices=("paper", "macs", "flops"),
        default="paper",
        help="as the papers do (default), multiply-adds, or floating-point operations",
    )
    parser.add_argument(
        "--img-size",
        type=_size,
        nargs="+",
        default=[None],
        metavar="N|HxW",
        help="default: the model's own; 800x1280 for detectors, 512x2048 for segmentors",
    )
    parser.add_argument("--backward", action="store_true", help="forward and backward; with --count macs or flops")
    parser.add_argument("--depth", type=int, metavar="N", help="show the modules too, N levels deep")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit code or None."""
    if args.backward and args.count == "paper":
        raise UsageError("the papers count only the forward pass: --backward goes with --count macs or --count flops")
    if args.depth is not None and args.depth < 0:
        raise UsageError("--depth must be at least 0")

    from .._progress import track
    from ..profiling.cost import UNITS
    from ..profiling.subjects import count_subject, find_subjects

    subjects = find_subjects(args.what)
    columns = ["", "input", "M params", f"G{UNITS[args.count]} ({args.count})", "M activations", "published"]
    widths = [max(map(len, subjects)), 9, 8, len(columns[3]), 13, 9]

    def show(cells: Sequence[str]) -> None:
        name, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        say("  ".join([name.strip().ljust(widths[0]), *others]).rstrip())

    notes: dict[str, str] = {}
    failed, headed = False, False
    for build in track(list(subjects.values()), "counting"):
        for img_size in args.img_size:
            try:
                subject, cost = count_subject(build, img_size, args.count, args.backward)
            except UserError as error:
                if len(subjects) == 1:
                    raise
                failed = True
                say(f"{program()}: error: {error}", error=True)
                continue
            if args.json:
                row = dict(name=subject.name, input=cost.input_size, params=cost.params, flops=cost.flops)
                row |= dict(count=cost.kind, activations=cost.activations)
                if args.backward:
                    row["backward"] = True
                if args.depth is not None:
                    row["modules"] = [asdict(module) for module in cost.down_to(args.depth)]
                say(json.dumps(row))
                continue
            printed = ""
            if (
                subject.published
                and subject.published.gflops
                and args.count == "paper"
                and cost.input_size == subject.input_size
            ):
                printed = subject.published.gflops + ("*" if subject.published.not_reproduced else " ")
                if subject.published.not_reproduced:
                    notes[subject.name] = subject.published.not_reproduced
            numbers = [f"{cost.params / 1e6:.2f}", f"{cost.flops / 1e9:.3f}", f"{cost.activations / 1e6:.2f}"]
            if not headed:  # nothing is printed of a table without rows
                show(columns)
                headed = True
            show([subject.name, "x".join(map(str, cost.input_size)), *numbers, printed])
            if args.depth is not None:
                say(f"\n{cost.tree(args.depth)}\n")
    for name, reason in notes.items():
        say(f"* {name}: {reason}")
    return int(failed)
