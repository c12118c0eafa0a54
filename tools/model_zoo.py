#!/usr/bin/env python
"""Write model_zoo.md and the tables of the configs' pages; `make zoo` calls this.

python tools/model_zoo.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vssm._cli import run

REPO = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo", type=Path, default=REPO, help="a checkout (default: the one this file is in)")
    args = parser.parse_args(argv)

    from vssm.profiling.results import write_text
    from vssm.zoo import pages

    for page, text in pages(args.repo).items():
        write_text(page, text)
        print(page.relative_to(args.repo))


if __name__ == "__main__":
    sys.exit(run(main))
