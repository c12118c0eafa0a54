"""Time models side by side in one run: medians of interleaved rounds, with what ran in every row.

vssm benchmark vmamba_tiny_s1l8 'vssd_*' --compare swin_tiny_patch4_window7_224 resnet50 --batch-size 1 8
vssm benchmark vmamba_tiny_s1l8 --device cuda --dtype bfloat16 --amp --mode infer train --batch-size 128
vssm benchmark vmamba_tiny_s1l8 resnet50 --img-size 224 384 512 --memory --json sizes.json --plot sizes.png
vssm benchmark --from sizes.json --plot sizes.png
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from .._cli import UsageError, say
from .._errors import UserError
from ._names import completes, model_names


def _files_of(args: argparse.Namespace) -> dict[Path, Callable[[Path, list], object]]:
    """Return the files to write, each with its writer; files are refused before anything is measured, not after."""
    from .._files import require_writable
    from .._optional import require
    from ..profiling.results import as_csv, as_json, as_markdown, write_text

    texts = {args.csv: as_csv, args.json: as_json, args.markdown: as_markdown}
    files = {file: lambda file, rows, form=form: write_text(file, form(rows)) for file, form in texts.items() if file}
    if args.plot:
        require("matplotlib", "train")
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if args.plot.suffix[1:].lower() not in known:
            raise UserError(f"--plot {args.plot} must end in one of .{', .'.join(known)}.")
        from ..viz import plot_costs

        files[args.plot] = lambda file, rows: plot_costs(rows, file)
    for file in files:
        require_writable(file)
    return files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    models = parser.add_argument("models", nargs="*", metavar="MODEL", help="names or wildcards of timm's registry")
    completes(models, model_names)
    parser.add_argument("--from", dest="source", metavar="FILE", help="measure nothing, read what --json wrote")
    measured = parser.add_argument_group("what is measured")
    compare = measured.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="ratios to this one; of several, the nearest by GFLOPs",
    )
    completes(compare, model_names)
    measured.add_argument("--mode", nargs="+", default=["infer"], metavar="MODE", help="infer, train (default: infer)")
    measured.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N", help="(default: 1)")
    measured.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        default=[None],
        metavar="PX",
        help="sides of the images (default: the model's)",
    )
    measured.add_argument(
        "--backend",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help="of the scan: auto, triton, cpp, torch, reference",
    )
    measured.add_argument("--rounds", type=int, default=7, help="samples of each (default: 7)")
    measured.add_argument("--memory", action="store_true", help="peak memory: seconds a row on a CPU; always on CUDA")
    how = parser.add_argument_group("how it runs")
    how.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    how.add_argument("--dtype", default="float32", help="of weights and images: float32, bfloat16, float16")
    how.add_argument("--amp", action="store_true", help="float32 weights and images, autocast to --dtype")
    how.add_argument("--channels-last", action="store_true", help="weights and images in this memory format")
    how.add_argument("--compile", action="store_true", help="torch.compile")
    how.add_argument("--reparam", action="store_true", help="merge batch norms and kernels first, where a model can")
    how.add_argument("--tf32", choices=("on", "off"), default="off", help="of float32 on CUDA (default: off)")
    how.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    written = parser.add_argument_group("files to write, besides the table on the terminal")
    for form in ("csv", "json", "markdown"):
        written.add_argument(f"--{form}", type=Path, metavar="FILE")
    written.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="published accuracy against speed and GFLOPs; with several --img-size, speed and memory against these",
    )


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit code or None."""
    if bool(args.models) == bool(args.source):
        raise UsageError("name models to measure, or a file with --from, and not both")

    from .._progress import track_stages
    from ..profiling import Setup, as_markdown, benchmark, read_results

    files = _files_of(args)
    stopped = False
    if args.source:
        rows = read_results(args.source)
    else:
        flags = ("device", "dtype", "amp", "channels_last", "compile", "reparam", "threads")
        setup = Setup(**{flag: getattr(args, flag) for flag in flags}, tf32=args.tf32 == "on")
        rows = []
        try:
            with track_stages() as show:
                for row in benchmark(
                    args.models,
                    setup,
                    compare=args.compare,
                    modes=args.mode,
                    img_sizes=args.img_size,
                    batch_sizes=args.batch_size,
                    backends=args.backend,
                    memory=args.memory,
                    rounds=args.rounds,
                    progress=show,
                ):
                    rows.append(row)
        except KeyboardInterrupt:
            if not rows:
                raise
            stopped = True
            say("Interrupted; this is what was measured before.", error=True)
    say(as_markdown(rows).rstrip("\n"))
    for file, write in files.items():
        write(file, rows)
    return 130 if stopped else int(all("failed" in row for row in rows))
