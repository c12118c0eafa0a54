#!/usr/bin/env python
"""The same as `vssm predict`."""

import sys

from vssm._cli import run
from vssm.commands import main_of, predict

main = main_of(predict)

if __name__ == "__main__":
    sys.exit(run(main))
