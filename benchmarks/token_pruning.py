#!/usr/bin/env python
"""Time of plain nets against the share of patches that each pruning site keeps, with counted operations beside it.

python benchmarks/token_pruning.py --threads 2 --output benchmarks/results/token_pruning_cpu

Times are medians of interleaved rounds, of random weights and images. Sites are at the same shares of the depth as in
the released Vim-S: behind the blocks 5, 10 and 15 of 24, counted from 1.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: docs/decisions/0025

import timm
import torch

import vssm  # noqa: F401 - registers the models
from vssm._cli import run as run_tool
from vssm.models import PlainBackbone
from vssm.profiling import count
from vssm.profiling.throughput import environment, interleaved, summary

MODELS = ("vim_small_patch16_224", "plainmamba_l3")
KEEPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def default_sites(depth: int) -> list[int]:
    return sorted({max(round(depth * i * 5 / 24) - 1, 0) for i in (1, 2, 3)})


def pruned(name: str, keep: float, sites: Sequence[int] | None, decay: bool) -> PlainBackbone:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    model.set_pruning(default_sites(len(model.blocks)) if sites is None else sites, keep, decay)
    return model


def measure(args: argparse.Namespace) -> dict:
    device, rows = torch.device(args.device), []
    for name in args.models:
        images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
        models = {keep: pruned(name, keep, args.sites, args.decay).to(device) for keep in args.keeps}

        def run(model: PlainBackbone, images: torch.Tensor = images) -> object:
            with torch.inference_mode():
                return model(images)

        print(name, file=sys.stderr)
        times = interleaved({keep: lambda m=m, run=run: run(m) for keep, m in models.items()}, device, args.rounds)
        size = (3, args.img_size, args.img_size)
        for keep, model in models.items():
            left = [int(kept[0].sum()) for kept in model.kept_patches(images[:1])]
            cost = {kind: count(model, size, kind).flops for kind in ("paper", "macs")}
            sites = list(model.pruning.sites) if model.pruning else []
            row = {"model": name, "keep": keep, "sites": sites, "patches": left, **cost}
            rows.append({**row, "milliseconds": summary(times[keep])})
    settings = {key: getattr(args, key) for key in ("batch_size", "img_size", "rounds", "decay")}
    return {"environment": environment(device), "settings": settings, "rows": rows}


def as_markdown(results: dict) -> str:
    lines = ["; ".join(f"{k}: {v}" for k, v in {**results["environment"], **results["settings"]}.items())]
    for name in dict.fromkeys(row["model"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["model"] == name]
        whole = max(rows, key=lambda row: row["keep"])
        sites = max((row["sites"] for row in rows), key=len)
        lines += ["", f"### {name}, pruned behind blocks {', '.join(map(str, sites))}, counted from 0", ""]
        lines += ["| keep | patches left | GFLOPs (paper) | share | GMACs | ms, median | share |", "|---" * 7 + "|"]
        for row in rows:
            middle = row["milliseconds"]["median"]
            cells = [
                f"{row['keep']:g}",
                ", ".join(map(str, row["patches"])) or "all",
                f"{row['paper'] / 1e9:.3g}",
                f"{row['paper'] / whole['paper']:.0%}",
                f"{row['macs'] / 1e9:.3g}",
                f"{middle:.4g}",
                f"{middle / whole['milliseconds']['median']:.0%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="plain nets of the registry")
    parser.add_argument("--keeps", type=float, nargs="+", default=list(KEEPS), help="shares that each site keeps")
    parser.add_argument("--sites", type=int, nargs="+", help="blocks behind which to prune, counted from 0")
    parser.add_argument("--decay", action="store_true", help="let states decay over the gaps")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="STEM", help="also write STEM.md and STEM.json")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.batch_size < 1 or not all(0 < keep <= 1 for keep in args.keeps):
        parser.error("--rounds and --batch-size must be at least 1, and --keeps above 0 and at most 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.keeps = sorted({1.0, *args.keeps}, reverse=True)
    results = measure(args)
    table = as_markdown(results)
    print(table, end="")
    if args.output:
        args.output.with_suffix(".md").write_text(table)
        args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
