"""Timing side by side: what is called how often, and what is said about where it ran."""

import torch

from vssm.profiling.throughput import environment, interleaved, nearest, operators, summary


def test_rounds_are_interleaved():
    calls, seen = [], []
    jobs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = interleaved(jobs, torch.device("cpu"), 3, lambda done, total: seen.append((done, total)))
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert seen == [(i, 8) for i in range(1, 9)]
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns == list("ab" * 4)  # the warm-up, then the rounds


def test_summary_is_in_milliseconds():
    assert summary([3e-3, 1e-3, 2e-3]) == {"rounds": 3, "median": 2.0, "q1": 1.0, "q3": 3.0, "best": 1.0}
    assert summary([0.5])["q3"] == 500


def test_nearest_is_by_ratio():
    assert nearest(2.0, {"small": 1.1, "large": 3.0}) == "large"
    assert nearest(0.1, {"small": 1.1, "large": 3.0}) == "small"


def test_operators_name_what_costs():
    # Long enough that a busy machine's pauses fall into the matrix product.
    model, x = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.ReLU()), torch.randn(2048, 1024)
    with torch.inference_mode():
        shares = operators(lambda: model(x), torch.device("cpu"))
    assert shares[0][0] == "aten::addmm" and 0 < sum(share for _, share in shares) <= 1 + 1e-9


def test_environment_names_the_backend(monkeypatch):
    monkeypatch.setenv("VSSM_BACKEND", "torch")
    info = environment(torch.device("cpu"))
    assert info["scan backend"] == "torch" and info["threads"] == str(torch.get_num_threads())
