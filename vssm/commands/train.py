"""Train a model from a config.

In one process, and in eight:

vssm train vmamba-pico_digits --work-dir work_dirs/demo
torchrun --nproc-per-node 8 -m vssm train vmamba-tiny-s1l8_8xb128_in1k --launcher pytorch
"""

import argparse

from ._names import completes, config_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    completes(parser.add_argument("config", metavar="CONFIG", help="a config by its name or its path"), config_names)
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


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    from ..engine.run import train

    train(args.config, args.work_dir, args.resume, args.amp, args.cfg_options, args.launcher)
