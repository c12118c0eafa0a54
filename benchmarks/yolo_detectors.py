#!/usr/bin/env python
"""Images per second, parameters and FLOPs of Mamba YOLO beside small one-stage detectors of mmdet, in one run.

python benchmarks/yolo_detectors.py --threads 2 --output benchmarks/results/yolo_detectors_cpu

Times are medians of interleaved rounds of what a detector computes for one batch: backbone, neck and head, without the
choice of boxes. Weights are random. FLOPs count a multiply-add of a convolution or product as two, and the scans.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: docs/decisions/0025

import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import vssm.mm  # noqa: F401  (registers what the configs name)
from vssm._cli import run as run_tool
from vssm.engine import load_config
from vssm.mm.flops import dense_outputs
from vssm.profiling.flops import count
from vssm.profiling.throughput import environment, interleaved, summary

OURS = Path(__file__).parents[1] / "configs" / "detection"
DETECTORS = {
    "Mamba YOLO-T": OURS / "yolo_mambayolo-tiny_pafpn_300e_coco.py",
    "RTMDet-tiny": "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "YOLOX-tiny": "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
}


def detector(place: str | Path) -> nn.Module:
    cfg = load_config(str(place)) if isinstance(place, Path) else get_config(place)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def measure(args: argparse.Namespace) -> dict:
    device, size = torch.device(args.device), (3, args.img_size, args.img_size)
    models = {name: detector(place).to(device) for name, place in DETECTORS.items()}
    costs = {name: count(model, size, "flops", forward=dense_outputs).flops / 1e9 for name, model in models.items()}
    x = torch.rand(args.batch_size, *size, device=device)
    jobs = {name: lambda model=model: model.bbox_head(model.extract_feat(x)) for name, model in models.items()}
    with torch.inference_mode():
        samples = interleaved(jobs, device, args.rounds)
    rows = []
    for name, model in models.items():
        times = summary(samples[name])
        rows.append(
            {
                "detector": name,
                "M": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
                "GFLOPs": round(costs[name], 1),
                "milliseconds": times,
                "images/s": round(1000 * args.batch_size / times["median"], 2),
            }
        )
    settings = {key: getattr(args, key) for key in ("img_size", "batch_size", "rounds")}
    return {"environment": environment(device), "settings": settings, "rows": rows}


def as_markdown(results: dict) -> str:
    lines = ["# Mamba YOLO beside detectors of mmdet", ""]
    lines += ["; ".join(f"{k}: {v}" for k, v in {**results["environment"], **results["settings"]}.items()), ""]
    lines += ["| detector | M | GFLOPs | images/s | ms of a batch (quartiles) |", "|---" * 5 + "|"]
    for row in results["rows"]:
        ms = row["milliseconds"]
        spread = f"{ms['median']:.4g} ({ms['q1']:.4g} - {ms['q3']:.4g})"
        lines.append(f"| {row['detector']} | {row['M']:.2f} | {row['GFLOPs']:.1f} | {row['images/s']:.2f} | {spread} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img-size", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, metavar="STEM", help="also write STEM.md and STEM.json")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = measure(args)
    table = as_markdown(results)
    print(table, end="")
    if args.output:
        args.output.with_suffix(".md").write_text(table)
        args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
