#!/usr/bin/env python
"""The same as `vssm benchmark`."""

import sys

from vssm._cli import run
from vssm.commands import benchmark, main_of

main = main_of(benchmark)

if __name__ == "__main__":
    sys.exit(run(main))
