#!/usr/bin/env python
"""Evaluate a checkpoint on a config's test data.

python tools/test.py configs/classification/vmamba-pico_digits.py work_dirs/demo/epoch_30.pth
"""

import argparse
import os
import sys
from collections.abc import Sequence

# Read once, when torch loads OpenMP. Threads that wait busily cost a shared machine up to ten times the run time;
# threads that sleep cost an idle one next to nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from vssm._cli import run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on a config's test data.")
    parser.add_argument("config", help="a .py config")
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
    args = parser.parse_args(argv)

    from vssm.engine.run import test

    test(args.config, args.checkpoint, args.work_dir, args.out, args.cfg_options, args.launcher, args.tta)


if __name__ == "__main__":
    sys.exit(run(main))
