#!/usr/bin/env python
"""Train a model from a config.

In one process, and in eight:

    python tools/train.py configs/classification/vmamba-pico_digits.py --work-dir work_dirs/demo
    torchrun --nproc-per-node 8 tools/train.py configs/classification/vmamba-tiny-s1l8_8xb128_in1k.py --launcher pytorch
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
    parser = argparse.ArgumentParser(description="Train a model from a config.")
    parser.add_argument("config", help="a .py config")
    parser.add_argument("--work-dir", help="folder for checkpoints and logs (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="go on from a checkpoint; without PATH from the newest readable one in the work dir",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 on a CPU")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none")
    args = parser.parse_args(argv)

    # Imported here, so that a missing extra is reported in one sentence like any other mistake.
    from vssm.engine.run import train

    train(args.config, args.work_dir, args.resume, args.amp, args.cfg_options, args.launcher)


if __name__ == "__main__":
    sys.exit(run(main))
