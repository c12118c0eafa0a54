"""Evaluate a checkpoint on a config's test data.

vssm test vmamba-pico_digits work_dirs/demo/epoch_30.pth
"""

import argparse

from ._names import completes, config_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    completes(parser.add_argument("config", metavar="CONFIG", help="a config by its name or its path"), config_names)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a checkpoint of that config's model; may be left out with --cfg-options model.model.pretrained=True",
    )
    parser.add_argument("--work-dir", help="folder for logs (default: work_dirs/<name of the config>)")
    parser.add_argument("--out", metavar="FILE.json", help="write the metrics to this file as well")
    parser.add_argument("--tta", action="store_true", help="average over the scales and flips of the config")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    from ..engine.run import test

    test(args.config, args.checkpoint, args.work_dir, args.out, args.cfg_options, args.launcher, args.tta)
