#!/usr/bin/env python
"""Time and peak memory of SS2D and of softmax attention of the same width, against the number of tokens.

python benchmarks/linear_cost.py --threads 2 --output benchmarks/results/linear_cost_cpu

Times are medians of interleaved rounds. Memory is the peak of one call in a process of its own, without the weights and
the input.
"""

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: docs/decisions/0025

import torch
from torch import Tensor, nn

from vssm._cli import run as run_tool
from vssm.profiling.memory import output_apart, peak_memory
from vssm.profiling.throughput import environment, interleaved, summary

HEAD_DIM = 32
MIXERS = ("SS2D", "fused attention", "plain attention")
PASSES = ("forward", "forward + backward")
# How many maps of scores plain attention holds at a time: before and after the softmax, and their gradients.
SCORE_MAPS = {"forward": 2, "forward + backward": 4}
# Larger maps are timed only twice, because attention takes many seconds there.
SLOW_SIDE = 128
# The exponent comes from the maps that have at least 1/LARGER of the largest map's tokens; on smaller ones overhead
# takes most of the time.
LARGER = 32


class Attention(nn.Module):
    """Attention of timm's on a map (B, H, W, C)."""

    def __init__(self, dim: int, fused: bool):
        from timm.models.vision_transformer import Attention

        super().__init__()
        self.attention = Attention(dim, num_heads=dim // HEAD_DIM)
        self.attention.fused_attn = fused

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(1, 2)).view_as(x)


def make_mixer(name: str, dim: int) -> nn.Module:
    from vssm.scans import SS2D

    torch.manual_seed(0)
    if name == "SS2D":
        return SS2D(dim, ssm_ratio=1.0)  # as in VMamba's s1l8
    return Attention(dim, fused=name == "fused attention")


def make_call(mixer: nn.Module, side: int, args: argparse.Namespace, backward: bool) -> Callable[[], object]:
    dtype = getattr(torch, args.dtype)
    x = torch.randn(args.batch_size, side, side, args.dim, device=args.device, dtype=dtype, requires_grad=backward)
    mixer = mixer.to(args.device, dtype)
    inputs = [x, *mixer.parameters()]

    def forward() -> object:
        with torch.inference_mode():
            return mixer(x)

    def both() -> object:
        return torch.autograd.grad(mixer(x).float().square().mean(), inputs)

    return both if backward else forward


def memory_here(args: argparse.Namespace, name: str, which: str, sides: Sequence[int]) -> list[int]:
    mixer, backward = make_mixer(name, args.dim), which == PASSES[1]
    make_call(mixer, 8, args, backward)()  # loads the libraries
    return [peak_memory(make_call(mixer, side, args, backward), torch.device(args.device)) for side in sorted(sides)]


def memory_apart(argv: Sequence[str], name: str, which: str, sides: Sequence[int]) -> dict[int, int]:
    """Runs `memory_here` in a process of its own."""
    taken = output_apart(__file__, *argv, "--memory-of", name, which, ",".join(map(str, sides)))
    return dict(zip(sorted(sides), json.loads(taken), strict=True))


