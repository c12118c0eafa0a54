"""The Triton kernels as compilers and launchers see them. No GPU is needed, and no interpreter may be on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scan_2d import CROSS, make_2d
from vssm_kernels import encode_routes, tables
from vssm_kernels.tables import forget_tables

pytest.importorskip("triton")
from vssm_kernels.triton import map_plan  # noqa: E402

COMPILED = Path(__file__).parents[2] / "kernels" / "benchmarks" / "compiled.py"

SPECIALIZE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature
from vssm_kernels import Route, encode_routes
from vssm_kernels.triton import selective_scan_2d as scan

backend = make_backend(GPUTarget("cuda", 90, 32))
kernels = {}

def record(self, *args, grid, warmup, **options):
    bind = create_function_from_signature(self.signature, self.params, backend)
    kernels.setdefault(self.__name__, set()).add(str(bind(*args, **options)[1:]))

JITFunction.run = record
code = encode_routes((Route(), Route(transpose=True)))
for channels, rank, states in ((192, 12, 1), (40, 3, 16)):
    kernels.clear()
    for batch, height, width in ((1, 7, 7), (2, 16, 16), (1, 13, 17), (64, 25, 36), (64, 32, 32), (128, 1, 1)):
        projected = torch.empty(batch, height, width, 2, rank + 2 * states, dtype=torch.bfloat16)
        u = torch.empty(batch, height, width, channels, dtype=torch.bfloat16)
        A, D, bias, weight = (torch.empty(2, channels, n) for n in (states, 1, 1, rank))
        dt, B, C = projected.split([rank, states, states], -1)
        inputs = u, dt, A, B, C, D[..., 0], bias[..., 0], weight
        y = scan.selective_scan_2d_fwd(*inputs, code, True, True, u.dtype)
        scan.selective_scan_2d_bwd(y, *inputs, code, True, True)
    # Results, totals of the forward and of the backward, edges; results, edges and gradients in two passes or one; no
    # edges for a single tile.
    assert {name: len(kinds) for name, kinds in kernels.items()} == {"scan_2d_kernel": 6, "scan_2d_bwd_kernel": 3}
print("specialized")
"""


def skip_without_compiler(minversion):
    triton = pytest.importorskip("triton", minversion=minversion)
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")


def run_without_interpreter(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_no_size_of_map_compiles_kernels_again():
    """By Triton's own rule of what a kernel is compiled anew for; nothing is compiled or launched."""
    skip_without_compiler("3.5")
    done = run_without_interpreter("-c", SPECIALIZE)
    assert done.stdout.endswith("specialized\n"), done.stderr


@pytest.mark.slow
def test_kernels_take_no_more_of_a_gpu_than_the_table_says():
    """Registers, spilled bytes and shared memory; of the scans of most models, on one target of the table."""
    skip_without_compiler("3.6")
    done = run_without_interpreter(str(COMPILED), "--check", "--only", "sm_100/N1 R6 bf16")
    if "the table is that of Triton" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 5  # results, totals, edges, and the two of the backward


LAUNCH = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from vssm_kernels import Route, encode_routes
from vssm_kernels.triton import launch, selective_scan_2d as scan

class Utils:
    load_binary = staticmethod(lambda *args: (1, 2, 100, 0, 1024))
    get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232448})
    unload_module = staticmethod(lambda module: None)

class Driver:
    utils = Utils
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 7)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    launcher_cls = staticmethod(lambda source, metadata: lambda *args: launched.append(args))

driver.set_active(Driver)
launched, by_triton = [], []
run = JITFunction.run
JITFunction.run = lambda self, *args, **options: (by_triton.append(self), run(self, *args, **options))[1]

def scanned(u):
    u = u.view(1, 4, 5, 32)
    inputs = u, u[:, :, :, None], torch.ones(1, 32, 1), B, None, None, None, None
    scan.selective_scan_2d_fwd(*inputs, code, True, True, u.dtype)

code, B = encode_routes((Route(),)), torch.ones(1, 4, 5, 1, 1)
memory = torch.ones(4 * 5 * 32 + 1)
scanned(memory[:-1]), scanned(memory[:-1])
kept = launch._TAKES_ALL
assert len(launched) == 2 and len(by_triton) == 1 + (not kept)
# grid, stream, function, metadata, what the profilers' hooks are told, the hooks, and all arguments of the function
arguments = [[x.shape if isinstance(x, torch.Tensor) else x for x in (*args[:6], *args[7:])] for args in launched]
assert arguments[0] == arguments[1]
scanned(memory[1:]), scanned(memory[1:])  # lies where wide loads are not allowed
assert len(by_triton) == (2 if kept else 4), "compiled anew for another alignment"
assert len(launched) == 4
print("launched")
"""


def test_launches_that_are_kept_pass_what_tritons_own_passes():
    """With a driver that has no device: Triton compiles and launches as ever, but what is launched is only noted."""
    skip_without_compiler("3.6")
    done = run_without_interpreter("-c", LAUNCH)
    assert done.stdout.endswith("launched\n"), done.stderr


@pytest.fixture
def kept(monkeypatch):
    """Asks for the launches of one kind; gives them, and whether they were made for that."""
    from vssm_kernels.triton.map_launch import Launch

    forget_tables()
    monkeypatch.setattr(map_plan, "_plans", {})
    tensors = tuple(make_2d(CROSS, batch=1, height=4, width=4, channels=4).values())
    code = encode_routes(CROSS)

    def ask(last_word=True):
        made = []

        def make():
            made.append(Launch(tensors, code, True, False))
            return made[0], last_word

        launch = map_plan.kept_launch(map_plan.kind_of_call(tensors, code, "forward"), tensors[0].device, make)
        return launch, bool(made)

    yield ask
    forget_tables()


def test_launches_are_kept_until_tables_are_dropped(kept):
    first, made = kept()
    assert made and kept() == (first, False)
    forget_tables()
    again, made = kept()
    assert made and again is not first and again.walk is not first.walk


def test_a_form_that_is_not_the_last_word_is_not_kept(kept):
    first, _ = kept(last_word=False)
    second, made = kept()
    assert made and second is not first


def test_a_graph_holds_the_tables_of_kept_launches_and_keeps_none_of_its_own(kept, monkeypatch):
    capturing = [True]
    for module in (tables, map_plan):
        monkeypatch.setattr(module, "is_capturing", lambda device: capturing[0])
    in_graph, made = kept()
    assert made and kept()[1] and not tables._kept, "what a graph made is its own"
    capturing[0] = False
    launch, made = kept()
    assert made and not any(entry.held for entry in tables._kept.values())
    capturing[0] = True
    assert kept() == (launch, False)
    assert [entry.held for entry in tables._kept.values() if entry.tables is launch.walk] == [True]
    capturing[0] = False
    forget_tables()
    capturing[0] = True
    assert kept()[1], "of tables that are gone, even in a capture"
