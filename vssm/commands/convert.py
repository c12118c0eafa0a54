"""Write the weights of an official checkpoint to a new file, under the names of this package.

vssm convert vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba_tiny_s1l8.safetensors --model vmamba_tiny_s1l8
vssm convert vssm1_tiny_0230s_ckpt_epoch_264.pth --hub vmamba_tiny_s1l8/ --model vmamba_tiny_s1l8
"""

import argparse

from .._cli import UsageError, say
from ._names import completes, model_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="IN", help="a checkpoint of a classifier, a detector or a segmentor")
    parser.add_argument("target", metavar="OUT", nargs="?", help="the file to write, .safetensors or .pth")
    parser.add_argument(
        "--hub",
        metavar="FOLDER",
        help="in place of OUT: a new folder with weights, config and model card, for the Hugging Face hub and timm",
    )
    about = "the model, for example vmamba_tiny_s1l8"
    completes(parser.add_argument("--model", required=True, metavar="NAME", help=about), model_names)


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    if bool(args.target) == bool(args.hub):
        raise UsageError("name either a file to write or, with --hub, a folder")
    from .._files import require_writable
    from ..models.convert import convert_checkpoint

    if args.hub:
        from ..hub import write_hub_folder

        require_writable(args.hub, folder=True)
        say(write_hub_folder(args.source, args.hub, args.model))
        return
    require_writable(args.target)
    say(convert_checkpoint(args.source, args.target, args.model))
