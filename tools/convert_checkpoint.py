#!/usr/bin/env python
"""Write the weights of an official checkpoint to a new file, under the names of this package.

python tools/convert_checkpoint.py vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba_tiny_s1l8.safetensors \
    --model vmamba_tiny_s1l8
"""

import argparse
import sys
from collections.abc import Sequence

from vssm._cli import run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert an official checkpoint to the names of this package.")
    parser.add_argument("source", metavar="IN", help="a checkpoint of a classifier, a detector or a segmentor")
    parser.add_argument("target", metavar="OUT", help="the file to write, .safetensors or .pth")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model, for example vmamba_tiny_s1l8")
    args = parser.parse_args(argv)

    from vssm._files import require_writable
    from vssm.models.convert import convert_checkpoint

    require_writable(args.target)
    print(convert_checkpoint(args.source, args.target, args.model))


if __name__ == "__main__":
    sys.exit(run(main))
