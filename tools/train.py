#!/usr/bin/env python
"""The same as `vssm train`."""

import sys

from vssm._cli import run
from vssm.commands import main_of, train

main = main_of(train)

if __name__ == "__main__":
    sys.exit(run(main))
