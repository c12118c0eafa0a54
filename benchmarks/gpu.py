#!/usr/bin/env python
"""Everything that a GPU has to show, in one command of at most ten minutes.

python benchmarks/gpu.py --out FOLDER [--wheels FOLDER] [--only PART ...]

It needs CUDA, PyTorch, Triton and no network. What else is missing is installed from the wheels in a folder, into the
folder of the results. The parts:

  tests        the Triton tests, on the device
  opcheck      what torch.library.opcheck finds in the ops
  poison       every output and scratch place over memory full of NaN
  determinism  the same bits in every run
  ops          scans beside their PyTorch forms and mamba_ssm, and beside what the device's memory and its unit for
               exponentials allow
  forms        the forms of the fused scan, timed, and which of them is chosen
  graphs       CUDA graphs against plain calls
  models       beside Swin-T, ConvNeXt-T and timm's EfficientViM: inference and training, in bfloat16 and float32, eager
               and compiled, with 1, 8 and 128 images

The folder gets gpu.json, gpu.md and gpu.png. gpu.json is written anew with every figure. A later run with --only
measures these parts again and keeps the others. A part that fails or takes too long is noted as such, and the next one
begins. `--device cpu --tiny` shows in small, with Triton's interpreter, that everything runs; its times say nothing.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Shares of the time. A part may also use what those before it left over.
SHARES = {
    "tests": 120,
    "opcheck": 30,
    "poison": 20,
    "determinism": 25,
    "ops": 90,
    "forms": 40,
    "graphs": 45,
    "models": 200,
}
# Seconds at the end for the report, and seconds that a part has to end by itself once its time is up.
REPORT, GRACE = 15, 15
# Module: package.
NEEDED = {
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "yaml": "pyyaml",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "torchvision": "torchvision",
    "huggingface_hub": "huggingface_hub",
    "timm": "timm",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "yacs": "yacs",
    "pytest": "pytest",
}


def install(wheels: Path | None, site: Path) -> None:
    """Install what this Python lacks of the wheels into `site`, and let this process and its children find all."""
    here = {_plain(found.metadata["Name"]) for found in distributions()} - {None}
    if wheels is not None:
        files = [file for file in sorted(wheels.glob("*.whl")) if _plain(file.name.split("-")[0]) not in here]
        if files:
            command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade", "--target", str(site)]
            done = subprocess.run([sys.executable, *command, *map(str, files)], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
                refuse(f"The wheels in '{wheels}' cannot be installed: {reason}")
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "kernels" / "benchmarks"), str(site)]
    sys.path[:0], sys.path[len(sys.path) :] = paths[:3], paths[3:]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    importlib.invalidate_caches()
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        refuse(
            f"This Python lacks {', '.join(missing)}; put the wheels into a folder and name it with --wheels "
            "(docs/benchmark.md says how to fetch them)."
        )


def refuse(sentence: str) -> None:
    """End as the other tools do, which cannot be imported yet."""
    print(f"gpu.py: error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def _plain(name: str | None) -> str | None:
    return name and name.lower().replace("_", "-").replace(".", "-")


def deadlines(parts: Sequence[str], begun: float, minutes: float) -> dict[str, float]:
    """When the time of each part is up."""
    total, whole = minutes * 60 - REPORT - GRACE, sum(SHARES[part] for part in parts)
    so_far = itertools.accumulate(SHARES[part] for part in parts)
    return {part: begun + total * share / whole for part, share in zip(parts, so_far, strict=True)}


def read(file: Path) -> dict:
    from vssm._errors import UserError

    if not file.exists():
        return {"parts": {}}
    try:
        results = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' is not a file of this tool's: {error}.") from error
    if not isinstance(results, dict) or not isinstance(results.get("parts"), dict):
        raise UserError(f"'{file}' is not a file of this tool's.")
    return results


def write(file: Path, results: dict) -> None:
    from vssm._files import write_atomically

    write_atomically(file, (json.dumps(results, indent=1) + "\n").encode())


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def supervise(args: argparse.Namespace, argv: Sequence[str], begun: float) -> None:
    """Run the parts in a process apart: what hangs or breaks the device's context costs its own part only."""
    file, left = args.out / "gpu.json", list(args.only)
    results = read(file)
    for part in left:
        results["parts"][part] = {"state": "not reached", "why": "The run ended before it.", "rows": []}
    write(file, results)
    ends = deadlines(args.only, begun, args.minutes)
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ}  # else its sums may differ from run to run
    if args.tiny:
        environment["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    while left:
        command = [sys.executable, __file__, *argv, "--left", *left, "--begun", str(begun)]
        child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        why = None
        try:
            while child.poll() is None:
                time.sleep(0.2)
                running = [p for p in left if read(file)["parts"][p]["state"] == "running"]
                if time.time() > ends[(running or left)[0]] + GRACE:
                    why = "Its time was up, and it did not end by itself."
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):  # with the compilers that it has started
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        results = read(file)
        ended = [p for p in left if results["parts"][p]["state"] not in ("running", "not reached")]
        broken = [p for p in left if results["parts"][p]["state"] == "running"]
        if not (ended or broken):
            broken = left  # it cannot even begin
        for part in broken:
            why = why or f"The process ended with code {child.returncode}; its last words are on the terminal."
            results["parts"][part] |= {"state": "failed", "why": why}
        write(file, results)
        left = [p for p in left if p not in (*ended, *broken)]


