#!/usr/bin/env python
"""Make small data sets from what installed packages ship, and check local copies of large ones.

python tools/prepare_data.py digits-coco data/digits-coco
python tools/prepare_data.py check coco data/coco
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from vssm._cli import run
from vssm._errors import MissingExtraError

# Each adds its subcommands by add_commands(subparsers), and sets `command` for each: a function of the arguments.
MODULES = ("vssm.mm.prepare", "vssm.medical.prepare")


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    missing = []
    for name in MODULES:
        try:
            importlib.import_module(name).add_commands(subparsers)
        except MissingExtraError as error:
            # The other modules' commands work without it.
            missing.append(f"More commands: {error}.")
    parser.epilog = " ".join(missing)
    args = parser.parse_args(argv)
    return args.command(args)


if __name__ == "__main__":
    sys.exit(run(main))
