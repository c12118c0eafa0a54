"""Write the weights of an official checkpoint to a new file, under the names of this package.

vssm convert vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba_tiny_s1l8.safetensors --model vmamba_tiny_s1l8
"""

import argparse

from .._cli import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="IN", help="a checkpoint of a classifier, a detector or a segmentor")
    parser.add_argument("target", metavar="OUT", help="the file to write, .safetensors or .pth")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model, for example vmamba_tiny_s1l8")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    from .._files import require_writable
    from ..models.convert import convert_checkpoint

    require_writable(args.target)
    say(convert_checkpoint(args.source, args.target, args.model))