def run_parts(args: argparse.Namespace) -> None:
    """The child: runs parts one after the other, and stops after one that failed, whose device may be ruined."""
    import gpu_parts
    import gpu_run

    file, ends = args.out / "gpu.json", deadlines(args.only, args.begun, args.minutes)
    for part in args.left:
        results, start = read(file), time.time()
        results["parts"][part] = record = {"state": "running", "began": now(), "rows": []}
        record["ran"] = gpu_parts.environment(args.device)
        print(f"{part} ...", file=sys.stderr, flush=True)
        flush = lambda: write(file, results)  # noqa: B023, E731
        flush()
        outcome = gpu_parts.run(part, gpu_run.Run(args.device, args.tiny, ends[part], record["rows"], flush))
        record |= {**outcome, "seconds": round(time.time() - start, 1)}
        flush()
        print(f"{part}: {record['state']}{_because(record)}", file=sys.stderr, flush=True)
        if record["state"] == "failed":
            return


def _because(record: dict) -> str:
    return f" ({record['why']})" if "why" in record else ""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of what this Python lacks")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="PART", help="parts to run")
    parser.add_argument("--minutes", type=float, default=9.8, help="for everything (default: 9.8)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu with --tiny (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="in small, to see that it runs")
    parser.add_argument("--left", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.only = [part for part in SHARES if part in args.only]
    args.out = args.out.absolute()
    if args.minutes * 60 < 2 * (REPORT + GRACE):
        parser.error(f"--minutes must be at least {2 * (REPORT + GRACE) / 60:g}")
    if args.wheels is not None and not args.wheels.is_dir():
        parser.error(f"there is no folder '{args.wheels}'")
    if args.device.startswith("cpu") != args.tiny:
        parser.error("--device cpu and --tiny belong together: on a CPU the kernels run in Triton's interpreter")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    argv, begun = list(sys.argv[1:] if argv is None else argv), time.time()
    args = parse(argv)
    if args.left:
        run_parts(args)
        return 0
    from vssm._errors import UserError
    from vssm._files import require_writable

    require_writable(args.out, folder=True)
    if not args.tiny:
        import torch

        if not torch.cuda.is_available():
            raise UserError("There is no CUDA device here; `--device cpu --tiny` runs everything in small.")
    import gpu_report

    try:
        supervise(args, argv, begun)
    finally:
        results = read(args.out / "gpu.json")
        gpu_report.write(results, args.out)
    print((args.out / "gpu.md").read_text(), end="")
    return 1 if any(results["parts"][part]["state"] == "failed" for part in args.only) else 0


def start() -> int:
    args = parse(sys.argv[1:])
    install(args.wheels, args.out / "site")
    from vssm._cli import run

    return run(main)


if __name__ == "__main__":
    sys.exit(start())
