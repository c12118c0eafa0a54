"""Print versions, devices and backends, and why others do not run: what the report of a bug needs.

vssm env
vssm env --json > environment.json
export nnUNet_extTrainer=$(vssm env --nnunet)
"""

import argparse

from .._cli import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--json", action="store_true", help="print it as JSON")
    which.add_argument("--nnunet", action="store_true", help="print the folder of the trainers for nnU-Net, no more")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    if args.nnunet:
        from ..medical.nnunet import trainers_folder

        say(str(trainers_folder()))
        return
    import json

    from ..environment import as_text, describe

    about = describe()
    say(json.dumps(about, indent=1) if args.json else as_text(about))
