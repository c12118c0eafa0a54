#!/usr/bin/env python
"""Whether masked pre-training helps where labels are few: Dice on the held-out slab of MNI152, with and without it.

vssm prepare mni152 data/mni152
python benchmarks/masked_pretraining.py data/mni152/nifti --output benchmarks/results/masked_pretraining_cpu.md

The encoder is pre-trained on all of the training part without its labels. Both kinds of run then learn from the labels
of one thin slab of it, with the same budget and the same seeds, and the last weights of each are tested.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import nibabel

from vssm._cli import run as run_tool
from vssm._files import write_atomically
from vssm.engine.run import test, train

PRETRAINING, FINE_TUNING = "mambamim-hymamba-pico_mni152", "hymamba-pico_mni152"


def cut_slab(root: Path, out: Path, slices: int) -> Path:
    """The middle slices of the training volume, with their labels; the other parts as they are."""
    for kind in ("images", "labels"):
        (source,) = (root / "train" / kind).glob("*.nii.gz")
        volume = nibabel.load(source)
        first = (volume.shape[2] - slices) // 2
        target = out / "train" / kind / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(volume.slicer[:, :, first : first + slices], target)
    for part in ("val", "test"):
        link = out / part
        if not link.exists():
            link.symlink_to((root / part).resolve())
    return out


def schedule(epochs: int) -> list[str]:
    return [f"train_cfg.max_epochs={epochs}", f"param_scheduler.0.end={epochs}", f"param_scheduler.0.T_max={epochs}"]


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    few = cut_slab(args.root, args.work_dir / "few", args.slices)
    of_all = [f"train_dataloader.dataset.dataset.root={args.root}"]
    of_all.append(f"train_dataloader.dataset.per_volume={args.pretraining_per_volume}")
    of_few = [f"{part}.root={few}" for part in ("val_dataloader.dataset", "test_dataloader.dataset")]
    of_few += [f"train_dataloader.dataset.dataset.root={few}", f"train_cfg.val_interval={args.epochs}"]
    of_few += [f"train_dataloader.dataset.per_volume={args.per_volume}", *schedule(args.epochs)]
    found: dict[str, list[float]] = {"from scratch": [], "pre-trained": []}
    for seed in range(args.seeds):
        before = args.work_dir / f"pretraining_{seed}"
        epochs = args.pretraining_epochs
        length = [f"train_cfg.max_epochs={epochs}", f"param_scheduler.1.end={epochs}"]
        length += [f"param_scheduler.1.T_max={epochs - 2}", f"randomness.seed={seed}"]
        train(PRETRAINING, str(before), options=[*of_all, *length])
        for name, weights in (("from scratch", False), ("pre-trained", before / "encoder_only.pth")):
            folder = args.work_dir / f"{name.replace(' ', '_')}_{seed}"
            options = [*of_few, f"randomness.seed={seed}", f"model.network.pretrained={weights}"]
            train(FINE_TUNING, str(folder), options=options)
            scores = test(FINE_TUNING, str(folder / f"epoch_{args.epochs}.pth"), str(folder), options=of_few)
            found[name].append(scores["dice/mean"])
            print(json.dumps({"seed": seed, "encoder": name, "dice": scores["dice/mean"]}), file=sys.stderr)
    return found


def table(found: dict[str, list[float]], args: argparse.Namespace) -> str:
    seeds = [f"seed {seed}" for seed in range(args.seeds)]
    rows = [f"| encoder | {' | '.join(seeds)} | mean |", f"|---|{'---|' * (len(seeds) + 1)}"]
    for name, scores in found.items():
        cells = [f"{score:.2f}" for score in (*scores, statistics.mean(scores))]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return (
        "# Few labels, with and without masked pre-training\n\n"
        f"Mean Dice (%) of grey and white matter on the held-out slab of MNI152. Labels of {args.slices} slices, "
        f"{args.epochs} epochs of {args.per_volume} patches; before that, {args.pretraining_epochs} epochs of "
        f"{args.pretraining_per_volume} patches of pre-training without labels, or none.\n\n" + "\n".join(rows) + "\n"
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder nifti/ that `vssm prepare mni152` writes")
    parser.add_argument("--output", type=Path, required=True, help="the table to write")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/masked_pretraining"))
    parser.add_argument("--slices", type=int, default=16, help="slices that have labels (default: 16)")
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each kind (default: 3)")
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning (default: 10)")
    parser.add_argument("--per-volume", type=int, default=32, help="patches of each epoch (default: 32)")
    parser.add_argument("--pretraining-epochs", type=int, default=20, help="3 or more (default: 20)")
    parser.add_argument("--pretraining-per-volume", type=int, default=64, help="patches of each epoch (default: 64)")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.pretraining_epochs < 3 or min(args.epochs, args.seeds, args.slices) < 1:
        parser.error("--pretraining-epochs must be at least 3, and the other numbers at least 1")
    write_atomically(args.output, table(measure(args), args).encode())
    print(args.output)


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
