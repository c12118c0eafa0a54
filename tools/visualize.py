#!/usr/bin/env python
"""The same as `vssm visualize`."""

import sys

from vssm._cli import run
from vssm.commands import main_of, visualize

main = main_of(visualize)

if __name__ == "__main__":
    sys.exit(run(main))
