#!/usr/bin/env python
"""The same as `vssm convert`."""

import sys

from vssm._cli import run
from vssm.commands import convert, main_of

main = main_of(convert)

if __name__ == "__main__":
    sys.exit(run(main))
