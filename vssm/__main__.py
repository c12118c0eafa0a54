"""`python -m vssm` is the command `vssm`."""

import sys

from .commands import start

if __name__ == "__main__":
    sys.exit(start())
