#!/usr/bin/env python
"""What quantisation costs trained models: accuracy, size and time, beside float32 and bfloat16, in one run.

vssm train vmamba-pico_digits --work-dir work_dirs/demo
vssm train upernet_vmamba-pico_digits-ade --work-dir work_dirs/seg
python benchmarks/quantization.py --classifier vmamba-pico_digits work_dirs/demo/epoch_14.pth \
    --segmentor upernet_vmamba-pico_digits-ade work_dirs/seg/epoch_5.pth \
    --output benchmarks/results/quantization_digits_cpu.md

The files of simulated recipes are as small as told; their products run in float32, so they have no time. Calibration is
on training images, transformed as in the evaluation. Of a segmentor the backbone is quantised.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from vssm._cli import run as run_tool
from vssm.engine import load_config
from vssm.engine.models import build_trained
from vssm.engine.runner import Runner
from vssm.profiling.throughput import environment, interleaved, summary
from vssm.quantize import QuantizeError, quantize_model, save_quantized, top1

# Row -> recipe and options.
RECIPES: dict[str, tuple[str, dict]] = {
    "int8-dynamic": ("int8-dynamic", {}),
    "w8a8": ("w8a8", {}),
    "w8a8, Hadamard": ("w8a8", {"hadamard": True}),
    "w8a8 with 4 bits": ("w8a8", {"weight_bits": 4, "input_bits": 4}),
    "w8a8 with 4 bits, Hadamard": ("w8a8", {"weight_bits": 4, "input_bits": 4, "hadamard": True}),
    "w8a8 with 3 bits": ("w8a8", {"weight_bits": 3, "input_bits": 3}),
    "w8a8 with 3 bits, Hadamard": ("w8a8", {"weight_bits": 3, "input_bits": 3, "hadamard": True}),
    "ptq4vm W8A8, not learned": ("ptq4vm", {"weight_bits": 8, "input_bits": 8, "epochs": 0}),
    "ptq4vm W4A8, not learned": ("ptq4vm", {"input_bits": 8, "epochs": 0}),
    "ptq4vm W4A4, not learned": ("ptq4vm", {"epochs": 0}),
    "ptq4vm W4A4": ("ptq4vm", {}),
    "ptq4vm W3A3, not learned": ("ptq4vm", {"weight_bits": 3, "input_bits": 3, "epochs": 0}),
    "ptq4vm W3A3": ("ptq4vm", {"weight_bits": 3, "input_bits": 3}),
}
FOR_SEGMENTORS = (
    "int8-dynamic",
    "w8a8",
    "w8a8, Hadamard",
    "w8a8 with 4 bits",
    "ptq4vm W4A4, not learned",
    "ptq4vm W4A4",
)


def megabytes(model: nn.Module) -> float:
    """Of the model's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        try:
            save_quantized(model, path)
        except QuantizeError:  # it is not quantised
            save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, path)
        return path.stat().st_size / 1e6


def variants(
    model: nn.Module, batches: Sequence[Tensor], names: Iterable[str], epochs: int
) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name, model, and whether its time means something."""
    yield "float32", model, True
    yield "bfloat16 weights", copy.deepcopy(model).to(torch.bfloat16), True
    for name in names:
        recipe, options = RECIPES[name]
        if recipe == "ptq4vm":
            options = {"epochs": epochs, "alpha": 0.65, **options}
        yield name, quantize_model(model, recipe, batches, **options), recipe == "int8-dynamic"


@torch.inference_mode()
def milliseconds(models: dict[str, nn.Module], image: Tensor, rounds: int) -> dict[str, str]:
    """Median time of one image, in interleaved rounds."""

    def call(model: nn.Module) -> Callable[[], object]:
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        mine = image.to(dtype)
        return lambda: model(mine)

    calls = {name: call(model) for name, model in models.items()}
    for run in calls.values():
        run()
    times = interleaved(calls, torch.device("cpu"), rounds)
    return {name: f"{summary(times[name])['median']:.2f}" for name in calls}


class AsFloat(nn.Module):
    """A model of any dtype on float32 images, with float32 results."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor):
        dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        y = self.model(x.to(dtype))
        return y.float() if isinstance(y, Tensor) else type(y)(map(torch.Tensor.float, y))


