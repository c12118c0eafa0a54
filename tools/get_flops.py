#!/usr/bin/env python
"""The same as `vssm flops`."""

import sys

from vssm._cli import run
from vssm.commands import flops, main_of

main = main_of(flops)

if __name__ == "__main__":
    sys.exit(run(main))
