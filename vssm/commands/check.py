"""Read a config's data as a run would, and say what is there, before training does.

vssm check my-detector.py
vssm check vmamba-tiny-s1l8_finetune-folder --cfg-options model.model.num_classes=5
"""

import argparse

from ._names import completes, config_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    completes(parser.add_argument("config", metavar="CONFIG", help="a config by its name or its path"), config_names)
    about = "samples of each part to read, evenly spread; 0: all (default: 100)"
    parser.add_argument("--samples", type=int, default=100, metavar="N", help=about)
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    from ..engine.run import check

    check(args.config, args.cfg_options, args.samples)
