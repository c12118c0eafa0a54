"""The table of cost against tokens, on two small maps."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vssm._cli import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import linear_cost  # noqa: E402


def test_peak_memory_counts_what_a_call_holds():
    """In a fresh process, as its docstring asks: in this one the tests before have left free pages with malloc."""
    code = """
import torch
from vssm.profiling.memory import peak_memory
print(peak_memory(lambda: torch.ones(16 << 20), torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 << 20 < int(done.stdout) < 80 << 20


def test_table_files_and_picture(tmp_path, capsys, monkeypatch):
    """Memory is measured in a process of its own for one row, and here for the others, which would take 20 s."""
    pytest.importorskip("matplotlib")
    apart = linear_cost.memory_apart

    def mostly_here(argv, name, which, sides):
        if (name, which) == ("SS2D", "forward + backward"):
            return apart(argv, name, which, sides)
        args = SimpleNamespace(dim=32, batch_size=1, device="cpu", dtype="float32")
        return dict(zip(sorted(sides), linear_cost.memory_here(args, name, which, sides), strict=True))

    monkeypatch.setattr(linear_cost, "memory_apart", mostly_here)
    words = ["--sides", "6", "12", "--dim", "32", "--rounds", "2", "--max-gib", "0.0001"]
    assert run(linear_cost.main, [*words, "--output", str(tmp_path / "cost")]) == 0
    table = capsys.readouterr().out
    results = json.loads((tmp_path / "cost.json").read_text())
    assert (tmp_path / "cost.md").read_text() == table and (tmp_path / "cost.png").stat().st_size > 10_000
    assert {(r["mixer"], r["pass"], r["tokens"]) for r in results["rows"]} == {
        (mixer, which, tokens) for mixer in linear_cost.MIXERS for which in linear_cost.PASSES for tokens in (36, 144)
    }
    skipped = [r for r in results["rows"] if "skipped" in r]
    assert {(r["mixer"], r["tokens"]) for r in skipped} == {("plain attention", 144)}
    assert all(r["mebibytes"] >= 0 and r["milliseconds"]["median"] > 0 for r in results["rows"] if r not in skipped)
    assert "| SS2D |" in table and "GiB for its scores |" in table


def test_growth_is_the_exponent():
    rows = [{"tokens": n, "milliseconds": {"median": float(n**2)}} for n in (10, 100)]
    assert linear_cost.growth(rows, lambda row: row["milliseconds"]["median"]) == pytest.approx(2)
    assert linear_cost.growth(rows[:1], lambda row: 1.0) is None
