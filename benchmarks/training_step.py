#!/usr/bin/env python
"""Time and peak memory of a training step (forward, backward, AdamW) with several ways to scan.

python benchmarks/training_step.py --threads 2 --output benchmarks/results/training_step_cpu

Times are medians of interleaved rounds. Memory is the peak of one step in a process of its own, without weights,
images and the optimiser's state. A way to scan is a backend of the op, or a scan in PyTorch under autograd without the
op: `plain` is written to be fast, `indexed` is the same with the usual loop over `x[t]`.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: docs/decisions/0025

import timm
import torch
import torch.nn.functional as F

import vssm
from vssm._cli import run as run_tool
from vssm._errors import UserError, did_you_mean
from vssm.profiling.memory import output_apart, peak_memory
from vssm.profiling.throughput import environment, interleaved, scan_backend, summary
from vssm_kernels import available_backends
from vssm_kernels.ops import arguments
from vssm_kernels.scan_2d import scan_2d_fwd

PLAIN, INDEXED = "plain", "indexed"
SCAN = torch.ops.vssm.selective_scan_2d.default


def plain_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype, positions=torch.unbind):
    """The selective scan of `vssm_kernels.reference`, with as much as possible computed for all positions at once.

    The loop has one multiply-add for each position. Slices come from `unbind`, whose backward is one stack. The
    backward of an index makes a map of zeros with one position filled, for every position.
    """
    batch, groups, states, length = B.shape
    delta = delta.float() + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    decay = torch.exp(torch.einsum("bml,mn->lbmn", delta, A))
    in_groups = [x.float().unflatten(1, (groups, -1)) for x in (delta * u, u)]
    steps = torch.einsum("bgml,bgnl->lbgmn", in_groups[0], B.float()).flatten(2, 3)
    state, kept = torch.zeros_like(steps[0]), []
    for decay_t, step_t in zip(positions(decay), positions(steps), strict=True):
        state = torch.addcmul(step_t, decay_t, state)
        kept.append(state)
    y = torch.einsum("lbgmn,bgnl->bgml", torch.stack(kept).unflatten(2, (groups, -1)), C.float()).flatten(1, 2)
    return (y + D[:, None] * u).to(out_dtype), state


def indexed_scan(**inputs):
    return plain_scan(**inputs, positions=lambda x: (x[t] for t in range(len(x))))


def without_op(scan, *args, **kwargs):
    """The 2-D scan without an op: copies the map along the routes, scans, and copies back."""
    given = arguments(SCAN, args, kwargs)
    options = {"code": given.pop("routes"), "out_dtype": given.pop("out_dtype") or given["u"].dtype}
    del given["backend"]
    return scan_2d_fwd(scan, **given, **options)


WITHOUT_OP = {PLAIN: plain_scan, INDEXED: indexed_scan}


@contextmanager
def way_to_scan(name: str) -> Iterator[None]:
    if name in WITHOUT_OP:
        scan = functools.partial(without_op, WITHOUT_OP[name])
        with mock.patch.object(torch.ops.vssm, "selective_scan_2d", scan):
            yield
    else:
        with scan_backend(name):
            yield


def make_step(args: argparse.Namespace) -> Callable[[str], None]:
    """A training step as a function of the way to scan."""
    torch.manual_seed(0)
    model = timm.create_model(args.model).train().to(args.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)
    labels = torch.arange(args.batch_size, device=args.device)

    def step(scan: str) -> None:
        with way_to_scan(scan):
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimiser.step()

    for parameter in model.parameters():  # a step with zero gradients makes the optimiser's state
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    return step


def memory_here(args: argparse.Namespace, scan: str) -> int:
    step = make_step(args)
    return peak_memory(lambda: step(scan), torch.device(args.device))


def measure(args: argparse.Namespace, argv: Sequence[str]) -> dict:
    device = torch.device(args.device)
    taken = {}
    for scan in args.scans:
        print(f"memory of {scan}", file=sys.stderr)
        taken[scan] = int(output_apart(__file__, *argv, "--memory-of", scan))
    step = make_step(args)
    jobs = {scan: lambda scan=scan: step(scan) for scan in args.scans}
    times = {scan: summary(samples) for scan, samples in interleaved(jobs, device, args.rounds).items()}
    first = args.scans[0]
    rows = [
        {
            "scan": scan,
            "milliseconds": times[scan],
            "mebibytes": round(taken[scan] / 2**20, 1),
            "time ratio": round(times[scan]["median"] / times[first]["median"], 3),
            "memory ratio": round(taken[scan] / max(taken[first], 1), 3),
        }
        for scan in args.scans
    ]
    ran = environment(device)
    del ran["scan backend"]  # the table has a column for it
    settings = {key: getattr(args, key) for key in ("model", "img_size", "batch_size", "amp")}
    return {"environment": ran, "settings": settings, "rows": rows}


def as_markdown(results: dict) -> str:
    first = results["rows"][0]["scan"]
    # A page begins with its heading: a first line like "torch: 2.6" would be taken for what describes the page.
    lines = ["# Time and memory of a training step", ""]
    lines += ["; ".join(f"{k}: {v}" for k, v in {**results["environment"], **results["settings"]}.items()), ""]
    lines += [f"| scan | median ms (quartiles) | peak MiB | time / {first} | memory / {first} |", "|---" * 5 + "|"]
    for row in results["rows"]:
        ms = row["milliseconds"]
        spread = f"{ms['median']:.4g} ({ms['q1']:.4g} - {ms['q3']:.4g})"
        ratios = f"{row['time ratio']:.2f} | {row['memory ratio']:.2f}"
        lines.append(f"| {row['scan']} | {spread} | {row['mebibytes']:.4g} | {ratios} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vmamba_tiny_s1l8")
    parser.add_argument(
        "--scans", nargs="+", default=["auto", PLAIN], metavar="NAME", help="ways to scan; ratios are to the first"
    )
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="STEM", help="also write STEM.md and STEM.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.model not in vssm.list_models():
        raise UserError(f"no model is called '{args.model}'{did_you_mean(args.model, vssm.list_models())}.")
    fastest = available_backends(args.device)
    args.scans = [fastest[0] if name == "auto" else name for name in args.scans]
    for name in args.scans:
        if name not in (*fastest, *WITHOUT_OP):
            known = ", ".join([*fastest, *WITHOUT_OP])
            raise UserError(f"there is no scan '{name}' on {args.device}; there are {known}.")
    if args.threads:
        torch.set_num_threads(args.threads)

    if args.memory_of:
        print(memory_here(args, args.memory_of))
        return
    results = measure(args, argv)
    table = as_markdown(results)
    print(table, end="")
    if args.output:
        args.output.with_suffix(".md").write_text(table)
        args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
