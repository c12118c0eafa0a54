#!/usr/bin/env python
"""Evaluate a checkpoint on a config's test data.

python tools/test.py configs/classification/vmamba-pico_digits.py work_dirs/demo/epoch_30.pth
"""

import argparse
import sys
from collections.abc import Sequence

from vssm._cli import run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on a config's test data.")
    parser.add_argument("config", help="a .py config")
    parser.add_argument("checkpoint", help="a checkpoint of that config's model")
    parser.add_argument("--work-dir", help="folder for logs (default: work_dirs/<name of the config>)")
    parser.add_argument("--out", metavar="FILE.json", help="write the metrics to this file as well")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none")
    args = parser.parse_args(argv)

    from vssm.engine.run import test

    test(args.config, args.checkpoint, args.work_dir, args.out, args.cfg_options, args.launcher)


if __name__ == "__main__":
    sys.exit(run(main))
