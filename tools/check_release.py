#!/usr/bin/env python
"""Check the files of a release before they go to the index; the workflow of releases calls this.

python tools/check_release.py dist --tag v0.1.0
"""

import argparse
import re
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

# Importing vssm takes PyTorch, which this needs not.
VERSION_FILE = Path(__file__).resolve().parents[1] / "vssm" / "_version.py"


def metadata(path: Path) -> str:
    """The metadata in a wheel or in a source archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            return archive.read(name).decode()
    with tarfile.open(path) as archive:
        return archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO").read().decode()


def problems(text: str, version: str) -> list[str]:
    """What is wrong with the metadata of a release, in sentences."""
    found = []
    fields = Parser().parsestr(text)
    if fields["Version"] != version:
        found.append(f"The version is {fields['Version']}, not {version}.")
    if "Repository" not in {url.partition(",")[0] for url in fields.get_all("Project-URL", [])}:
        found.append("The repository's address is missing; set VSSM_REPOSITORY when the files are built.")
    for target in re.findall(r"\]\(([^)\s]+)", fields.get_payload()):
        if not re.match(r"https?://|#", target):
            found.append(f"The README links to '{target}', which the index has not.")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of wheels and the source archive")
    parser.add_argument("--tag", default="", help="the tag of the release, v and the version")
    args = parser.parse_args(argv)

    version = re.search(r'"(.+)"', VERSION_FILE.read_text(encoding="utf-8"))[1]
    found = []
    if args.tag and args.tag != f"v{version}":
        found.append(f"The tag is {args.tag}, and the version is {version}.")
    files = sorted([*args.folder.glob("*.whl"), *args.folder.glob("*.tar.gz")])
    kinds = {"*-py3-none-any.whl": 1, "*manylinux*.whl": 2, "*macosx*.whl": 2, "*.tar.gz": 1}
    for pattern, wanted in kinds.items():
        there = len(list(args.folder.glob(pattern)))
        if there != wanted:
            found.append(f"There are {there} files {pattern}, not {wanted}.")
    for path in files:
        found += [f"{path.name}: {problem}" for problem in problems(metadata(path), version)]
    print("\n".join(found) or f"{len(files)} files of version {version} are in order.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
