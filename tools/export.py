#!/usr/bin/env python
"""The same as `vssm export`."""

import sys

from vssm._cli import run
from vssm.commands import export, main_of

main = main_of(export)

if __name__ == "__main__":
    sys.exit(run(main))
