"""The compiled CPU backend against the float64 reference, with every instruction set that this processor has."""

import os
import platform
import shutil
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import pytest
import torch

from vssm_kernels import cpu, cpu_library, reference

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
reason = cpu_library.unavailable_reason()
needs_library = pytest.mark.skipif(reason is not None, reason=str(reason))


def every_variant():
    """Select the kernels of one instruction set after the other, of those that this processor has; then the best."""
    try:
        for name in ("avx512", "avx2", "baseline"):
            if cpu_library.set_variant(name):
                yield name
    finally:
        cpu_library.set_variant()


def by_threads(compute, counts=(1, 3)):
    """What is computed with each number of threads."""
    before = torch.get_num_threads()
    try:
        return [(torch.set_num_threads(count), compute())[1] for count in counts]
    finally:
        torch.set_num_threads(before)


def make(batch, channels, length, states, groups, with_d=True, with_bias=True, seed=0):
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=gen)

    return [
        randn(batch, channels, length),
        randn(batch, channels, length) - 1,
        -torch.rand(channels, states, generator=gen) * 4 - 0.05,
        randn(batch, groups, states, length),
        randn(batch, groups, states, length),
        randn(channels) if with_d else None,
        randn(channels) if with_bias else None,
    ]


def gradients_for(inputs, with_last=True, seed=1):
    gen = torch.Generator().manual_seed(seed)
    batch, channels, length = inputs[0].shape
    last = torch.randn(batch, channels, inputs[2].shape[1], generator=gen) if with_last else None
    return torch.randn(batch, channels, length, generator=gen), last


def expected(inputs, softplus, grad_y, grad_last_state):
    """y, the last state and the seven gradients in float64, by autograd through the readable loop, each with its scale.

    The scale is the largest magnitude, but for D and delta_bias that of the terms summed: the sum itself may cancel.
    """
    leaves = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    y, last_state = reference.selective_scan_fwd(*leaves, softplus)
    loss = (y * grad_y.double()).sum()
    if grad_last_state is not None:
        loss = loss + (last_state * grad_last_state.double()).sum()
    given = [x for x in leaves if x is not None]
    grads = iter(torch.autograd.grad(loss, given))
    want = [y.detach(), last_state.detach()] + [None if x is None else next(grads) for x in leaves]
    scales = [0 if x is None else x.abs().amax().item() if x.numel() else 0 for x in want]
    scales[7] = (grad_y.double() * inputs[0].double()).abs().sum((0, 2)).max().item()
    scales[8] = want[3].abs().sum((0, 2)).max().item()
    return list(zip(want, scales, strict=True))


def computed(inputs, softplus, grad_y, grad_last_state, **kwargs):
    y, last_state = cpu.selective_scan_fwd(*inputs, softplus, **kwargs)
    return [y, last_state, *cpu.selective_scan_bwd(grad_y, grad_last_state, *inputs, softplus)]


def assert_close(got, want, tolerance=2e-6):
    for name, x, (ref, scale) in zip(("y", "last_state", *NAMES), got, want, strict=True):
        if ref is None:
            assert x is None, name
            continue
        assert x.shape == ref.shape, name
        assert x.isfinite().all(), name
        error = (x.double() - ref).abs().max().item()
        assert error <= tolerance * scale, f"{name}: {error:.3g} of {scale:.3g}"


def test_the_library_is_built_where_there_is_a_compiler():
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on the PATH")
    assert reason is None, reason


def test_clang_takes_the_dispatcher():
    """With every instruction set: it knows fewer names of them than GCC."""
    names = ("clang++", *(f"clang++-{version}" for version in range(14, 25)))
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None or platform.machine() != "x86_64":
        pytest.skip("there is no clang++ for x86-64 on the PATH")
    source = Path(__file__).parents[2] / "kernels" / "csrc" / "scan.cpp"
    sets = ("-DVSSM_HAVE_AVX2=1", "-DVSSM_HAVE_AVX512=1")
    subprocess.run([found, "-std=c++17", "-fsyntax-only", "-Werror", *sets, source], check=True)


def test_nothing_is_loaded_at_import():
    code = "from vssm_kernels import cpu_library; assert cpu_library._library is None and cpu_library._reason is None"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_missing_and_foreign_libraries_are_explained(monkeypatch, tmp_path):
    def reload(files):
        monkeypatch.setattr(cpu_library, "_library", None)
        monkeypatch.setattr(cpu_library, "_reason", None)
        monkeypatch.setattr(cpu_library, "_library_files", lambda: files)
        return cpu_library.unavailable_reason()

    assert "not there" in reload([])
    (tmp_path / "_cpu_scan.so").write_bytes(b"not a library")
    assert "install a C++ compiler" in reload([tmp_path / "_cpu_scan.so"])
    with pytest.raises(RuntimeError, match="reinstall"):
        cpu.selective_scan_fwd(*make(1, 1, 1, 1, 1))


