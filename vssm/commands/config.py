"""Copy a config to change: one file with everything that it inherits, which works in any folder.

vssm config mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco --out my.py
vssm config vmamba-pico_digits --cfg-options train_cfg.max_epochs=5
"""

import argparse
import os
from pathlib import Path

from .._cli import UsageError, say
from .._errors import UserError
from .._version import __version__
from ._names import completes, config_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    completes(parser.add_argument("config", metavar="CONFIG", help="a config by its name or its path"), config_names)
    parser.add_argument("--out", metavar="FILE", help="the .py file to write (default: print the config)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="options laid over the config")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    args.out = args.out and os.path.expanduser(args.out)
    if args.out is not None and Path(args.out).suffix != ".py":
        raise UsageError(f"--out {args.out} must end in .py")
    if args.out is not None and Path(args.out).exists() and not args.overwrite:
        raise UserError(f"The file '{args.out}' exists; say --overwrite to replace it.")

    from .._files import require_writable, write_atomically
    from .._optional import require

    require("mmengine", "train")
    from ..engine.config import load_config
    from ..engine.run import parse_options

    if args.out is not None:
        require_writable(args.out)
    cfg = load_config(args.config, parse_options(args.cfg_options))
    name = Path(cfg.filename).stem
    head = f"# {name} of vssm {__version__}, with everything that it inherits.\n"
    text = head + _opening_comment(Path(cfg.filename)) + cfg.pretty_text.rstrip("\n")
    if args.out is None:
        say(text)
        return
    write_atomically(args.out, f"{text}\n".encode())
    say(f"{args.out}: {name}, to be given by this path in its place.")


def _opening_comment(file: Path) -> str:
    """The comment that a config opens with: where its numbers come from."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    opening = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:opening])
