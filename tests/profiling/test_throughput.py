"""Timing side by side: what is called how often, and the tool's table, files and refusals."""

import json
import sys
from pathlib import Path

import pytest
import torch

from vssm._cli import run
from vssm.profiling.throughput import environment, interleaved, nearest, operators, summary

pytest.importorskip("fvcore")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import benchmark  # noqa: E402


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
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU())
    shares = operators(model, torch.randn(512, 512))
    assert shares[0][0] == "aten::addmm" and 0 < sum(share for _, share in shares) <= 1 + 1e-9


def test_environment_names_the_backend(monkeypatch):
    monkeypatch.setenv("VSSM_BACKEND", "torch")
    info = environment(torch.device("cpu"))
    assert info["scan backend"] == "torch" and info["threads"] == str(torch.get_num_threads())


def test_tool(tmp_path, capsys):
    words = ["vmamba_pic?", "--peers", "test_resnet", "--img-size", "64", "--batch-size", "1", "2", "--rounds", "2"]
    words += ["--also-backend", "torch"]
    files = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    assert run(benchmark.main, [*words, *files]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    rows = [(r["model"], r["batch"], r.get("scan backend")) for r in results["rows"]]
    of_a_batch = [("vmamba_pico", None), ("test_resnet", None), ("vmamba_pico", "torch")]
    assert rows == [(name, batch, backend) for batch in (1, 2) for name, backend in of_a_batch]
    ours, peer = results["rows"][:2]
    assert ours["peer"] == "test_resnet" and ours["input"] == [3, 64, 64]
    assert ours["ratio"] == pytest.approx(ours["images_per_s"] / peer["images_per_s"], rel=0.01)
    assert ours["images_per_s"] == pytest.approx(1e3 / ours["milliseconds"]["median"], rel=0.01)
    table = (tmp_path / "r.md").read_text()
    assert table == capsys.readouterr().out and "| vmamba_pico (scan: torch) |" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vmamba_picko", "timm knows no model 'vmamba_picko' (did you mean 'vmamba_pico'"),
        ("nothing_*", "No model's name matches 'nothing_*'."),
        ("vmamba_pico --device cudaa", "--device cudaa cannot be used"),
    ],
)
def test_refusals(words, message, capsys):
    assert run(benchmark.main, words.split()) == 2
    assert message in capsys.readouterr().err
