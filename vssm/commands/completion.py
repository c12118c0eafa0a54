"""Print what makes a shell complete `vssm`: commands, options, models and configs.

eval "$(vssm completion bash)"
vssm completion fish > ~/.config/fish/completions/vssm.fish
"""

import argparse

from .._cli import say
from .._optional import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "powershell"))


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    argcomplete = require("argcomplete", "completion")
    say(argcomplete.shellcode(["vssm"], shell=args.shell).rstrip("\n"))
