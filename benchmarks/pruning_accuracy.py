#!/usr/bin/env python
"""What token pruning costs a trained classifier that was not fine-tuned for it: top-1 against the share kept.

vssm train vim-pico_digits --work-dir work_dirs/vim-pico_digits
python benchmarks/pruning_accuracy.py vim-pico_digits work_dirs/vim-pico_digits/epoch_14.pth \
    --sites 0 1 --output benchmarks/results/pruning_digits_cpu.md

Next to the score of the scan stands a control: as many patches, drawn at random (mean and range over seeds).
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vssm._cli import run as run_tool
from vssm._errors import UserError
from vssm.engine import load_config
from vssm.engine.models import build_trained
from vssm.engine.runner import Runner
from vssm.models import PlainBackbone
from vssm.profiling import count

KEEPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def accuracy(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Top-1 in percent."""
    with torch.inference_mode():
        right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)


def at_random(module: nn.Module, inputs: tuple, output: Tensor) -> None:
    """A hook of a mixer that replaces what tells how much its tokens matter."""
    if len(inputs) > 2 and inputs[2]:
        inputs[2][0] = torch.rand_like(inputs[2][0])


def measure(network: PlainBackbone, batches: list[tuple[Tensor, Tensor]], args: argparse.Namespace) -> list[str]:
    rows, size = [], tuple(batches[0][0].shape[1:])
    network.set_pruning()
    whole = count(network, size, "macs").flops
    for keep in args.keeps:
        network.set_pruning(args.sites, keep)
        left = ", ".join(str(int(kept[0].sum())) for kept in network.kept_patches(batches[0][0][:1])) or "all"
        cells = [f"{keep:g}", left, f"{count(network, size, 'macs').flops / whole:.0%}"]
        cells.append(f"{accuracy(network, batches):.2f}")
        if keep < 1:
            network.set_pruning(args.sites, keep, decay=True)
            cells.append(f"{accuracy(network, batches):.2f}")
            network.set_pruning(args.sites, keep)
            hooks = [block.mixer.register_forward_hook(at_random) for block in network.blocks]
            found = []
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                found.append(accuracy(network, batches))
            for hook in hooks:
                hook.remove()
            cells.append(f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        else:
            cells += ["", ""]
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], file=sys.stderr)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="of a classifier with a plain net")
    parser.add_argument("checkpoint", help="of its run, trained without pruning")
    parser.add_argument("--sites", type=int, nargs="+", required=True, help="blocks behind which to prune, from 0")
    parser.add_argument("--keeps", type=float, nargs="+", default=list(KEEPS), help="shares that each site keeps")
    parser.add_argument("--seeds", type=int, default=5, help="of the random control (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="also write the table to a file")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = load_config(args.config)
    network = build_trained(cfg, args.checkpoint)[0].eval().model
    if not isinstance(network, PlainBackbone):
        raise UserError(f"{type(network).__name__} is no plain net: its tokens cannot be pruned.")
    batches = [(batch["inputs"], batch["labels"]) for batch in Runner.build_dataloader(cfg.test_dataloader, seed=0)]
    rows = measure(network, batches, args)
    images = sum(len(labels) for _, labels in batches)
    header = [
        f"`{Path(args.config).stem}`, trained without pruning and not fine-tuned; {images} held-out images of "
        f"{batches[0][0].shape[2]} x {batches[0][0].shape[3]} pixels; pruned behind blocks "
        f"{', '.join(map(str, args.sites))}, counted from 0; top-1 in percent",
        "",
        "| keep | patches left | MACs | by the scan, carried | by the scan, decaying | at random, carried |",
        "|---" * 6 + "|",
    ]
    table = "\n".join([*header, *rows]) + "\n"
    print(table, end="")
    if args.output:
        args.output.write_text(table)


if __name__ == "__main__":
    sys.exit(run_tool(main))
