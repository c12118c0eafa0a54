#!/usr/bin/env python
"""Time of exported files in onnxruntime and OpenVINO beside PyTorch, one image at a time.

python benchmarks/runtimes.py --threads 2 --output benchmarks/results/runtimes_cpu

Every model is written as ONNX, compared with itself, and run in float32 by each runtime that is installed (pip install
openvino for the last). Times are medians of interleaved rounds, of random weights and images. Nodes are those of the
file. Files are kept in --files, if given, and taken from there the next time.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: docs/decisions/0025

import numpy as np
import timm
import torch

import vssm  # noqa: F401 - registers the models
from vssm._cli import run as run_tool
from vssm._optional import require
from vssm.export import export_model
from vssm.profiling.throughput import environment, interleaved, summary

MODELS = ("vmamba_tiny_s1l8", "spatialmamba_tiny")
Run = Callable[[np.ndarray], np.ndarray]


def in_onnxruntime(path: Path, threads: int) -> Run:
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait by spinning would slow down what runs between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def in_openvino(path: Path, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: compiled(images)[0]


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def measure_model(name: str, folder: Path, args: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    shape = (1, 3, args.img_size, args.img_size)
    path = folder / f"{name}_{args.img_size}.onnx"
    if not path.exists():
        print(f"{name}: writing {path}", file=sys.stderr)
        export_model(model, path, shape)
    images = torch.randn(shape)

    def of_pytorch(module: torch.nn.Module) -> Run:
        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(images)).numpy()

        return run

    runs = {"eager": of_pytorch(model)}
    if args.compile:
        runs["compiled"] = of_pytorch(torch.compile(model))
    threads = torch.get_num_threads()
    runs |= {name: make(path, threads) for name, make in RUNTIMES.items() if find_spec(name)}
    given = images.numpy()
    want = runs["eager"](given)
    deviations = {name: float(np.abs(run(given) - want).max() / np.abs(want).max()) for name, run in runs.items()}
    print(f"{name}: timing {', '.join(runs)}", file=sys.stderr)
    device = torch.device("cpu")
    times = interleaved({name: lambda run=run: run(given) for name, run in runs.items()}, device, args.rounds)
    return {
        "model": name,
        "megabytes": path.stat().st_size / 1e6,
        "nodes": len(require("onnx", "export").load(path).graph.node),
        "runtimes": {name: {**summary(times[name]), "deviation": deviations[name]} for name in runs},
    }


def measure(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.files or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [measure_model(name, folder, args) for name in args.models]
    versions = {name: version(name) for name in RUNTIMES if find_spec(name)}
    settings = {"img_size": args.img_size, "rounds": args.rounds}
    return {"environment": {**environment(torch.device("cpu")), **versions}, "settings": settings, "rows": rows}


def as_markdown(results: dict) -> str:
    lines = ["; ".join(f"{k}: {v}" for k, v in {**results["environment"], **results["settings"]}.items()), ""]
    lines += ["| model | runtime | ms, median | of eager | deviation | MB | nodes |", "|---" * 7 + "|"]
    for row in results["rows"]:
        eager = row["runtimes"]["eager"]["median"]
        for name, found in row["runtimes"].items():
            of_file = [f"{row['megabytes']:.1f}", f"{row['nodes']:,}"] if name in RUNTIMES else ["", ""]
            cells = [row["model"], name, f"{found['median']:.4g}", f"{found['median'] / eager:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{found['deviation']:.1g}", *of_file]) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="models of timm's registry")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too, which takes minutes")
    parser.add_argument(
        "--files", type=Path, metavar="FOLDER", help="keep the files here, and take those that are there"
    )
    parser.add_argument("--output", type=Path, metavar="STEM", help="also write STEM.md and STEM.json")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.img_size < 1:
        parser.error("--rounds and --img-size must be at least 1")
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