@torch.no_grad()
def distance(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    """|outputs of the other - outputs| / |outputs|."""
    pairs = [m(images) for m in (AsFloat(model), AsFloat(other))]
    wanted, got = ([y] if isinstance(y, Tensor) else list(y) for y in pairs)
    noise = sum(float((b - a).double().square().sum()) for a, b in zip(wanted, got, strict=True))
    return (noise / sum(float(a.double().square().sum()) for a in wanted)) ** 0.5


def spread(items: Sequence, count: int) -> list:
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def table(
    rows: Iterable[tuple[str, nn.Module, bool]],
    score: Callable[[nn.Module], float],
    images: Tensor,
    rounds: int,
    unit: str,
) -> list[str]:
    found, timed, first = [], {}, None
    for name, model, has_time in rows:
        first = model if first is None else first
        found.append((name, score(model), distance(first, model, images[:32]), megabytes(model)))
        if has_time:
            timed[name] = model
        print(f"{name}: {found[-1][1]:.2f}, {found[-1][2]:.1%}", file=sys.stderr, flush=True)
    times = milliseconds(timed, images[:1], rounds) if rounds else dict.fromkeys(timed, "not timed")
    lines = [f"| form | {unit} | distance of the outputs | MB | ms, batch 1 |", "|---" * 5 + "|"]
    for name, value, far, size in found:
        lines.append(f"| {name} | {value:.2f} | {far:.1%} | {size:.2f} | {times.get(name, 'simulated')} |")
    return lines


def classifier(config: str, checkpoint: str, args: argparse.Namespace) -> list[str]:
    cfg = load_config(config)
    model = build_trained(cfg, checkpoint)[0].eval().model
    batches = [(b["inputs"], b["labels"]) for b in Runner.build_dataloader(cfg.test_dataloader, seed=0)]
    loader = copy.deepcopy(cfg.test_dataloader)
    loader.dataset = ConfigDict(cfg.train_dataloader.dataset, transform=cfg.test_dataloader.dataset.transform)
    images = torch.cat([b["inputs"] for b in Runner.build_dataloader(loader, seed=0)])
    calibration = list(torch.stack(spread(images, args.images)).split(64))
    rows = variants(model, calibration, RECIPES, args.epochs)
    count = sum(len(labels) for _, labels in batches)
    lines = table(rows, lambda m: top1(AsFloat(m), batches), batches[0][0], args.rounds, "top-1, %")
    size = "x".join(map(str, images.shape[2:]))
    return [
        f"### {Path(config).stem}",
        "",
        f"{count} held-out images of {size}; calibrated on {sum(map(len, calibration))} training images.",
        "",
        *lines,
        "",
    ]


def segmentor(config: str, checkpoint: str, args: argparse.Namespace) -> list[str]:
    cfg = load_config(config)
    cfg.load_from, cfg.resume, cfg.launcher = checkpoint, False, "none"
    cfg.work_dir = tempfile.mkdtemp()
    for loader in (cfg.test_dataloader, cfg.train_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    runner = Runner.from_cfg(cfg)
    whole = runner.test()
    network = runner.model.eval()
    backbone = network.backbone
    loader = copy.deepcopy(cfg.test_dataloader)
    loader.dataset = ConfigDict(cfg.train_dataloader.dataset, pipeline=cfg.test_dataloader.dataset.pipeline)
    calibration = []
    for batch in Runner.build_dataloader(loader, seed=0):
        calibration.append(network.data_preprocessor(batch, False)["inputs"])
        if sum(map(len, calibration)) >= args.images:
            break

    def score(model: nn.Module) -> float:
        if model is backbone:
            return whole["mIoU"]
        network.backbone = AsFloat(model)
        try:
            return runner.test()["mIoU"]
        finally:
            network.backbone = backbone

    rows = variants(backbone, calibration, FOR_SEGMENTORS, args.epochs)
    lines = table(rows, score, calibration[0], args.rounds, "mIoU, %")
    size = "x".join(map(str, calibration[0].shape[2:]))
    return [
        f"### {Path(config).stem}, its backbone",
        "",
        f"Images of {size}; calibrated on {sum(map(len, calibration))} training images. Distance, size and time "
        "are the backbone's.",
        "",
        *lines,
        "",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", nargs=2, metavar=("CONFIG", "CHECKPOINT"))
    parser.add_argument("--segmentor", nargs=2, metavar=("CONFIG", "CHECKPOINT"), help="of scope mmseg")
    parser.add_argument("--images", type=int, default=256, help="to calibrate on (default: 256)")
    parser.add_argument("--epochs", type=int, default=30, help="in which ptq4vm learns (default: 30)")
    parser.add_argument("--rounds", type=int, default=30, help="of timing; 0: none (default: 30)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="also write the tables to a file")
    args = parser.parse_args(argv)
    if not args.classifier and not args.segmentor:
        parser.error("name a --classifier or a --segmentor")
    if args.threads:
        torch.set_num_threads(args.threads)
    about = "; ".join(f"{name}: {value}" for name, value in environment(torch.device("cpu")).items())
    lines = [f"{about}; images: {args.images}; epochs: {args.epochs}", ""]
    for kind, measure in ((args.classifier, classifier), (args.segmentor, segmentor)):
        if kind:
            torch.manual_seed(0)
            lines += measure(*kind, args)
    text = "\n".join(lines)
    print(text.rstrip())
    if args.output:
        args.output.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
