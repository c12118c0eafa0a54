#!/usr/bin/env python
"""The same as `vssm prepare`."""

import sys

from vssm._cli import run
from vssm.commands import main_of, prepare

main = main_of(prepare)

if __name__ == "__main__":
    sys.exit(run(main))
