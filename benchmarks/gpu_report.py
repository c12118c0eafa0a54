"""The page and the picture of what `gpu.py` measured, with its targets."""

import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vssm._files import write_atomically, write_beside

STATES = {"done": "done", "failed": "FAILED", "stopped": "stopped", "skipped": "skipped", "not reached": "not reached"}
SWIN, VMAMBA = "swin_tiny_patch4_window7_224", "vmamba_tiny_s1l8"
SCAN, SCAN_LIMIT = ("n1_stage1_b128", "fused fwd"), 0.25
# Mode: how many times as many images a second as Swin-T.
AT_LEAST = {"infer": 1.36, "train": 0.9}


def write(results: Mapping, folder: Path) -> None:
    """Write gpu.md, and gpu.png where matplotlib is installed and there is something to draw."""
    drawn = draw(results, folder / "gpu.png")
    write_atomically(folder / "gpu.md", as_markdown(results, drawn).encode())


def rows_of(results: Mapping, part: str, key: str) -> list[dict]:
    return [row for row in results["parts"].get(part, {}).get("rows", []) if key in row]


def targets(results: Mapping) -> list[tuple[str, str, str, str]]:
    """(what, target, measured, verdict) of each target."""
    found = []
    gpu = results["parts"].get("ops", {}).get("ran", {}).get("gpu", "")
    scan = [r for r in rows_of(results, "ops", "op") if (r["op"], r["form"]) == SCAN and "milliseconds" in r]
    verdict = "not measured"
    if scan:
        verdict = "met" if scan[0]["milliseconds"] <= SCAN_LIMIT else "MISSED"
        if "H200" not in gpu:
            verdict = f"not judged: it is for an H200, not {gpu or 'a CPU'}"
    measured = f"{scan[0]['milliseconds']:.3g} ms" if scan else ""
    found.append(("fused scan of stage 1, batch 128, forward", f"<= {SCAN_LIMIT:g} ms on an H200", measured, verdict))
    for mode, least in AT_LEAST.items():
        for compiled in (False, True):
            speeds = {
                row["model"]: row["images_per_s"]
                for row in rows_of(results, "models", "images_per_s")
                if (row["mode"], row["compiled"], row["dtype"], row["batch"]) == (mode, compiled, "bfloat16", 128)
            }
            how = "compiled" if compiled else "eager"
            what = f"VMamba-T over Swin-T, {mode}, bfloat16, batch 128, {how}"
            if {SWIN, VMAMBA} <= set(speeds):
                ratio = speeds[VMAMBA] / speeds[SWIN]
                found.append((what, f">= {least:g}", f"{ratio:.2f}", "met" if ratio >= least else "MISSED"))
            else:
                found.append((what, f">= {least:g}", "", "not measured"))
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def _ms(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""


def as_markdown(results: Mapping, drawn: bool) -> str:
    parts = results["parts"]
    kinds = {json.dumps(part["ran"], sort_keys=True): part["ran"] for part in parts.values() if "ran" in part}
    lines = ["# What ran on this GPU", ""]
    lines += ["; ".join(f"{key}: {value}" for key, value in kind.items()) + "\n" for kind in kinds.values()]
    if len(kinds) > 1:
        lines += ["**The parts were measured under different conditions; do not compare them with one another.**", ""]
    if any(kind.get("device") == "cpu" for kind in kinds.values()):
        lines += ["**In small, in Triton's interpreter on a CPU: the times say nothing about a GPU.**", ""]
    lines += ["## Targets", "", *table(("what", "target", "measured", ""), targets(results))]
    lines += ["## Parts", ""]
    lines += table(
        ("part", "", "seconds", "rows", "why"),
        (
            (n, STATES.get(p["state"], p["state"]), p.get("seconds", ""), len(p["rows"]), p.get("why", ""))
            for n, p in parts.items()
        ),
    )
    failed = [row["failed"] for part in parts.values() for row in part["rows"] if "failed" in row]
    if failed:
        lines += ["## What failed", "", *(f"- {text}" for text in failed), ""]
    lines += [*_of_checks(results), *_of_ops(results), *_of_forms(results), *_of_graphs(results), *_of_models(results)]
    if drawn:
        lines += ["![times of scans beside their limits, and images a second](gpu.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def _of_checks(results: Mapping) -> list[str]:
    lines = []
    if files := rows_of(results, "tests", "file"):
        lines += ["## Tests", ""]
        keys = ("file", "passed", "skipped", "failing")
        lines += table(keys, ([row[key] for key in keys] for row in files))
    for part in ("opcheck", "poison", "determinism"):
        if rows := rows_of(results, part, "check"):
            good = sum("failed" not in row for row in rows)
            lines += [f"## {part.capitalize()}", "", f"{good} of {len(rows)} hold.", ""]
    return lines


def _of_ops(results: Mapping) -> list[str]:
    rows = rows_of(results, "ops", "op")
    lines = ["## Ops", ""] if rows else []
    for row in rows_of(results, "ops", "floor"):
        lines += [f"- {row['floor']}: {row['rate']:.4g}"]
    if rows:
        lines += ["", "A limit is the time that the bytes or the exponentials alone take at these rates.", ""]

    def cells(row: Mapping) -> list[str]:
        if "milliseconds" not in row:
            return [row["op"], row["form"], f"not run: {row.get('skipped') or row['failed']}", "", "", ""]
        limits = row.get("limits", {})
        share = f"{row['share']:.0%} ({row['bound']})" if limits else ""
        shown = [_ms(limits.get(kind)) for kind in ("bytes", "exponentials")]
        return [row["op"], row["form"], _ms(row["milliseconds"]), *shown, share]

    header = ("op", "form", "ms", "limit of bytes, ms", "limit of exponentials, ms", "share of the limit reached")
    return lines + (table(header, map(cells, rows)) if rows else [])


def _of_forms(results: Mapping) -> list[str]:
    rows = rows_of(results, "forms", "form")
    keys = ("stage", "N", "batch", "pass", "form")
    cells = (
        [*(row[key] for key in keys), _ms(row.get("milliseconds")) or row["skipped"], "yes" if row["chosen"] else ""]
        for row in rows
    )
    return ["## Forms of the fused scan", "", *table((*keys, "ms", "chosen"), cells)] if rows else []


def _of_graphs(results: Mapping) -> list[str]:
    rows = rows_of(results, "graphs", "graph")
    times = ("eager", "graph", "compiled")
    cells = ([row["graph"], *(_ms(row.get("milliseconds", {}).get(key)) for key in times)] for row in rows)
    return ["## CUDA graphs", "", *table(("what", *(f"{key}, ms" for key in times)), cells)] if rows else []


def _of_models(results: Mapping) -> list[str]:
    rows = rows_of(results, "models", "model")
    if not rows:
        return []
    by_cell: dict[tuple, dict[str, float]] = {}
    for row in rows:
        by_cell.setdefault(_cell(row), {})[row["model"]] = row.get("images_per_s")

    def cells(row: Mapping) -> list[str]:
        own, base = row.get("images_per_s"), by_cell[_cell(row)].get(SWIN)
        ms = row.get("milliseconds", {})
        spread = f"{ms['median']:.4g} ({ms['q1']:.4g} - {ms['q3']:.4g})" if ms else f"failed: {row['failed']}"
        ratio = f"{own / base:.2f}" if own and base else ""
        memory = f"{row['mebibytes']:.4g}" if row.get("mebibytes") is not None else ""
        dtype, compiled, mode, batch = _cell(row)
        how = "compiled" if compiled else "eager"
        return [row["model"], dtype, how, mode, batch, "" if own is None else f"{own:.4g}", ratio, spread, memory]

    header = ("model", "dtype", "", "mode", "batch", "images/s", "over Swin-T", "median ms (quartiles)", "peak MiB")
    return ["## Models", "", *table(header, map(cells, rows))]


def _cell(row: Mapping) -> tuple:
    return row["dtype"], row["compiled"], row["mode"], row["batch"]


def draw(results: Mapping, file: Path) -> bool:
    """Draw the scans beside their limits, and the models; tells whether there was something to draw, and with what."""
    limited = rows_of(results, "ops", "limits")
    scans = [row for row in limited if row["op"] == limited[0]["op"]]
    models = rows_of(results, "models", "images_per_s")
    if not (scans or models) or importlib.util.find_spec("matplotlib") is None:
        file.unlink(missing_ok=True)  # of an earlier run
        return False
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2 + 0.25 * (len(scans) + len(models))), layout="constrained")
    heights = [1 + len(rows) for rows in (scans, models) if rows]
    panels = iter(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if scans:
        panel, names = next(panels), [row["form"] for row in scans]
        panel.barh(names, [row["milliseconds"] for row in scans], color="C0", label="measured")
        panel.barh(names, [row["limits"][row["bound"]] for row in scans], color="C1", height=0.3, label="limit")
        panel.set(xscale="log", xlabel="ms", title=scans[0]["op"])
        panel.legend(fontsize=7)
        panel.invert_yaxis()
    if models:
        panel = next(panels)
        hows = [", ".join(map(str, _cell(row))).replace("True", "compiled").replace("False", "eager") for row in models]
        names = [f"{row['model']}, {how}" for row, how in zip(models, hows, strict=True)]
        panel.barh(names, [row["images_per_s"] for row in models], color="C2")
        panel.set(xscale="log", xlabel="images/s")
        panel.invert_yaxis()
    for panel in figure.axes:
        panel.tick_params(labelsize=6)
    write_beside(file, lambda part: figure.savefig(part, dpi=120))
    return True
