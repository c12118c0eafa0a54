"""The benchmarks of ops: what can be said of them without their device."""

import sys
from pathlib import Path

import pytest
import torch

from vssm_kernels import reference

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("peers", "registry", "run", "selective_scan", "selective_scan_2d", "neighborhood_attention", "volumes")
    names += ("few_positions",)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    yield run
    for name in names:
        sys.modules.pop(name, None)


def test_those_for_gpus_are_skipped_with_a_reason(run):
    gpu = [benchmark for name, benchmark in run.BENCHMARKS.items() if "_gpu_" in name]
    assert len(gpu) == 4
    results = [run.run_benchmark(benchmark, torch.device("cpu"), rounds=1) for benchmark in gpu]
    for result in results:
        assert not result["milliseconds"] and all("cuda" in reason for reason in result["skipped"].values())
    assert "not run: " in run.as_markdown({}, results)


def test_ratios_and_limits_name_candidates(run):
    for benchmark in run.BENCHMARKS.values():
        if "_gpu_" in benchmark.name:
            built = benchmark.build(torch.device("cpu"))
            named = {name for r in benchmark.ratios for name in (r.over, r.under)} | set(benchmark.limits)
            assert named - {"step size by a matrix product, fused fwd"} <= set(built), benchmark.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_one_runs(run, dtype):
    import selective_scan_2d

    candidates = selective_scan_2d.build((1, 3, 4, 2, 1), dtype, torch.device("cpu"))
    for candidate in candidates.values():
        assert isinstance(candidate, str) or candidate() is not None


def test_attention_in_windows(run):
    """Every candidate computes the same, but those with projections."""
    import neighborhood_attention

    benchmarks = [benchmark for name, benchmark in run.BENCHMARKS.items() if name.startswith("neighborhood")]
    named = {name for benchmark in benchmarks for ratio in benchmark.ratios for name in (ratio.over, ratio.under)}
    built = neighborhood_attention.build(1, 7, 3, 2, 2, 8, torch.device("cpu"))
    assert named <= set(built)
    want = built["gather fwd"]()
    assert torch.allclose(built["torch fwd"](), want, atol=1e-5)
    assert torch.allclose(built["dense with a mask fwd"]().transpose(1, 2).reshape(want.shape), want, atol=1e-5)
    assert built["with projections fwd"]().shape == built["Swin's window attention fwd"]().shape == (1, 7, 7, 16)
    assert "CUDA" in built["flex fwd"] and callable(built["torch bwd"])


def test_volumes(run):
    import volumes

    built = volumes.build(2, torch.device("cpu"))
    benchmarks = [benchmark for name, benchmark in run.BENCHMARKS.items() if name.startswith("volume")]
    assert len(benchmarks) == 3
    assert {name for b in benchmarks for ratio in b.ratios for name in (ratio.over, ratio.under)} == set(built)
    assert built["attention fwd"]().shape == (1, 3, 8, 32)
    if callable(built["scan fwd"]):
        y, copies = built["scan fwd"](), built["scan of permuted copies fwd"]()
        torch.testing.assert_close(y, copies, rtol=1e-4, atol=1e-5)
        for mine, other in zip(built["scan fwd+bwd"]()[1], built["scan of permuted copies fwd+bwd"]()[1], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert "64 times that of 32^3" in volumes.build(64, torch.device("cpu"))["attention fwd"]


def test_a_limit_is_reported(run):
    benchmark = run.Benchmark("x", "about", lambda device: {"it": lambda: None}, limits={"it": 1e9})
    result = run.run_benchmark(benchmark, torch.device("cpu"), rounds=2)
    assert result["ratios"] == [
        {"ratio": "it, ms", "value": result["ratios"][0]["value"], "target": "<= 1e+09", "holds": True}
    ]


@pytest.mark.parametrize("states", [1, 3])
def test_peers_compute_the_same(run, states):
    import peers

    gen = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 7), (2, 4, 7), (4, states), (2, 2, states, 7), (2, 2, states, 7), (4,), (4,)]
    inputs = [torch.randn(shape, generator=gen) for shape in shapes]
    inputs[2] = -inputs[2].exp()
    want, _ = reference.selective_scan_fwd(*inputs, delta_softplus=True)
    assert "CUDA" in peers.mamba_ssm(inputs)
    torch.testing.assert_close(peers.associative_scan(inputs)(*inputs), want)
    candidates = {}
    leaves = [x.clone().requires_grad_() for x in inputs]
    peers.add_peers(candidates, inputs, leaves, torch.ones_like(want))
    grads = candidates["torch associative_scan fwd+bwd"]()
    expected = torch.autograd.grad(reference.selective_scan_fwd(*leaves, delta_softplus=True)[0].sum(), leaves)
    torch.testing.assert_close(grads, expected)


def test_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    benchmark = run.Benchmark("x", "about", lambda device: {"it": lambda: None, "other": "why not"})
    results = [run.run_benchmark(benchmark, torch.device("cpu"), rounds=2)]
    run.draw({"cpu": "one"}, results, tmp_path / "times.png")
    assert (tmp_path / "times.png").stat().st_size > 2000


def test_few_positions(run):
    """The backend computes what the reference does where the state is larger than the sequence."""
    import few_positions

    names = {name for r in run.BENCHMARKS["few_positions_n256_2x2_b1"].ratios for name in (r.over, r.under)}
    built = few_positions.build(1, 2, 8, torch.device("cpu"))
    assert names == set(built)
    if not isinstance(built["backend fwd"], str):
        torch.testing.assert_close(built["backend fwd"](), built["reference fwd"](), rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(built["backend fwd+bwd"]()[1], built["reference fwd+bwd"]()[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
