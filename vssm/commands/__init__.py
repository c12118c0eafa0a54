"""The commands: `vssm COMMAND ...`, and the scripts of `tools/`, which are the same code.

A command is a module here. Its docstring is the help, its first line the one in the list of commands; its
``add_arguments(parser)`` declares the arguments, and its ``run(args)`` does the work and returns an exit code or None.
Arguments that do not go together are a :class:`~vssm._cli.UsageError`.

``vssm --help`` has to answer at once, so a command's module imports PyTorch, timm and what needs them in ``run``.
"""

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Sequence
from types import ModuleType

from .. import _cli
from .._optional import require
from .._version import __version__
from . import (
    benchmark,
    check,
    completion,
    config,
    convert,
    env,
    export,
    flops,
    fscil,
    listing,
    predict,
    prepare,
    quantize,
    test,
    train,
    visualize,
)

__all__ = ["COMMANDS", "build_parser", "command_help", "main", "main_of", "start"]

# In the order of the help.
COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "check": check,
    "test": test,
    "fscil": fscil,
    "predict": predict,
    "export": export,
    "quantize": quantize,
    "benchmark": benchmark,
    "flops": flops,
    "visualize": visualize,
    "convert": convert,
    "prepare": prepare,
    "list": listing,
    "config": config,
    "env": env,
    "completion": completion,
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``vssm``, with one of each command below it."""
    parser = argparse.ArgumentParser(prog="vssm", description="Vision state-space models: train, test, look inside.")
    parser.add_argument("--version", action="version", version=f"vssm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        help = module.__doc__.splitlines()[0]
        _fill(commands.add_parser(name, help=help, description=module.__doc__), module)
    return parser


def command_help(*names: str) -> str:
    """Return the help of a command, or of one below it, for example ``command_help("prepare", "check")``."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        build_parser().parse_args([*names, "--help"])
    return out.getvalue()


def _fill(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    # Kept with the parsed arguments, because what does not go together is told with the command's own usage.
    parser.set_defaults(command=module.run, usage_error=parser.error)


def _call(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int | None:
    # Read once, when PyTorch loads OpenMP. Threads that wait busily cost a shared machine up to ten times the run
    # time; threads that sleep cost an idle one next to nothing (docs/decisions/0025).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = parser.parse_args(argv)
    try:
        return args.command(args)
    except _cli.UsageError as error:
        args.usage_error(str(error))


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run ``vssm`` with the arguments given, or with those of the process; return an exit code or None."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, see `vssm completion`
        require("argcomplete", "completion").autocomplete(parser)
    return _call(parser, argv)


def start() -> int:
    """Run ``vssm``, and say mistakes in one sentence; return the exit code."""
    return _cli.run(main)


def main_of(module: ModuleType) -> Callable[[Sequence[str] | None], int | None]:
    """Make the main function of a script that is one command."""

    def script(argv: Sequence[str] | None = None) -> int | None:
        parser = argparse.ArgumentParser(description=module.__doc__)
        _fill(parser, module)
        return _call(parser, argv)

    return script
