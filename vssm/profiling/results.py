"""Rows of figures as a table, as files, and back."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._errors import UserError
from .._files import write_beside

__all__ = ["as_csv", "as_json", "as_markdown", "read_results", "write_text"]

# What the rows hold themselves; everything else says what ran.
FIGURES = (
    "model",
    "input",
    "batch",
    "params",
    "gflops",
    "images_per_s",
    "milliseconds",
    "mebibytes",
    "memory failed",
    "peer",
    "ratio",
    "ratio q1",
    "ratio q3",
    "operators",
    "failed",
)
NEEDED = {"model", "input", "batch"}
MEASURED = {"params", "gflops", "images_per_s", "milliseconds"}
# Of files that were written before rows said it.
EARLIER = {"mode": "infer", "dtype": "float32"}


def shared(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that are the same in all rows."""
    return {
        key: value
        for key, value in rows[0].items()
        if key not in FIGURES and all(key in row and row[key] == value for row in rows)
    }


def _word(value: Any) -> str:
    """A setting in a table: "yes", "no", "none" or itself."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _of_memory(row: Mapping[str, Any]) -> str:
    if row.get("mebibytes") is not None:
        return f"{row['mebibytes']:.4g}"
    return f"failed: {row['memory failed']}" if "memory failed" in row else ""


def _of_ratio(row: Mapping[str, Any]) -> str:
    if "ratio" not in row:
        return ""
    text = f"{row['ratio']:.2f}"
    if "ratio q1" in row:
        text += f" ({row['ratio q1']:.2f} - {row['ratio q3']:.2f})"
    if "operators" in row:
        text += " (" + ", ".join(f"{op} {share:.0%}" for op, share in row["operators"].items()) + ")"
    return text


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line that says what ran, and a table with a column for what differs from row to row."""
    common = shared(rows)
    differing = [key for key in dict.fromkeys(k for row in rows for k in row) if key not in (*FIGURES, *common)]
    with_memory = any("mebibytes" in row for row in rows)
    with_ratio = any("ratio" in row for row in rows)
    header = ["model", *differing, "M params", "GFLOPs", "input", "batch", "images/s", "median ms (quartiles)"]
    table = [[*header, *["peak MiB"] * with_memory, *["compared with", "ratio (quartiles)"] * with_ratio]]
    for row in rows:
        cells = [row["model"], *(_word(row.get(key)) for key in differing)]
        cells.append("" if row.get("params") is None else f"{row['params'] / 1e6:.1f}")
        cells.append("" if row.get("gflops") is None else f"{row['gflops']:.2f}")
        cells += ["x".join(map(str, row["input"][1:])), str(row["batch"])]
        if "failed" in row:
            cells += ["failed", row["failed"]]
        else:
            ms = row["milliseconds"]
            cells += [f"{row['images_per_s']:.1f}", f"{ms['median']:.1f} ({ms['q1']:.1f} - {ms['q3']:.1f})"]
        cells += [_of_memory(row)] * with_memory
        cells += [row.get("peer", ""), _of_ratio(row)] * with_ratio
        table.append([cell.replace("|", "\\|") for cell in cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in table]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "; ".join(f"{key}: {_word(value)}" for key, value in common.items()) + "\n\n" + "\n".join(lines) + "\n"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if key == "milliseconds":
            cells |= {"rounds" if name == "rounds" else f"ms {name}": number for name, number in value.items()}
        elif key == "operators":
            cells[key] = ", ".join(f"{op} {share}" for op, share in value.items())
        else:
            cells[key] = "x".join(map(str, value)) if key == "input" else value
    return cells


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every key of the rows as a column; times in milliseconds."""
    flat = [_flat(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as they are, after what they share."""
    return json.dumps({"environment": shared(rows), "rows": rows}, indent=1) + "\n"


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file that appears whole or not at all."""
    write_beside(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a file that `as_json` made, each with what ran.

    Raises:
        UserError: No such file, or one of another kind.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not a JSON file.") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and set(row) >= NEEDED for row in rows):
        raise UserError(f"'{path}' holds no results of `vssm benchmark`.")
    rows = [{**EARLIER, **content.get("environment", {}), **row} for row in rows]
    for row in rows:
        if "failed" not in row and not set(row) >= MEASURED:
            raise UserError(f"'{path}' has a row of {row['model']} without {min(MEASURED - set(row))}.")
    return rows
