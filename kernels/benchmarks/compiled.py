"""What the Triton kernels take of GPUs, compiled for six of them: `python kernels/benchmarks/compiled.py`.

Registers of a thread, bytes of them spilled to memory, and bytes of shared memory of a program. No GPU is needed. Each
kernel is compiled as Triton's own launcher asks for it, with the alignments that it finds in the arguments.

The table lies in `compiled.json`. It is written anew with `--write`; `--check` compares and fails where a kernel takes
more than the table says. `--only sm_90/N1` takes the entries that begin so, and several may be named.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is decorated

import torch  # noqa: E402

if importlib.util.find_spec("vssm_kernels") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from vssm_kernels import Route, encode_routes  # noqa: E402
from vssm_kernels.triton import selective_scan, selective_scan_2d  # noqa: E402
from vssm_kernels.triton.launch import Blocks  # noqa: E402
from vssm_kernels.triton.map_form import map_forms  # noqa: E402
from vssm_kernels.triton.map_launch import MAX_RANK  # noqa: E402

TABLE = Path(__file__).with_suffix(".json")
TARGETS = {f"sm_{n}": GPUTarget("cuda", n, 32) for n in (80, 86, 90, 100, 120)} | {
    "gfx942": GPUTarget("hip", "gfx942", 64)
}
FIELDS = ("registers", "spilled bytes", "shared bytes")
CROSS = tuple(Route(transpose=t, reverse=r) for t in (False, True) for r in (False, True))


class NoDevice:
    """Stands for Triton's driver: says what the device is, and has none."""

    def __init__(self, target: GPUTarget, number: int):
        self.target, self.number = target, number

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class Case(NamedTuple):
    """A kind of scan of maps: states, rank of the step size (0: in full), dtype, C, D and bias or none of them."""

    states: int
    rank: int
    dtype: torch.dtype = torch.bfloat16
    everything: bool = True
    own_input: bool = False


# The kinds of the models first.
CASES = {
    "N1 R6 bf16": Case(1, 6),
    "N16 R12 bf16": Case(16, 12),
    "N2 R6 bf16": Case(2, 6),
    "N1 own bf16": Case(1, 0, everything=False, own_input=True),
    "N4 R6 bf16": Case(4, 6),
    "N1 R6 fp32": Case(1, 6, torch.float32),
    "N1 R24 bf16": Case(1, 24),
    "N1 R0 bf16": Case(1, 0),
    "N1 R6 fp16": Case(1, 6, torch.float16),
    "N16 R0 bf16": Case(16, 0),
    "N64 R12 bf16": Case(64, 12),
}
LINES = {"1-D N1 L3136": (1, 3136), "1-D N1 L49": (1, 49), "1-D N16 L196": (16, 196)}


def _role(kernel: JITFunction, arguments: dict) -> str:
    if "bwd" in kernel.__name__:
        return "backward"
    if arguments.get("TOTALS"):
        return "totals" if arguments["gy_ptr"] is None else "backward totals"
    if arguments["y_ptr"] is None:
        return "edges"
    return "results" if arguments.get("twins_ptr") is None else "paired results"


def _inputs(case: Case, sequences: int) -> list[torch.Tensor | None]:
    channels, on_map = 96, (1, 40, 40)
    u = torch.empty(*on_map, *((sequences,) if case.own_input else ()), channels, dtype=case.dtype)
    rank, states = case.rank or channels, case.states
    dt, B, C = torch.empty(*on_map, sequences, rank + 2 * states, dtype=case.dtype).split([rank, states, states], -1)
    A, D, bias = (
        torch.empty(sequences, channels, states),
        torch.empty(sequences, channels),
        torch.empty(sequences, channels),
    )
    weight = torch.empty(sequences, channels, rank) if case.rank else None
    return [u, dt, A, B, C, D, bias, weight] if case.everything else [u, dt, A, B, None, None, None, weight]


