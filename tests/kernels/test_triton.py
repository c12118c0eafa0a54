"""The Triton selective scan against float64 autograd through the reference: on a GPU, or in Triton's interpreter."""

import shutil
import subprocess
import sys

import pytest
import torch

from vssm_kernels import reference

pytest.importorskip("triton")
from vssm_kernels.triton import selective_scan as triton_scan  # noqa: E402
from vssm_kernels.triton import unavailable_reason  # noqa: E402
from vssm_kernels.triton.launch import Blocks  # noqa: E402

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what torch.empty returns with NaN: an output or a scratch place that is read but never written shows up."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        return empty(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(triton_scan.torch, "empty", poisoned)


def make_inputs(device, batch=2, M=4, L=49, N=1, G=1, D=True, delta_bias=True, dtype=torch.float32, decay=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = {
        "u": randn(batch, M, L).to(dtype),
        "delta": randn(batch, M, L).to(dtype),
        "A": -decay * torch.rand(M, N, generator=generator) - 0.1,
        "B": randn(batch, G, N, L).to(dtype),
        "C": randn(batch, G, N, L).to(dtype),
        "D": randn(M) if D else None,
        "delta_bias": randn(M) if delta_bias else None,
    }
    inputs = {name: None if x is None else x.to(device) for name, x in inputs.items()}
    grads = {"grad_y": randn(batch, M, L).to(device), "grad_last_state": randn(batch, M, N).to(device)}
    return inputs, grads


def in_float64(inputs):
    return {name: None if x is None else x.detach().double().cpu().requires_grad_() for name, x in inputs.items()}


def assert_close(actual, expected, name, dtype=torch.float32):
    # Relative to the tensor's scale, since single elements may cancel; sums over all positions cancel as a whole.
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    if name in ("gradient of A", "gradient of D", "gradient of delta_bias"):
        tolerance = 3e-5
    assert actual.shape == expected.shape, name
    error = (actual.double().cpu() - expected).abs().max()
    assert error <= tolerance * expected.abs().max().clamp(min=1e-30), (
        f"{name}: {error:.3g} of {expected.abs().max():.3g}"
    )


def check_forward(inputs, softplus, out_dtype=None):
    y, last_state = triton_scan.selective_scan_fwd(**inputs, delta_softplus=softplus, out_dtype=out_dtype)
    with torch.no_grad():
        expected_y, expected_state = reference.selective_scan_fwd(**in_float64(inputs), delta_softplus=softplus)
    assert y.dtype == (out_dtype or inputs["u"].dtype)
    assert last_state.dtype == torch.float32
    assert_close(y, expected_y, "y", y.dtype)
    assert_close(last_state, expected_state, "last_state")


def check_backward(inputs, grads, softplus, with_last_state=True):
    grads = grads if with_last_state else {**grads, "grad_last_state": None}
    actual = triton_scan.selective_scan_bwd(**grads, **inputs, delta_softplus=softplus)
    exact = in_float64(inputs)
    y, last_state = reference.selective_scan_fwd(**exact, delta_softplus=softplus)
    loss = (y * grads["grad_y"].double().cpu()).sum()
    if with_last_state:
        loss = loss + (last_state * grads["grad_last_state"].double().cpu()).sum()
    loss.backward()
    assert len(actual) == len(NAMES)
    for name, gradient in zip(NAMES, actual, strict=True):
        if inputs[name] is None:
            assert gradient is None
        else:
            dtype = inputs[name].dtype if name in ("u", "delta", "B", "C") else torch.float32
            assert gradient.dtype == dtype, name
            assert_close(gradient, exact[name].grad, f"gradient of {name}", dtype)
    return actual


@pytest.mark.parametrize("N", [1, 3, 16])
@pytest.mark.parametrize("L", [1, 2, 7, 49, 63, 196, 500, 1025])
def test_forward_lengths(triton_device, L, N):
    inputs, _ = make_inputs(triton_device, L=L, N=N, batch=1)
    check_forward(inputs, softplus=True)


@pytest.mark.parametrize(("L", "N"), [(1, 1), (2, 2), (7, 16), (49, 1), (63, 3), (64, 1), (65, 16), (196, 1), (500, 1)])
def test_backward_lengths(triton_device, L, N):
    inputs, grads = make_inputs(triton_device, L=L, N=N, batch=1)
    check_backward(inputs, grads, softplus=True)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("delta_bias", [False, True])
@pytest.mark.parametrize("D", [False, True])
def test_options(triton_device, D, delta_bias, softplus):
    inputs, grads = make_inputs(triton_device, L=70, N=2, M=2, D=D, delta_bias=delta_bias, decay=0.5)
    if not softplus:  # steps are positive in use; random signs would let the state grow exponentially
        inputs["delta"] = inputs["delta"].abs()
        if delta_bias:
            inputs["delta_bias"] = inputs["delta_bias"].abs()
    check_forward(inputs, softplus)
    check_backward(inputs, grads, softplus, with_last_state=D)


@pytest.mark.parametrize(("M", "G", "N"), [(8, 4, 1), (10, 2, 3), (5, 1, 16), (21, 1, 1), (1, 1, 1)])
def test_groups(triton_device, M, G, N):
    inputs, grads = make_inputs(triton_device, M=M, G=G, N=N, L=67, batch=1)
    check_forward(inputs, softplus=True)
    check_backward(inputs, grads, softplus=True)


@pytest.mark.parametrize("out_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(triton_device, dtype, out_dtype):
    inputs, grads = make_inputs(triton_device, L=70, N=2, G=2, dtype=dtype, batch=1)
    check_forward(inputs, softplus=True, out_dtype=out_dtype)
    grads["grad_y"] = grads["grad_y"].to(out_dtype or dtype)
    check_backward(inputs, grads, softplus=True)


@pytest.mark.parametrize("dense_rows", [False, True])
def test_strides(triton_device, dense_rows):
    inputs, grads = make_inputs(triton_device, L=40, N=3, G=2)
    tensors = {**inputs, "grad_y": grads["grad_y"]}
    for name in ("u", "delta", "B", "C", "grad_y"):
        x = tensors[name]
        if dense_rows:  # a slice of something larger: only the last axis is dense
            larger = torch.full((*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + 3), float("nan"), device=x.device)
            view = larger[..., 1:-1, 2:-1]
            view.copy_(x)
        else:
            view = x.transpose(1, -1).contiguous().transpose(1, -1)
        assert not view.is_contiguous()
        tensors[name] = view
    grads["grad_y"] = tensors.pop("grad_y")
    check_forward(tensors, softplus=True)
    check_backward(tensors, grads, softplus=True)


@pytest.mark.parametrize("shift", [-20.0, -8.0, 20.0])
def test_extreme_steps(triton_device, shift):
    inputs, grads = make_inputs(triton_device, L=70, N=2, delta_bias=False, D=False)
    inputs["delta"] = inputs["delta"] + shift
    check_forward(inputs, softplus=True)
    check_backward(inputs, grads, softplus=True)


def test_very_small_steps_keep_their_digits(triton_device):
    delta = torch.linspace(-60, 30, 64, device=triton_device).reshape(1, 1, 64)
    one = torch.ones(1, 1, 1, 64, device=triton_device)
    # With u = B = 1 the first state is the step size itself.
    for i in range(0, 64, 7):
        last = triton_scan.selective_scan_fwd(
            one[0, :, :, :1], delta[..., i : i + 1], -one[0, 0, :, :1], one[..., :1], one[..., :1], delta_softplus=True
        )[1]
        exact = torch.nn.functional.softplus(delta[0, 0, i].double())
        torch.testing.assert_close(last.double().squeeze(), exact, rtol=1e-5, atol=0)


def test_strong_decay(triton_device):
    inputs, grads = make_inputs(triton_device, L=70, N=16, M=2)
    inputs["A"] = torch.linspace(-50, -16, 32, device=triton_device).reshape(2, 16)
    check_forward(inputs, softplus=True)
    check_backward(inputs, grads, softplus=True)


def test_gradients_are_deterministic(triton_device):
    inputs, grads = make_inputs(triton_device, L=70, N=2, M=20, G=1, batch=1)
    first = triton_scan.selective_scan_bwd(**grads, **inputs, delta_softplus=True)
    second = triton_scan.selective_scan_bwd(**grads, **inputs, delta_softplus=True)
    for name, x, y in zip(NAMES, first, second, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    "blocks",
    [
        Blocks(block_d=2, block_n=4, run=2, lanes=4, num_warps=1),
        Blocks(block_d=8, block_n=4, run=16, lanes=2, num_warps=4),
    ],
)
def test_blocks_do_not_change_the_result(triton_device, blocks):
    inputs, grads = make_inputs(triton_device, L=40, N=3, M=5, batch=1)
    y, _ = triton_scan.selective_scan_fwd(**inputs, delta_softplus=True)
    torch.testing.assert_close(triton_scan.selective_scan_fwd(**inputs, delta_softplus=True, blocks=blocks)[0], y)
    expected = triton_scan.selective_scan_bwd(**grads, **inputs, delta_softplus=True)
    actual = triton_scan.selective_scan_bwd(**grads, **inputs, delta_softplus=True, blocks=blocks)
    for x, z in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, z, rtol=1e-4, atol=1e-5 * z.abs().max().item())


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("states", [1, 2, 3, 4, 8, 16, 17, 64, 256])
@pytest.mark.parametrize("length", [1, 49, 4096])
def test_blocks_are_powers_of_two_that_cover_the_states(length, states, backward):
    for channels in (1, 5, 96, 768):
        blocks = triton_scan.choose_blocks(length, channels, states, backward)
        assert all(size & (size - 1) == 0 and size >= 1 for size in blocks)
        assert blocks.block_n >= states
        assert blocks.block_d < 2 * channels


def test_float64_is_refused(triton_device):
    inputs, grads = make_inputs(triton_device, L=3)
    inputs["u"] = inputs["u"].double()
    with pytest.raises(TypeError, match="float64"):
        triton_scan.selective_scan_fwd(**inputs)
    with pytest.raises(TypeError, match="float64"):
        triton_scan.selective_scan_bwd(**grads, **inputs)


def test_unavailable_reason(triton_device, monkeypatch):
    assert unavailable_reason(triton_device) is None
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "not cpu" in unavailable_reason(torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in unavailable_reason(torch.device("cuda"))


def test_package_can_be_imported_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
import vssm_kernels
from vssm_kernels.triton import unavailable_reason
assert "pip install triton" in unavailable_reason(torch.device("cuda"))
assert "vssm_kernels.triton.selective_scan" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_compile_on_cpu_beside_the_interpreter(triton_device):
    """The interpreter's switch is process-wide and patches triton.language: inductor's CPU code must not notice."""
    if triton_device.type != "cpu":
        pytest.skip("the interpreter is not in use")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("inductor needs a C++ compiler")
    code = """
import torch
from vssm_kernels.triton.selective_scan import selective_scan_fwd
x = torch.randn(1, 2, 3)
selective_scan_fwd(x, x, -torch.ones(2, 1), x[:, None, :1], x[:, None, :1])
compiled = torch.compile(lambda x: torch.nn.functional.silu(x).sum(-1))
torch.testing.assert_close(compiled(x), torch.nn.functional.silu(x).sum(-1))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_interpreters_own_scan_agrees(triton_device, monkeypatch):
    """The faster stand-in of conftest.py gives what Triton's own interpreter gives."""
    if triton_device.type != "cpu":
        pytest.skip("kernels are compiled here, nothing is interpreted")
    from triton.runtime.interpreter import ScanOps

    inputs, grads = make_inputs(triton_device, batch=1, M=2, L=7, N=2)

    def results():
        forward = triton_scan.selective_scan_fwd(**inputs, delta_softplus=True)
        return [*forward, *triton_scan.selective_scan_bwd(**grads, **inputs, delta_softplus=True)]

    ours = results()
    monkeypatch.setattr(ScanOps, "generic_scan", ScanOps.element_scan)
    for a, b in zip(ours, results(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_public_ops_on_this_backend(triton_device):
    from vssm_kernels import Route, selective_scan, selective_scan_2d

    inputs, _ = make_inputs(triton_device, L=20, N=2, G=2)
    z = torch.randn_like(inputs["u"])
    grads = []
    for backend in ("triton", "torch"):
        leaves = {k: v.clone().requires_grad_() for k, v in {**inputs, "z": z}.items()}
        y, last = selective_scan(**leaves, delta_softplus=True, return_last_state=True, backend=backend)
        (y.square().sum() + last.sum()).backward()
        grads.append([y, last, *(v.grad for v in leaves.values())])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)

    g = torch.Generator().manual_seed(0)
    routes = (Route(), Route(transpose=True, reverse=True))
    shapes = {"u": (1, 3, 4, 5), "dt": (1, 3, 4, 2, 2), "A": (2, 5, 1), "B": (1, 3, 4, 2, 1), "C": (1, 3, 4, 2, 1)}
    maps = {k: torch.randn(*s, generator=g).to(triton_device) for k, s in shapes.items()}
    maps["A"] = -maps["A"].abs()
    weight = torch.randn(2, 5, 2, generator=g).to(triton_device)
    a, b = (selective_scan_2d(**maps, dt_weight=weight, routes=routes, backend=name) for name in ("triton", "torch"))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
