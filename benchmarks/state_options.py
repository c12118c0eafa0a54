#!/usr/bin/env python
"""What the options of the state are worth: the digits demo with each of them, over several seeds.

python benchmarks/state_options.py --output benchmarks/results/DATE_state_options_digits_cpu
python benchmarks/state_options.py --only s4d --seeds 0 --epochs 3

It writes OUTPUT.md and OUTPUT.json, anew after every run: what was stopped half way is there up to then. The seeds are
gone through one after the other, each with all options, so that a slow hour of the machine meets all of them.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from vssm._cli import run as run_tool
from vssm._files import write_beside
from vssm.engine.config import load_config
from vssm.engine.run import train
from vssm.viz.curves import read_log

CONFIG = "vmamba-pico_digits"
# Arguments of `vmamba_pico`, by what a row is called. Eight states, so that their start can differ by state.
OPTIONS: dict[str, dict[str, object]] = {
    "SS2D, 1 state (the demo)": {},
    "SS2D, 8 states: S4D-Real (the default)": {"d_state": 8},
    "SS2D, 8 states: constant, -1/2": {"d_state": 8, "A_init": "constant"},
    "SS2D, 8 states: constant, -1": {"d_state": 8, "A_init": -1.0},
    "SS2D, 8 states: random": {"d_state": 8, "A_init": "random"},
    "SS2D, 8 states: uniform": {"d_state": 8, "A_init": "uniform"},
    "s4d, 8 states: S4D-Lin (its default)": {"mixer": "s4d", "d_state": 8},
    "s4d, 8 states: S4D-Inv": {"mixer": "s4d", "d_state": 8, "A_init": "inv"},
    "s4d, 8 states: S4D-LegS": {"mixer": "s4d", "d_state": 8, "A_init": "legs"},
    "s4d, 8 states: S4D-Real": {"mixer": "s4d", "d_state": 8, "A_init": "real"},
    "roesser, 1 state": {"mixer": "roesser"},
    "rows_columns, 1 state": {"mixer": "rows_columns"},
}


def one_run(options: dict[str, object], seed: int, epochs: int) -> dict[str, float]:
    """Train once: the held-out top-1 in percent, and the median time of a step in seconds, without loading."""
    words = [f"model.model.{key}={value}" for key, value in options.items()]
    words += [f"randomness.seed={seed}", f"train_cfg.max_epochs={epochs}", "custom_hooks=[]"]
    if epochs != load_config(CONFIG).train_cfg.max_epochs:
        words += [f"param_scheduler.1.end={epochs}", f"param_scheduler.1.T_max={epochs - 2}"]
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(CONFIG, folder, options=words)
        steps, _ = read_log(folder)
    step = statistics.median(record["time"] - record["data_time"] for record in steps[1:] or steps)
    return {"top1": metrics["accuracy/top1"], "step": step}


def table(runs: dict[str, dict[int, dict[str, float]]], args: argparse.Namespace) -> str:
    """Write the results so far as markdown."""
    images = len(held_out())
    lines = [
        f"`{CONFIG}` of {args.epochs} epochs with other options of its state; top-1 in percent on {images} held-out "
        f"digits, seeds {', '.join(map(str, args.seeds))}: mean, and the lowest to the highest. A step is of 64 images "
        f"of 32 x 32 pixels, forward, backward and update, on {torch.get_num_threads()} threads of a CPU; the median "
        "of a run, and the median of the runs. One image is "
        f"{100 / images:.2f} points, so differences of that size mean nothing.",
        "",
        "| option | parameters | top-1 | step, ms |",
        "|---|---:|---:|---:|",
    ]
    for name, found in runs.items():
        top1 = [run["top1"] for run in found.values()]
        step = 1000 * statistics.median(run["step"] for run in found.values())
        network = timm.create_model("vmamba_pico", num_classes=10, **OPTIONS[name])
        parameters = sum(p.numel() for p in network.parameters())
        spread = f"{statistics.mean(top1):.2f} ({min(top1):.2f} to {max(top1):.2f})"
        short = "" if len(top1) == len(args.seeds) else f", {len(top1)} seeds"
        lines.append(f"| {name}{short} | {parameters:,} | {spread} | {step:.0f} |")
    return "\n".join(lines) + "\n"


def held_out() -> Sequence:
    """Give the held-out digits."""
    from vssm.classify import Digits

    return Digits("test")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=6, help="the demo has 14 and ends above 99 %% (default: 6)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="options whose names have one of these words")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--output", type=Path, metavar="PATH", help="write PATH.md and PATH.json, too")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = [name for name in OPTIONS if not args.only or any(word in name for word in args.only)]
    if not chosen:
        parser.error(f"no option has such a name; there are {'; '.join(OPTIONS)}")
    if args.epochs < 3:
        parser.error("--epochs must be at least 3: the rate rises for two")
    runs: dict[str, dict[int, dict[str, float]]] = {name: {} for name in chosen}
    for seed in args.seeds:
        for name in chosen:
            runs[name][seed] = one_run(OPTIONS[name], seed, args.epochs)
            print(f"{name}, seed {seed}: {runs[name][seed]}", file=sys.stderr)
            if args.output:
                done = {name: found for name, found in runs.items() if found}
                record = {"config": CONFIG, "epochs": args.epochs, "threads": torch.get_num_threads(), "runs": done}
                text = table(done, args)
                args.output.parent.mkdir(parents=True, exist_ok=True)
                write_beside(args.output.with_name(args.output.name + ".md"), lambda path, t=text: path.write_text(t))
                write_beside(
                    args.output.with_name(args.output.name + ".json"),
                    lambda path, r=record: path.write_text(json.dumps(r, indent=1) + "\n"),
                )
    print(table(runs, args), end="")


if __name__ == "__main__":
    sys.exit(run_tool(main))
