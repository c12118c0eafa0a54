"""The Triton scan of maps against float64 autograd through the reference: on a GPU, or in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from tests.scan_2d import CROSS, NAMES_2D, ROUTES, assert_close_2d, expected_2d, gradient_2d, make_2d
from vssm_kernels import Route, encode_routes, selective_scan_2d

pytest.importorskip("triton")
from vssm_kernels.triton import selective_scan_2d as triton_scan  # noqa: E402

PAIR = (Route(), Route(transpose=True, reverse=True))
# The interpreter takes a tenth of a second for a tile of one program.
SMALL = dict(batch=1, height=3, width=6, channels=5, states=1)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what torch.empty returns with NaN: an output or a scratch place that is read but never written shows up."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


def computed_2d(device, inputs, routes, grad, softplus=True, merge=True, out_dtype=torch.float32, **how):
    code = encode_routes(routes)
    values = [None if x is None else x.to(device) for x in inputs.values()]
    y = triton_scan.selective_scan_2d_fwd(*values, code, softplus, merge, out_dtype, **how)
    grads = triton_scan.selective_scan_2d_bwd(grad.to(device), *values, code, softplus, merge, **how)
    return [None if x is None else x.cpu() for x in (y, *grads)]


def check_2d(device, routes, softplus=True, merge=True, tolerance=3e-6, chunks=None, blocks=None, **form):
    inputs = make_2d(routes, softplus=softplus, **{**SMALL, **form})
    grad = gradient_2d(inputs, routes, merge)
    got = computed_2d(device, inputs, routes, grad, softplus, merge, chunks=chunks, blocks=blocks)
    assert_close_2d(got, expected_2d(inputs, routes, grad, softplus, merge), tolerance)


@pytest.mark.parametrize("name", ROUTES)
def test_routes(triton_device, name):
    check_2d(triton_device, ROUTES[name])


@pytest.mark.parametrize("name", ["strided", "joined", "some-empty"])
def test_routes_of_own_inputs_kept_apart(triton_device, name):
    check_2d(triton_device, ROUTES[name], merge=False, own_input=True, rank=None)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (5, 7)])
def test_sizes(triton_device, size):
    check_2d(triton_device, PAIR, height=size[0], width=size[1], batch=2)


@pytest.mark.parametrize("states", [2, 3, 16, 40])
def test_states(triton_device, states):
    check_2d(triton_device, PAIR, states=states, height=2, width=9)


@pytest.mark.parametrize("absent", [("C",), ("D",), ("delta_bias",), ("C", "D", "delta_bias")])
@pytest.mark.parametrize("softplus", [True, False])
def test_options(triton_device, absent, softplus):
    check_2d(triton_device, PAIR[:1], softplus, states=1 + softplus, absent=absent)


@pytest.mark.parametrize("rank", [1, 16, 17, triton_scan.MAX_RANK + 1])
def test_ranks_and_blocks_of_channels(triton_device, rank):
    check_2d(triton_device, (Route(transpose=True),), rank=rank, channels=35)


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("form", [{}, dict(merge=False, own_input=True, states=3), dict(absent=("C", "D"))])
def test_two_passes(triton_device, chunks, form):
    joined = ((Route(reverse=True), Route(stride=(1, 2)), Route(transpose=True)),)
    check_2d(triton_device, joined, chunks=chunks, height=4, width=7, **form)


def test_two_passes_are_chosen_for_few_programs(triton_device):
    def chunks(batch, size, channels):
        x = make_2d(CROSS, batch=batch, height=size, width=size, channels=channels)
        launch = triton_scan._Launch(*x.values(), encode_routes(CROSS), True, False, None, None)
        assert (
            (launch.chunks - 1) * launch.tiles_per_chunk < launch.walk.tiles <= launch.chunks * launch.tiles_per_chunk
        )
        return launch.chunks

    assert chunks(1, 64, 32) > 16
    assert chunks(1, 7, 32) == 1
    assert chunks(256, 8, 32) == 1


@pytest.mark.parametrize(
    "blocks",
    [
        triton_scan.Blocks(block_d=2, block_n=4, run=2, lanes=1, num_warps=1),
        triton_scan.Blocks(block_d=8, block_n=2, run=32, lanes=1, num_warps=4),
    ],
)
def test_blocks_do_not_change_the_result(triton_device, blocks):
    check_2d(triton_device, PAIR, blocks=blocks, states=2, height=2, width=5)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("states", [1, 2, 3, 8, 16, 33, 64, 256])
def test_blocks_are_powers_of_two_that_cover_the_states(states, backward):
    for channels in (1, 5, 96, 768):
        blocks = triton_scan.choose_blocks_2d(channels, states, backward)
        assert all(size & (size - 1) == 0 and size >= 1 for size in blocks)
        assert blocks.block_n >= states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("out_dtype", "rank"), [(None, 3), (torch.float32, 3), (None, None)])
def test_half_inputs(triton_device, dtype, out_dtype, rank):
    inputs = make_2d(PAIR, rank=rank, **SMALL)
    for name in ("u", "dt", "B", "C"):
        inputs[name] = inputs[name].to(dtype)
    out_dtype = out_dtype or dtype
    grad = gradient_2d(inputs, PAIR).to(out_dtype)
    got = computed_2d(triton_device, inputs, PAIR, grad, out_dtype=out_dtype)
    for i, (x, (ref, scale)) in enumerate(zip(got, expected_2d(inputs, PAIR, grad), strict=True)):
        if ref is None:
            assert x is None
            continue
        assert x.dtype == (out_dtype if i == 0 else dtype if i in (1, 2, 4, 5) else torch.float32)
        # The weights of the low-rank step size are rounded as its values are.
        assert (x.double() - ref).abs().max().item() <= 2 * torch.finfo(dtype).eps * scale


def test_any_strides(triton_device):
    plain = make_2d(PAIR, **SMALL)
    views = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in plain.items() if x.dim() > 3}
    views["u"] = plain["u"].movedim(-1, 1).contiguous().movedim(1, -1)
    views["B"] = torch.stack([plain["B"], plain["B"]], dim=-1)[..., 0]
    views["A"] = plain["A"].mT.contiguous().mT
    grad = gradient_2d(plain, PAIR)
    want = computed_2d(triton_device, plain, PAIR, grad)
    got = computed_2d(triton_device, {**plain, **views}, PAIR, grad.transpose(1, 2).contiguous().transpose(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    shared = plain["B"][:, :, :, :1]
    want = computed_2d(triton_device, {**plain, "B": shared.repeat(1, 1, 1, 2, 1)}, PAIR, grad)
    got = computed_2d(triton_device, {**plain, "B": shared.expand(-1, -1, -1, 2, -1)}, PAIR, grad)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_extreme_steps(triton_device):
    inputs = make_2d(PAIR, **{**SMALL, "states": 2}, rank=None)
    inputs["dt"] = torch.linspace(-40, 40, inputs["dt"].numel()).view(inputs["dt"].shape)
    inputs["A"] = inputs["A"] * 100
    grad = gradient_2d(inputs, PAIR)
    got = computed_2d(triton_device, inputs, PAIR, grad)
    assert_close_2d(got, expected_2d(inputs, PAIR, grad), 4e-6)


def test_gradients_are_deterministic(triton_device):
    inputs = make_2d(PAIR, **{**SMALL, "channels": 40})
    grad = gradient_2d(inputs, PAIR)
    first, second = (computed_2d(triton_device, inputs, PAIR, grad, chunks=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_disjoint_routes_share_a_map():
    sets = triton_scan._sets_of_disjoint
    assert sets([Route(stride=(2, 2), offset=(i, j)) for i in (0, 1) for j in (0, 1)]) == [0, 0, 0, 0]
    assert sets(list(CROSS)) == [0, 1, 2, 3]
    assert sets([Route(stride=(2, 1)), Route(stride=(4, 1), offset=(1, 0)), Route(stride=(3, 1))]) == [0, 0, 1]


def test_maps_too_large_for_32_bits_take_the_composed_scan(triton_device, monkeypatch):
    x = torch.empty(1, device="meta").expand(1, 5000, 5000, 96)
    assert not triton_scan._fits(encode_routes(CROSS), x)
    assert triton_scan._fits(encode_routes(CROSS), x[:, :1000, :1000])
    monkeypatch.setattr(triton_scan, "_fits", lambda *args: False)
    check_2d(triton_device, PAIR[:1], tolerance=1e-5, height=2)


def test_float64_is_refused(triton_device):
    inputs = [x.double().to(triton_device) for x in make_2d(PAIR, **SMALL).values()]
    with pytest.raises(TypeError, match="float64"):
        triton_scan.selective_scan_2d_fwd(*inputs, encode_routes(PAIR), True, True, torch.float64)


def test_the_op_takes_the_fused_kernels(triton_device):
    inputs = make_2d(PAIR, **SMALL)
    grads = []
    for backend in ("triton", "torch"):
        leaves = {k: x.to(triton_device).requires_grad_() for k, x in inputs.items()}
        y = selective_scan_2d(**leaves, routes=PAIR, backend=backend)
        y.sum().backward()  # an expanded gradient
        grads.append([y, *(leaves[name].grad for name in NAMES_2D)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from vssm_kernels import Route, encode_routes
from vssm_kernels.triton import selective_scan_2d as scan

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}
launched = []

def record(self, *args, grid, warmup, **options):
    given = dict(zip(self.arg_names, args)) | options
    signature, constants = {}, {}
    for parameter in self.params:
        value = given.pop(parameter.name)
        if parameter.is_constexpr or value is None:
            constants[parameter.name], signature[parameter.name] = value, "constexpr"
        else:
            signature[parameter.name] = NAMES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
    options = {name: given[name] for name in ("num_warps", "num_stages")}
    launched.append((ASTSource(self, signature, constants), options))

JITFunction.run = record
for dtype, states, capability, everything in ((torch.bfloat16, 1, 90, True), (torch.float32, 1, 80, False),
                                              (torch.bfloat16, 16, 90, True)):
    launched.clear()
    empty = lambda *shape: torch.empty(shape, dtype=dtype)
    u, dt, B, C = empty(1, 40, 40, 96), empty(1, 40, 40, 1, 6), *(empty(1, 40, 40, 1, states) for _ in range(2))
    A, D, bias, weight = (torch.empty(1, 96, n) for n in (states, 1, 1, 6))
    inputs = [u, dt, A, B, C, D[..., 0], bias[..., 0], weight]
    if not everything:
        u = empty(1, 40, 40, 1, 96)
        inputs = [u, u, A, B, None, None, None, None]
    how = encode_routes((Route(),)), everything, everything
    y = scan.selective_scan_2d_fwd(*inputs, *how, dtype, chunks=2)
    scan.selective_scan_2d_bwd(y, *inputs, *how, chunks=2)
    assert len(launched) == 5
    for source, options in launched:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"]
print("compiled")
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus():
    """What the interpreter does not see: types, layouts, registers. No GPU is needed for compiling."""
    triton = pytest.importorskip("triton", minversion="3.3")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("compiled\n"), done.stderr
