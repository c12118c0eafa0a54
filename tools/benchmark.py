#!/usr/bin/env python
"""Time models side by side in one run: medians of interleaved rounds, inference, float32.

python tools/benchmark.py vmamba_tiny_s1l8 'vssd_*' --peers swin_tiny_patch4_window7_224 resnet50 --batch-size 1 8
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vssm._cli import run
from vssm._errors import UserError, did_you_mean


def names_of(patterns: Sequence[str]) -> list[str]:
    """Registered names, wildcards expanded, in the order given."""
    import timm

    import vssm  # noqa: F401

    names: list[str] = []
    for pattern in patterns:
        found = timm.list_models(pattern) if any(c in pattern for c in "*?[") else [pattern]
        for name in found:
            if not timm.is_model(name):
                raise UserError(f"timm knows no model '{name}'{did_you_mean(name, timm.list_models())}.")
        if not found:
            raise UserError(f"No model's name matches '{pattern}'.")
        names += [name for name in found if name not in names]
    return names


def measure(args: argparse.Namespace) -> dict:
    import timm
    import torch

    from vssm.profiling import paper_flops
    from vssm.profiling.throughput import environment, interleaved, nearest, operators, scan_backend, summary

    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device} cannot be used: {str(error).splitlines()[0]}") from error
    if args.threads:
        torch.set_num_threads(args.threads)
    wanted, peers = names_of(args.models), names_of(args.peers)
    models, sizes, gflops = {}, {}, {}
    for name in dict.fromkeys([*wanted, *peers]):
        print(f"building {name}", file=sys.stderr)
        model = timm.create_model(name).eval().to(device)
        models[name] = model
        sizes[name] = (3, args.img_size, args.img_size) if args.img_size else model.pretrained_cfg["input_size"]
        gflops[name] = paper_flops(model, sizes[name]) / 1e9

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty() or done == total:
            end = "\n" if done == total else ""
            sys.stderr.write(f"\rbatch {batch}: {done} of {total} timings{end}")
            sys.stderr.flush()

    rows = []
    with torch.inference_mode():
        for batch in args.batch_size:
            images = {size: torch.randn(batch, *size, device=device) for size in set(sizes.values())}

            def candidate(name: str, backend: str | None, images=images):
                def call():
                    if backend is None:
                        return models[name](images[sizes[name]])
                    with scan_backend(backend):
                        return models[name](images[sizes[name]])

                return call

            jobs = {(name, None): candidate(name, None) for name in models}
            if args.also_backend:
                ours = [n for n in wanted if n not in peers]
                jobs |= {(name, args.also_backend): candidate(name, args.also_backend) for name in ours}
            times = interleaved(jobs, device, args.rounds, progress)
            speeds = {job: batch / (summary(samples)["median"] / 1e3) for job, samples in times.items()}
            for (name, backend), samples in times.items():
                row = dict(
                    model=name,
                    input=list(sizes[name]),
                    batch=batch,
                    params=sum(p.numel() for p in models[name].parameters()),
                    gflops=round(gflops[name], 3),
                    images_per_s=round(speeds[name, backend], 2),
                    milliseconds=summary(samples),
                )
                if backend:
                    row["scan backend"] = backend
                elif peers and name not in peers:
                    peer = nearest(gflops[name], {p: gflops[p] for p in peers})
                    row |= dict(peer=peer, ratio=round(speeds[name, None] / speeds[peer, None], 3))
                    if row["ratio"] < 0.5:
                        spent = operators(models[name], images[sizes[name]])
                        row["operators"] = {op: round(share, 3) for op, share in spent}
                rows.append(row)
    return {"environment": environment(device), "rows": rows}


def as_markdown(results: dict) -> str:
    lines = ["; ".join(f"{key}: {value}" for key, value in results["environment"].items()), ""]
    columns = "model | M params | GFLOPs | input | batch | images/s | median ms (quartiles) | nearest peer | ratio"
    lines += [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]
    for row in results["rows"]:
        ms = row["milliseconds"]
        name = row["model"] + (f" (scan: {row['scan backend']})" if "scan backend" in row else "")
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        if "operators" in row:
            ratio += " (" + ", ".join(f"{op} {share:.0%}" for op, share in row["operators"].items()) + ")"
        cells = [
            name,
            f"{row['params'] / 1e6:.1f}",
            f"{row['gflops']:.2f}",
            "x".join(map(str, row["input"][1:])),
            row["batch"],
            f"{row['images_per_s']:.1f}",
            f"{ms['median']:.1f} ({ms['q1']:.1f} - {ms['q3']:.1f})",
            row.get("peer", ""),
            ratio,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names or wildcards of timm's registry")
    parser.add_argument("--peers", nargs="*", default=[], metavar="MODEL", help="compare with the nearest by GFLOPs")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--img-size", type=int, help="side of the square images (default: each model's own)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each model (default: 7)")
    parser.add_argument("--also-backend", metavar="NAME", help="time MODELs with this scan backend too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table here")
    args = parser.parse_args(argv)
    if args.rounds < 1 or min(args.batch_size) < 1:
        parser.error("--rounds and --batch-size must be at least 1")

    results = measure(args)
    table = as_markdown(results)
    print(table, end="")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(table)


if __name__ == "__main__":
    sys.exit(run(main))
