"""Learn new classes from a few images each, session by session.

The config's base session is trained first. Prints the accuracy after each session; writes it as JSON and as a picture:

vssm train projector_vmamba-pico_digits --work-dir work_dirs/few
vssm fscil projector_vmamba-pico_digits work_dirs/few/epoch_8.pth --work-dir work_dirs/few --seeds 0 1 2
"""

import argparse

from ._names import completes, config_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    completes(parser.add_argument("config", metavar="CONFIG", help="a config by its name or its path"), config_names)
    parser.add_argument("checkpoint", help="a checkpoint of the config's base session")
    parser.add_argument("--work-dir", help="folder for what is written (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="repeat with these seeds (default: 0)"
    )
    parser.add_argument("--device", help="where to run, cpu or cuda:0 for example (default: a GPU if there is one)")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say."""
    from ..fewshot.run import fscil

    fscil(args.config, args.checkpoint, args.work_dir, args.seeds, args.device, args.cfg_options)
