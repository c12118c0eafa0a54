#!/usr/bin/env python
"""The same as `vssm test`."""

import sys

from vssm._cli import run
from vssm.commands import main_of, test

main = main_of(test)

if __name__ == "__main__":
    sys.exit(run(main))
