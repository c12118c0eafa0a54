#!/usr/bin/env python
"""Download every published weight, load all of it, and write a table of what came of it.

python tools/check_weights.py --out weights.md 'vmamba_tiny*'

A weight whose SHA256 is not in vssm/published yet is shown with the one that it has. The exit code is 1 if any weight
cannot be fetched, does not fit, or is another file than the one recorded. Files are deleted as soon as they are
checked.
"""

import argparse
import fnmatch
import hashlib
import json
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vssm._cli import run

REPO = Path(__file__).resolve().parents[1]
_HUB = "https://huggingface.co/"
# Pages for people: what they give a program is no checkpoint.
_BY_HAND = ("https://drive.google.com/",)
FITS, HAND, FAILED = "fits", "by hand", "failed"


@dataclass(frozen=True)
class Weight:
    """A file that somebody published.

    Attributes:
        name: Of the model with the tag of its training, or the path of a config in this repository.
        address: Of the file; empty where it cannot be downloaded by a program.
        note: Where it is then.
        sha256: Of the file, or how it begins; empty where it is not recorded.
    """

    name: str
    address: str
    note: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Row:
    """What came of a weight: its name and address, "fits", "by hand" or "failed", and why; its size and hash."""

    name: str
    address: str
    result: str = FITS
    why: str = ""
    size: int = 0
    sha256: str = ""
    recorded: bool = False


def weights() -> Iterator[Weight]:
    """All weights of which the models and the data files say where they are."""
    from vssm.models import families
    from vssm.published import COLLECTIONS, PUBLISHED, RUNS

    for family in families():
        for model, default in family.module.default_cfgs.items():
            for tag, cfg in default.cfgs.items():
                known = PUBLISHED.get(f"{model}.{tag}")
                if known is None:
                    continue
                hub = (
                    cfg.hf_hub_id and f"{_HUB}{cfg.hf_hub_id}/resolve/main/{cfg.hf_hub_filename or 'model.safetensors'}"
                )
                yield _weight(f"{model}.{tag}", hub or cfg.url or "", cfg.description or "", known.sha256)
    for config, entry in RUNS.items():
        note = entry.weights_note or COLLECTIONS[entry.collection].weights
        if entry.weights or note:
            yield _weight(config, entry.weights, note, entry.sha256)


def _weight(name: str, address: str, note: str, sha256: str) -> Weight:
    if address.startswith(_BY_HAND):
        address, note = "", address
    in_name = re.search(r"-([0-9a-f]{8,64})\.\w+$", address)
    return Weight(name, address, note, sha256 or (in_name[1] if in_name else ""))


def check(weight: Weight, folder: Path) -> Row:
    """Fetch a weight into a folder, compare its hash, load it strictly, and delete it."""
    row = Row(weight.name, weight.address, recorded=bool(weight.sha256))
    if not weight.address:
        return replace(row, result=HAND, why=weight.note)
    file = folder / (Path(weight.address).name or "weights")
    try:
        from torch.hub import download_url_to_file

        download_url_to_file(weight.address, str(file), progress=False)
        row = replace(row, size=file.stat().st_size, sha256=_sha256(file))
        if not row.sha256.startswith(weight.sha256):
            return replace(row, result=FAILED, why=f"another file: its SHA256 is not {weight.sha256}")
        _load(weight.name, file)
    except Exception as error:  # whatever it is, the other weights are checked
        return replace(row, result=FAILED, why=" ".join(f"{type(error).__name__}: {error}".split()))
    finally:
        file.unlink(missing_ok=True)
    return row


def _load(name: str, file: Path) -> None:
    if not name.startswith("configs/"):
        from vssm.models.create import create_trained_model

        create_trained_model(name, file)
        return
    from vssm.engine.config import load_config
    from vssm.engine.models import build_trained

    build_trained(load_config(str(REPO / name)), file)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown, those that failed first."""
    lines = ["| weights | result | why | MB | SHA256 | recorded |", "| --- | --- | --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: row.result != FAILED):
        name = f"[{row.name}]({row.address})" if row.address else row.name
        recorded = "–" if not row.sha256 else "yes" if row.recorded else "no"
        size = f"{row.size / 1e6:.1f}" if row.size else "–"
        why = row.why.replace("|", "\\|")
        lines.append(f"| {name} | {row.result} | {why} | {size} | {row.sha256 or '–'} | {recorded} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="NAME", default=["*"], help="only these; wildcards are allowed")
    parser.add_argument("--out", type=Path, default="weights.md", help="the table to write (default: weights.md)")
    parser.add_argument("--json", type=Path, help="a JSON file to write the rows to as well")
    parser.add_argument("--list", action="store_true", help="print the names and addresses, and fetch nothing")
    args = parser.parse_args(argv)

    from vssm._cli import say
    from vssm._errors import UserError
    from vssm._files import require_writable, write_atomically

    wanted = [w for w in weights() if any(fnmatch.fnmatch(w.name, pattern) for pattern in args.patterns)]
    if not wanted:
        raise UserError(f"No published weights are named {' or '.join(args.patterns)}.")
    if args.list:
        for weight in wanted:
            say(f"{weight.name}  {weight.address or weight.note}")
        return 0
    for path in filter(None, (args.out, args.json)):
        require_writable(path)
    socket.setdefaulttimeout(60)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for weight in wanted:
            rows.append(check(weight, Path(folder)))
            say(f"{rows[-1].result:8} {weight.name}  {rows[-1].why}".rstrip())
    write_atomically(args.out, table(rows).encode())
    if args.json:
        write_atomically(args.json, json.dumps([asdict(row) for row in rows], indent=1).encode())
    failed = sum(row.result == FAILED for row in rows)
    say(f"{len(rows)} weights, {failed} failed; the table is in {args.out}.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run(main))
