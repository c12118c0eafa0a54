"""Print versions, devices and backends: what the report of a bug needs.

vssm env
"""

import argparse

from .._cli import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    for package in ("vssm", "torch", "timm", "numpy", "triton"):
        try:
            say(f"{package} {version(package)}")
        except PackageNotFoundError:
            say(f"{package} is not installed")
    say(f"Python {platform.python_version()} on {platform.platform()}")
