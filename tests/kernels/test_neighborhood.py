"""Neighbourhood attention: the rule and its numbers, every form against the reference in float64, and the operator."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import parity
from tests.kernels.test_cpu import by_threads, needs_library
from vssm_kernels import (
    available_backends,
    decompositions,
    keeps_weights,
    neighborhood_attention,
    neighborhood_sum,
    neighborhood_weights,
)
from vssm_kernels.backends import choose_attention_backend
from vssm_kernels.neighborhood import compiled, flex, rule, tiles

OP = torch.ops.vssm.neighborhood_attention
VECTORS = parity.load("a2mamba")["ops"]
# (map, window, dilation): odd sizes, several kinds of tiles, windows larger than the map, steps larger than the map.
CASES = [
    ((1, 1), (3, 3), (1, 1)),
    ((9, 23), (3, 5), (1, 1)),
    ((25, 31), (7, 3), (1, 2)),
    ((13, 22), (5, 3), (2, 7)),
    ((5, 30), (7, 7), (1, 3)),
    ((4, 3), (7, 5), (2, 5)),
]
each_case = pytest.mark.parametrize(("size", "window", "dilation"), CASES)


def make(size, window, heads=2, channels=4, batch=2, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, *size, heads, channels, generator=g, dtype=dtype) for _ in range(3))
    bias = torch.randn(heads, 2 * window[0] - 1, 2 * window[1] - 1, generator=g, dtype=dtype)
    return dict(q=q, k=k, v=v, bias=bias)


def test_windows():
    for record in VECTORS["windows"]:
        want = record["neighbours"], record["bias_index"]
        assert rule.windows(record["n"], record["k"], record["d"]) == want


def test_a_short_axis_is_seen_whole():
    pixels, rows = rule.windows(4, 7, 1)
    assert pixels == [[0, 1, 2, 3]] * 4 and rows == [[6, 7, 8, 9], [5, 6, 7, 8], [4, 5, 6, 7], [3, 4, 5, 6]]


@pytest.mark.parametrize("backend", ["torch", "reference", pytest.param("cpp", marks=needs_library)])
@pytest.mark.parametrize("record", VECTORS["na2d"], ids=lambda record: str(record["shape"]))
def test_numbers_of_natten(record, backend):
    """Of its own CPU kernels; maps are channels-first in the records."""
    q, k, v = (
        torch.from_numpy(np.random.RandomState(i).standard_normal(record["shape"])).float().permute(0, 2, 3, 1, 4)
        for i in range(3)
    )
    window = record["kernel"]
    shape = (record["shape"][1], *(2 * size - 1 for size in window))
    bias = torch.from_numpy(np.random.RandomState(3).standard_normal(shape)).float()
    inputs = dict(q=q, k=k, v=v, rpb=bias)
    leaves = [x.requires_grad_() for x in inputs.values()]
    y = neighborhood_attention(q, k, v, window, record["dilation"], bias, scale=1.0, backend=backend)
    y = y.permute(0, 3, 1, 2, 4)
    parity.check_summary(y, record["output"], 4e-6, "output")
    for name, grad in zip(inputs, torch.autograd.grad(parity.loss(y), leaves), strict=True):
        grad = grad if name == "rpb" else grad.permute(0, 3, 1, 2, 4)
        parity.check_summary(grad, record[f"grad_{name}"], 4e-6, name)


@each_case
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "plain"])
def test_against_the_reference(size, window, dilation, with_bias):
    inputs = {name: x.requires_grad_() for name, x in make(size, window).items()}
    if not with_bias:
        inputs["bias"] = None
    wanted = [x for x in inputs.values() if x is not None]
    given = dict(**inputs, kernel_size=list(window), dilation=list(dilation), scale=0.3)
    want = rule.attention_fwd(**given)  # differentiable by itself
    got = neighborhood_attention(**given, backend="torch")
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=want.dtype)
    for form in (got, tiles.attention_in_one_graph(**given), neighborhood_attention(**given, backend="reference")):
        assert torch.allclose(form, want, rtol=1e-12, atol=1e-12)
        gradients = zip(*(torch.autograd.grad(y, wanted, weight, retain_graph=True) for y in (form, want)), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-11) for a, b in gradients)


@needs_library
@each_case
def test_the_compiled_library(variant, size, window, dilation):
    """In float32, with a bias and without, queries and values of widths that fill no vector, maps in any layout."""
    inputs = make(size, window, heads=3, channels=19, dtype=torch.float32)
    inputs["v"] = torch.randn(2, 3, *size, 34, generator=torch.Generator().manual_seed(1)).movedim(1, 3)
    for names in (tuple(inputs), ("q", "k", "v")):
        exact = {name: inputs[name].double().requires_grad_() for name in names}
        given = dict(kernel_size=list(window), dilation=list(dilation), scale=0.3)
        want = rule.attention_fwd(**{"bias": None, **exact}, **given)
        grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(2))
        wanted = [want, *torch.autograd.grad(want, list(exact.values()), grad.double())]
        found = {"bias": None, **{name: inputs[name] for name in names}, **given}
        got = [compiled.attention_fwd(**found), *compiled.attention_bwd(grad, **found)]
        assert (got[4] is None) == ("bias" not in names)
        for ours, theirs in zip(got, wanted, strict=False):
            assert (ours - theirs).abs().max() < 3e-6 * max(1, theirs.abs().max())


@needs_library
def test_no_bits_depend_on_the_threads():
    q, k, v, bias = make((20, 13), (5, 7), dtype=torch.float32).values()
    given = (q, k, v, bias, (5, 7), (2, 1), 0.5)
    results = by_threads(lambda: [compiled.attention_fwd(*given), *compiled.attention_bwd(v, *given)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_case
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "plain"])
def test_two_sets_of_values(size, window, dilation, keep, with_bias):
    """The second made of the first; weights, sums and all gradients against two attentions by the reference."""
    inputs = {name: x.requires_grad_() for name, x in make(size, window).items()}
    second = torch.randn(inputs["v"].shape, dtype=torch.float64).requires_grad_()
    wanted = [*inputs.values(), second][: None if with_bias else 3]
    (q, k, v, bias), others = inputs.values(), (window, dilation)
    bias = bias if with_bias else None

    def by_halves():
        weights = neighborhood_weights(q, k, *others, bias, 0.3, keep)
        assert (weights.shape[1] > 0) == keep
        first = neighborhood_sum(weights, q, k, v, *others, bias, 0.3)
        return first, neighborhood_sum(weights, q, k, first.sin() * second, *others, bias, 0.3)

    def by_the_reference():
        first = neighborhood_attention(q, k, v, *others, bias, 0.3, backend="reference")
        return first, neighborhood_attention(q, k, first.sin() * second, *others, bias, 0.3, backend="reference")

    results = []
    for run in (by_halves, by_the_reference):
        first, last = run()
        loss = first.cos().sum() + last.square().sum()
        results.append([first, last, *torch.autograd.grad(loss, wanted)])
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-11)


def test_which_weights_are_kept():
    """Those of small windows; of a large one they would take more than eight times the memory of the queries."""
    q = torch.empty(1, 28, 28, 2, 16, device="meta")
    assert keeps_weights(q, (3, 3), (1, 1)) and not keeps_weights(q, (11, 11), (1, 1))
    for window in ((3, 3), (11, 11)):
        weights = neighborhood_weights(q, q, window)
        assert (weights.shape[1] > 0) == keeps_weights(q, window, (1, 1))
        assert weights.numel() <= 8 * q.numel()


@each_case
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_by_its_eager_form(size, window, dilation):
    """Which has no backward on a CPU; compiled for a GPU it has."""
    inputs = make(size, window, dtype=torch.float32)
    given = dict(**inputs, kernel_size=list(window), dilation=list(dilation), scale=0.3)
    assert torch.allclose(flex.attention_fwd(**given), rule.attention_fwd(**given), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="CUDA tensors, got a cpu tensor"):
        neighborhood_attention(**given, backend="flex")


def test_more_tiles_than_fit_at_once():
    inputs = make((40, 90), (11, 9), channels=2)
    given = dict(**inputs, kernel_size=[11, 9], dilation=[1, 1])
    got, want = (neighborhood_attention(**given, backend=name) for name in ("torch", "reference"))
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    inputs = make((14, 15), (5, 5), channels=8, dtype=torch.float32)
    half = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in half.items()}
    eps = torch.finfo(dtype).eps
    got, want = (neighborhood_attention(**x, kernel_size=(5, 5)) for x in (half, exact))
    assert got.dtype == dtype and (got - want).abs().max() < 4 * eps
    got.float().square().sum().backward()
    want.square().sum().backward()
    for name, x in half.items():
        assert (x.grad - exact[name].grad).abs().max() < 8 * eps * exact[name].grad.abs().max(), name


def test_memory_stays_near_that_of_the_maps():
    """The most bytes that are there at once beside the inputs: results (one map; three gradients), and to work with."""
    inputs = make((56, 56), (11, 11), heads=2, channels=16, batch=4, dtype=torch.float32)
    given = [*inputs.values(), [11, 11], [1, 1], 0.25]
    one_map = inputs["q"].nbytes
    for run, maps in ((tiles.attention_fwd, 3), (lambda *args: tiles.attention_bwd(inputs["q"], *args), 6)):
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run(*given)
        held = most = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        assert one_map < most < maps * one_map


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
def test_halves_as_operators(keep):
    """The count of operations is the same however the weights come; values may be wider than queries."""
    inputs = make((6, 5), (3, 3), dtype=torch.float32)
    q, k, v, bias = (x.requires_grad_() for x in inputs.values())
    halves = torch.ops.vssm
    weights = halves.neighborhood_weights(q, k, [3, 3], [1, 2], bias, None, keep)
    torch.library.opcheck(halves.neighborhood_weights.default, (q, k, [3, 3], [1, 2], bias, None, keep))
    leaf = weights.detach().requires_grad_()
    torch.library.opcheck(halves.neighborhood_sum.default, (leaf, q, k, v, [3, 3], [1, 2], bias))
    with FlopCounterMode(display=False) as counter:
        weights = halves.neighborhood_weights(q, k, [3, 7], keep=keep)
        (halves.neighborhood_sum(weights, q, k, v, [3, 7]) + halves.neighborhood_sum(weights, q, k, v, [3, 7])).sum()
    assert counter.get_total_flops() == 2 * (2 * 6 * 5) * 2 * (3 * 5) * (4 + 4 + 4)
    half_q, half_k = q.detach().bfloat16(), k.detach().bfloat16()
    weights = halves.neighborhood_weights(half_q, half_k, [3, 3], keep=keep)
    assert halves.neighborhood_sum(weights, half_q, half_k, v, [3, 3]).dtype == weights.dtype == torch.float32
    empty = halves.neighborhood_weights(q[:0], k[:0], [3, 3], keep=keep)
    assert halves.neighborhood_sum(empty, q[:0], k[:0], v[:0], [3, 3]).shape == (0, 6, 5, 2, 4)


def test_operator():
    inputs = make((6, 5), (3, 3), dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs.values()]
    torch.library.opcheck(OP.default, (*leaves[:3], [3, 3], [1, 2], leaves[3]))
    empty = [x[:0] for x in leaves[:3]]
    assert OP(*empty, [3, 3]).shape == (0, 6, 5, 2, 4)
    with FlopCounterMode(display=False) as counter:
        OP(*leaves[:3], [3, 7]).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 6 * 5) * 2 * (3 * 5) * (4 + 4)  # 5 of 7 columns are there
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = OP(leaves[0].bfloat16(), *leaves[1:3], [3, 3], bias=leaves[3])
    assert y.dtype == torch.float32


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    inputs = make((6, 7), (3, 3), dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs.values()]

    def f(q, k, v, bias):
        return OP(q, k, v, [3, 3], [q.shape[1] // 3, 2], bias).square()

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for ours, theirs in zip(*(torch.autograd.grad(g(*leaves).sum(), leaves) for g in (f, compiled)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_decomposed_program():
    inputs = make((9, 8), (3, 3), dtype=torch.float32)

    class Mixer(torch.nn.Module):
        def forward(self, q, k, v, bias):
            return OP(q, k, v, kernel_size=[3, 3], dilation=[2, 1], bias=bias)

    program = torch.export.export(Mixer(), tuple(inputs.values())).run_decompositions(decompositions())
    assert not [n for n in program.graph.nodes if "vssm" in str(n.target)]
    assert torch.allclose(program.module()(*inputs.values()), Mixer()(**inputs), rtol=1e-5, atol=1e-6)


def test_bad_input():
    inputs = make((6, 5), (3, 3))
    with pytest.raises(ValueError, match=r"two odd numbers, got \(3, 4\)"):
        neighborhood_attention(**inputs, kernel_size=(3, 4))
    with pytest.raises(ValueError, match=r"at least 1, got \(0, 1\)"):
        neighborhood_attention(**inputs, kernel_size=(3, 3), dilation=(0, 1))
    with pytest.raises(ValueError, match=r"bias must have shape \(2, 5, 9\), got \(2, 5, 5\)"):
        neighborhood_attention(**inputs, kernel_size=(3, 5))
    with pytest.raises(ValueError, match="auto, flex, cpp, torch, reference, got 'triton'"):
        neighborhood_attention(**inputs, kernel_size=(3, 3), backend="triton")
    if "cpp" in available_backends():
        with pytest.raises(RuntimeError, match="backend='cpp' cannot run: .*no float64"):
            neighborhood_attention(**inputs, kernel_size=(3, 3), backend="cpp")
    with pytest.raises(TypeError, match="dtype of the other inputs"):
        neighborhood_attention(**{**inputs, "v": inputs["v"].float()}, kernel_size=(3, 3))
    with pytest.raises(ValueError, match="the map is empty"):
        neighborhood_attention(*(x[:, :0] for x in list(inputs.values())[:3]), kernel_size=(3, 3))


def test_the_environment_chooses(monkeypatch):
    q = torch.zeros(1, 2, 2, 1, 4)
    free = compiled if "cpp" in available_backends() else tiles
    for value, module in (("reference", rule), ("torch", tiles), ("triton", free), ("auto", free)):
        monkeypatch.setenv("VSSM_BACKEND", value)
        assert choose_attention_backend("auto", q, q) is module
        assert choose_attention_backend("auto", q.double(), q.double()) is (tiles if module is free else module)
    monkeypatch.setenv("VSSM_BACKEND", "cpp")
    if free is compiled:
        assert choose_attention_backend("auto", q, q) is compiled
    with pytest.raises(RuntimeError, match="VSSM_BACKEND=cpp cannot run"):
        choose_attention_backend("auto", q.double(), q.double())
