"""Print versions, devices and backends, and why others do not run: what the report of a bug needs.

vssm env
vssm env --json > environment.json
"""

import argparse

from .._cli import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    import json

    from ..environment import as_text, describe

    about = describe()
    say(json.dumps(about, indent=1) if args.json else as_text(about))
