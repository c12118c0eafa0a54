#!/usr/bin/env python
"""The same as `vssm quantize`."""

import sys

from vssm._cli import run
from vssm.commands import main_of, quantize

main = main_of(quantize)

if __name__ == "__main__":
    sys.exit(run(main))