def _scans_of_maps(case: Case, forms: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """The calls that between them launch every kernel of a case, in the form to begin with or in all that are timed."""
    routes = CROSS[:1] if case.own_input else CROSS[:2]
    code, inputs, merge = encode_routes(routes), _inputs(case, len(routes)), not case.own_input
    low_rank = 0 < case.rank <= MAX_RANK
    how = code, case.everything, merge
    grad = torch.empty(1, 40, 40, *(() if merge else (1,)), 96, dtype=torch.float32 if merge else case.dtype)

    def forward(blocks: Blocks, paired: bool, ahead: bool) -> None:
        chunks = None if paired else 2
        selective_scan_2d.selective_scan_2d_fwd(*inputs, *how, grad.dtype, blocks, chunks, paired, ahead)

    def backward(blocks: Blocks) -> None:
        selective_scan_2d.selective_scan_2d_bwd(grad, *inputs, *how, blocks, 2)

    last = None if forms else 1
    for form in map_forms(96, case.states, False, low_rank, False, merge)[:last]:
        yield f"D{form.blocks.block_d}{' ahead' * form.ahead}", lambda form=form: forward(*form)
    for form in map_forms(96, case.states, True, low_rank, False, False)[:last]:
        yield f"D{form.blocks.block_d}", lambda form=form: backward(form.blocks)


def _scans_of_lines(states: int, length: int) -> Iterator[tuple[str, Callable[[], object]]]:
    u, delta = (torch.empty(1, 96, length, dtype=torch.bfloat16) for _ in range(2))
    A, D, bias = torch.empty(96, states), torch.empty(96), torch.empty(96)
    B, C = (torch.empty(1, 1, states, length, dtype=torch.bfloat16) for _ in range(2))
    yield "", lambda: selective_scan.selective_scan_fwd(u, delta, A, B, C, D, bias, True)
    yield "", lambda: selective_scan.selective_scan_bwd(u, None, u, delta, A, B, C, D, bias, True)


def _resources(compiled: object) -> tuple[int, int, int]:
    if "cubin" in compiled.asm:
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        binary = next(path for name, path in compiled.metadata_group.items() if name.endswith(".cubin"))
        told = subprocess.run(
            [tool, "--dump-resource-usage", binary], capture_output=True, check=True, text=True
        ).stdout
        registers, stack, local = (int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK", "LOCAL"))
        return registers, stack + local, compiled.metadata.shared
    text = compiled.asm["amdgcn"]
    registers = re.search(r"\.vgpr_count:\s+(\d+)", text)
    spilled = re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
    return int(registers[1]), int(spilled[1]), compiled.metadata.shared


def compiled(names: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    """Compile what is named by "target/case", and give `FIELDS` of each kernel by "target/case/kernel and block"."""
    launched: list[tuple[JITFunction, dict, object]] = []
    run = JITFunction.run

    def record(self, *args, grid, warmup, **options):
        binary = run(self, *args, grid=grid, warmup=True, **options)
        launched.append((self, dict(zip(self.arg_names, args, strict=False)) | options, binary))

    JITFunction.run = record
    try:
        for name in names:
            target, case = name.split("/")
            driver.set_active(NoDevice(TARGETS[target], list(TARGETS).index(target)))
            # Other forms where the code was tuned: one target of them says what they cost.
            forms = target == "sm_90"
            calls = _scans_of_maps(CASES[case], forms) if case in CASES else _scans_of_lines(*LINES[case])
            seen = set()
            for form, call in calls:
                launched.clear()
                call()
                for kernel, given, binary in launched:
                    key = f"{name}/{_role(kernel, given)} {form}".rstrip()
                    if key not in seen:
                        seen.add(key)
                        yield key, list(_resources(binary))
    finally:
        JITFunction.run = run


def read_table() -> dict:
    """Read the table: the version of Triton that compiled, the names of the fields, and these of each kernel."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {"triton": "", "fields": list(FIELDS), "kernels": {}}


def write_table(kernels: dict[str, list[int]]) -> None:
    """Write the table, a kernel a line."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(kernels[key])}" for key in sorted(kernels))
    head = f'"triton": {json.dumps(triton.__version__)},\n "fields": {json.dumps(FIELDS)}'
    TABLE.write_text(f'{{{head},\n "kernels": {{\n{lines}\n }}}}\n')


def main() -> int:
    """Compile, say what each kernel takes, and write or compare the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TARGET/CASE", help="those whose names begin so")
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--check", action="store_true", help="fail where a kernel takes more than the table says")
    args = parser.parse_args()
    names = [f"{target}/{case}" for case in (*CASES, *LINES) for target in TARGETS]
    names = [name for name in names if name.startswith(tuple(args.only))]
    if not names:
        parser.error(f"nothing is named so; there are {', '.join(TARGETS)}, each with {', '.join((*CASES, *LINES))}")
    table = read_table()
    if args.check and table["triton"] != triton.__version__:
        parser.error(f"the table is that of Triton {table['triton']}, this is {triton.__version__}")
    kernels, worse = table["kernels"] if table["triton"] == triton.__version__ else {}, []
    for key, takes in compiled(names):
        known = kernels.get(key)
        print(f"{key}: {takes}" + (f", not {known}" if known and known != takes else ""), flush=True)
        if args.check and (known is None or any(a > b for a, b in zip(takes, known, strict=True))):
            worse.append(key)
        if args.write:
            kernels[key] = takes
            write_table(kernels)
    if worse:
        print(f"more than the table says, or not in it: {', '.join(worse)}")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