@needs_library
def test_another_interface_version_is_refused(monkeypatch):
    monkeypatch.setattr(cpu_library, "_library", None)
    monkeypatch.setattr(cpu_library, "_reason", None)
    monkeypatch.setattr(cpu_library, "ABI_VERSION", -1)
    assert "interface version" in cpu_library.unavailable_reason()


@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_second_openmp_runtime():
    code = """
import torch
from vssm_kernels import cpu_library
def runtimes():
    return {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rsplit("/", 1)[-1]}
torch.ones(1 << 20).exp()
before = runtimes()
assert cpu_library.unavailable_reason() is None and runtimes() == before, (before, runtimes())
if any("libgomp" in path for path in before):
    assert cpu_library._gomp_parallel().value
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


@needs_library
@pytest.mark.parametrize("length", [1, 2, 7, 49, 63, 196, 500, 1025])
@pytest.mark.parametrize("states", [1, 2, 16])
@pytest.mark.parametrize("groups", [1, 4])
def test_values_and_gradients(length, states, groups):
    seed = length + states + groups
    inputs = make(1 + seed % 2, 12 * groups, length, states, groups, seed=seed)
    grad_y, grad_last_state = gradients_for(inputs)
    want = expected(inputs, True, grad_y, grad_last_state)
    for _ in every_variant():
        assert_close(computed(inputs, True, grad_y, grad_last_state), want, 3e-6)


@needs_library
@pytest.mark.parametrize("with_d, with_bias, softplus, with_last", product([False, True], repeat=4))
def test_every_option(variant, with_d, with_bias, softplus, with_last):
    inputs = make(2, 20, 37, 3, 2, with_d, with_bias)
    if not softplus:  # steps are positive in use; with negative ones the state would grow
        inputs[1] = inputs[1].abs() * 0.3
        inputs[6] = None if inputs[6] is None else inputs[6].abs()
    grad_y, grad_last_state = gradients_for(inputs, with_last)
    want = expected(inputs, softplus, grad_y, grad_last_state)
    assert_close(computed(inputs, softplus, grad_y, grad_last_state), want)


# Group sizes around the vector widths and the strips of 32 channels that the gradients are summed in.
@needs_library
@pytest.mark.parametrize("channels, groups", [(1, 1), (3, 1), (10, 2), (17, 1), (33, 1), (111, 3), (96, 1)])
def test_ragged_groups(variant, channels, groups):
    inputs = make(2, channels, 70, 5, groups)
    grad_y, grad_last_state = gradients_for(inputs)
    assert_close(computed(inputs, True, grad_y, grad_last_state), expected(inputs, True, grad_y, grad_last_state), 3e-6)


@needs_library
@pytest.mark.parametrize("scale", [-16.0, -100.0, -1e4, 0.02])
def test_extreme_steps_and_decays(variant, scale):
    inputs = make(1, 18, 90, 3, 1)
    inputs[1] = torch.linspace(-20, 20, 18 * 90).reshape(90, 18).T.reshape(1, 18, 90).contiguous()
    inputs[2] = torch.rand(18, 3).add(0.5) * scale
    inputs[6] = torch.zeros(18)
    if scale > 0:  # a growing state: short enough not to overflow
        inputs = [x if x is None or x.shape[-1] != 90 else x[..., :24].contiguous() for x in inputs]
    grad_y, grad_last_state = gradients_for(inputs)
    want = expected(inputs, True, grad_y, grad_last_state)
    got = computed(inputs, True, grad_y, grad_last_state)
    assert_close(got, want, 4e-6)
    # Beyond the overall scale: a tiny step keeps its relative accuracy, down to the smallest normal numbers.
    state = torch.full((1, 1, 1, 1), 1.0)
    for delta in (-20.0, -60.0, -80.0, -5.0, 0.0, 5.0, 19.9, 20.1, 80.0):
        x = torch.full((1, 1, 1), delta)
        y, _ = cpu.selective_scan_fwd(torch.ones_like(x), x, torch.zeros(1, 1), state, state, None, None, True)
        step = torch.nn.functional.softplus(x.double())
        assert abs(y.double() / step - 1).item() < 1e-6, delta


@needs_library
def test_states_that_decay_to_nothing(variant):
    inputs = make(1, 16, 600, 1, 1, with_d=False, with_bias=False)
    inputs[0][..., 1:] = 0
    inputs[1] = torch.full_like(inputs[1], 0.5)
    inputs[2] = torch.full_like(inputs[2], -1.0)
    y, last_state = cpu.selective_scan_fwd(*inputs)
    assert (last_state == 0).all() and (y[..., -100:] == 0).all()


@needs_library
def test_an_infinite_decay_forgets(variant):
    inputs = make(1, 16, 40, 2, 1)
    inputs[2][:] = -torch.inf
    y, last_state = cpu.selective_scan_fwd(*inputs, True)
    want, want_state = reference.selective_scan_fwd(*inputs, True)
    assert y.isfinite().all()
    torch.testing.assert_close((y, last_state), (want, want_state))


@needs_library
@pytest.mark.parametrize("which", range(5))
def test_nan_stays_nan(variant, which):
    inputs = make(1, 16, 40, 2, 1)
    inputs[which][..., 0] = float("nan")
    grad_y = torch.ones(1, 16, 40)
    y, last_state = cpu.selective_scan_fwd(*inputs, True)
    assert y[..., 0].isnan().all()
    if NAMES[which] != "C":
        assert last_state[..., 0].isnan().all()
    grad_u = cpu.selective_scan_bwd(grad_y, None, *inputs, True)[0]
    if NAMES[which] != "u":
        assert grad_u[..., 0].isnan().all()


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
def test_half_inputs(dtype, out_dtype):
    inputs = [x.to(dtype) if i in (0, 1, 3, 4) else x for i, x in enumerate(make(2, 24, 100, 4, 2))]
    grad_y = gradients_for(inputs)[0].to(out_dtype or dtype)
    want = expected(inputs, True, grad_y, None)
    got = computed(inputs, True, grad_y, None, out_dtype=out_dtype)
    dtypes = [
        out_dtype or dtype,
        torch.float32,
        dtype,
        dtype,
        torch.float32,
        dtype,
        dtype,
        torch.float32,
        torch.float32,
    ]
    assert [x.dtype for x in got] == dtypes
    for x, (ref, scale) in zip(got, want, strict=True):
        tolerance = 3e-6 if x.dtype == torch.float32 else torch.finfo(dtype).eps
        assert (x.double() - ref).abs().max().item() <= tolerance * scale
    reference_dtypes = [x.dtype for x in reference.selective_scan_bwd(grad_y, None, *inputs, True)]
    assert dtypes[2:] == reference_dtypes


@needs_library
def test_any_strides():
    u, delta, A, B, C, D, bias = make(2, 24, 50, 4, 2)
    strided = [
        u.transpose(1, 2).contiguous().transpose(1, 2),
        delta[:, :1].expand(2, 24, 50),
        A.T.contiguous().T,
        torch.stack([B, B], dim=-1)[..., 0],
        C[:1].expand(2, -1, -1, -1),
        D[:1].expand(24),
        bias.flip(0).flip(0),
    ]
    assert not any(x.is_contiguous() for x in strided[:6])
    grad_y, grad_last_state = torch.ones(1).expand(2, 24, 50), gradients_for(strided)[1].mT.contiguous().mT
    want = expected(strided, True, grad_y, grad_last_state)
    assert_close(computed(strided, True, grad_y, grad_last_state), want)


@needs_library
def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64"):
        cpu.selective_scan_fwd(*(x.double() for x in make(1, 2, 3, 1, 1)))


@needs_library
def test_same_bits_for_every_run_and_thread_count(variant):
    inputs = make(3, 2 * 70, 130, 3, 2)
    grad_y, grad_last_state = gradients_for(inputs)
    results = by_threads(lambda: computed(inputs, True, grad_y, grad_last_state), (1, 2, 2, 5))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_library
def test_plain_threads_where_there_is_no_openmp():
    inputs = make(2, 70, 60, 2, 1)
    grad_y = gradients_for(inputs)[0]
    with_openmp = computed(inputs, True, grad_y, None)
    library = cpu_library.get_library()
    library.vssm_set_gomp_parallel(None)
    try:
        without = computed(inputs, True, grad_y, None)
    finally:
        library.vssm_set_gomp_parallel(cpu_library._gomp_parallel())
    assert all(torch.equal(a, b) for a, b in zip(with_openmp, without, strict=True))


@needs_library
def test_calls_from_several_threads():
    inputs = make(1, 40, 200, 2, 1)
    want, results = cpu.selective_scan_fwd(*inputs, True)[0], []
    workers = [
        threading.Thread(target=lambda: results.append(cpu.selective_scan_fwd(*inputs, True)[0])) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4 and all(torch.equal(want, y) for y in results)


@needs_library
@pytest.mark.parametrize("length", [1, 15, 33, 64])
def test_outputs_are_fully_written(variant, monkeypatch, length):
    inputs = make(2, 35, length, 3, 1)
    grad_y = gradients_for(inputs)[0]
    want = computed(inputs, True, grad_y, None)
    empty, allocated = torch.empty, []

    def poisoned(*args, **kwargs):
        allocated.append(empty(*args, **kwargs).fill_(float("nan")))
        return allocated[-1]

    monkeypatch.setattr(torch, "empty", poisoned)
    got = computed(inputs, True, grad_y, None)
    assert len(allocated) == 9
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@needs_library
def test_an_empty_batch():
    inputs = make(0, 4, 5, 2, 1)
    got = computed(inputs, True, inputs[0], None)
    assert got[0].shape == (0, 4, 5)
    assert all((x == 0).all() for x in got)


@needs_library
def test_subnormal_numbers_are_left_alone_outside():
    inputs = make(1, 16, 8, 1, 1)
    cpu.selective_scan_fwd(*inputs, True)
    assert torch.tensor(1e-40) * 0.5 != 0