def reason_to_skip(name: str, which: str, side: int, args: argparse.Namespace, rows: list[dict]) -> str | None:
    if name == "plain attention":
        size = torch.empty((), dtype=getattr(torch, args.dtype)).element_size()
        scores = SCORE_MAPS[which] * args.batch_size * (args.dim // HEAD_DIM) * side**4 * size
        if scores > args.max_gib * 2**30:
            return f"needs {scores / 2**30:.0f} GiB for its scores"
    if name != "SS2D":
        before = [row for row in rows if row["mixer"] == name and row["pass"] == which and "milliseconds" in row]
        if before:
            seconds = before[-1]["milliseconds"]["median"] / 1e3 * (side**2 / before[-1]["tokens"]) ** 2
            if seconds > args.max_seconds:
                return f"would take about {seconds:.0f} s a call"
    return None


def measure(args: argparse.Namespace, argv: Sequence[str]) -> dict:
    device = torch.device(args.device)
    mixers = {name: make_mixer(name, args.dim) for name in MIXERS}
    rows: list[dict] = []
    for which in PASSES:
        for side in args.sides:
            print(f"{which}, {side} x {side}", file=sys.stderr)
            skipped = {name: reason_to_skip(name, which, side, args, rows) for name in MIXERS}
            run = [name for name in MIXERS if skipped[name] is None]
            jobs = {name: make_call(mixers[name], side, args, which == PASSES[1]) for name in run}
            times = interleaved(jobs, device, args.rounds if side <= SLOW_SIDE else min(args.rounds, 2))
            del jobs
            for name in MIXERS:
                cost = {"milliseconds": summary(times[name])} if name in run else {"skipped": skipped[name]}
                rows.append({"mixer": name, "pass": which, "side": side, "tokens": side**2, **cost})
        for name in MIXERS:
            done = [r for r in rows if r["mixer"] == name and r["pass"] == which and "milliseconds" in r]
            taken = memory_apart(argv, name, which, [row["side"] for row in done])
            for row in done:
                row["mebibytes"] = round(taken[row["side"]] / 2**20, 2)
    settings = {key: getattr(args, key) for key in ("dim", "batch_size", "dtype", "rounds")}
    return {"environment": environment(device), "settings": settings, "rows": rows}


def growth(rows: list[dict], value: Callable[[dict], float]) -> float | None:
    """The exponent of the cost: the slope through the larger maps on log axes, 1 if linear and 2 if quadratic."""
    done = [row for row in rows if "milliseconds" in row and value(row) > 0]
    done = [row for row in done if row["tokens"] * LARGER >= done[-1]["tokens"]]
    if len(done) < 2:
        return None
    tokens, costs = [math.log(row["tokens"]) for row in done], [math.log(value(row)) for row in done]
    return statistics.linear_regression(tokens, costs).slope


MEASURES = {"time": ("ms", lambda row: row["milliseconds"]["median"]), "memory": ("MiB", lambda row: row["mebibytes"])}


def as_markdown(results: dict) -> str:
    # A page begins with its heading: a first line like "torch: 2.6" would be taken for what describes the page.
    lines = ["# Cost of a mixer against the number of tokens", ""]
    lines += ["; ".join(f"{k}: {v}" for k, v in {**results["environment"], **results["settings"]}.items())]
    sides = list(dict.fromkeys(row["side"] for row in results["rows"]))
    for which in PASSES:
        for measured, (unit, value) in MEASURES.items():
            lines += ["", f"## {measured}, {which}, {unit}", ""]
            lines += ["| tokens | " + " | ".join(f"{side**2:,}" for side in sides) + " | exponent |"]
            lines += ["|---" * (len(sides) + 2) + "|"]
            for name in MIXERS:
                rows = [row for row in results["rows"] if row["mixer"] == name and row["pass"] == which]
                cells = [f"{value(row):.3g}" if "milliseconds" in row else row["skipped"] for row in rows]
                exponent = growth(rows, value)
                cells.append("" if exponent is None else f"{exponent:.2f}")
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for panel, (measured, (unit, value)) in zip(panels, MEASURES.items(), strict=True):
        for colour, name in enumerate(MIXERS):
            for which, style in zip(PASSES, ("-", "--"), strict=True):
                rows = [row for row in results["rows"] if row["mixer"] == name and row["pass"] == which]
                rows = [row for row in rows if "milliseconds" in row]
                tokens, values = [row["tokens"] for row in rows], [value(row) for row in rows]
                panel.loglog(tokens, values, style, marker="o", ms=4, color=f"C{colour}", label=f"{name}, {which}")
        panel.set(xlabel="tokens", ylabel=f"{measured}, {unit}")
        panel.grid(True, which="major", alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[14, 28, 56, 112, 181, 256], help="sides of the square maps"
    )
    parser.add_argument("--dim", type=int, default=96, help=f"width, a multiple of {HEAD_DIM} (default: 96)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-gib", type=float, default=8, help="skip plain attention whose scores need more")
    parser.add_argument("--max-seconds", type=float, default=30, help="skip attention whose call would take longer")
    parser.add_argument("--output", type=Path, metavar="STEM", help="also write STEM.md, STEM.json and STEM.png")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.batch_size < 1 or min(args.sides) < 1:
        parser.error("--rounds, --batch-size and --sides must be at least 1")
    if args.dim < HEAD_DIM or args.dim % HEAD_DIM:
        parser.error(f"--dim must be a multiple of {HEAD_DIM}, got {args.dim}")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.sides = sorted(set(args.sides))

    if args.memory_of:
        name, which, sides = args.memory_of
        print(json.dumps(memory_here(args, name, which, [int(side) for side in sides.split(",")])))
        return
    results = measure(args, argv)
    table = as_markdown(results)
    print(table, end="")
    if args.output:
        args.output.with_suffix(".md").write_text(table)
        args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(run_tool(main))
