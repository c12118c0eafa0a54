"""The tool that measures a training step, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest

from vssm._cli import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import training_step  # noqa: E402

SMALL = ["--model", "vmamba_pico", "--img-size", "32", "--batch-size", "2", "--rounds", "1"]


def test_table_and_files(tmp_path, capsys):
    words = [*SMALL, "--backends", "torch", "reference", "--output", str(tmp_path / "step")]
    assert run(training_step.main, words) == 0
    results = json.loads((tmp_path / "step.json").read_text())
    first, second = results["rows"]
    assert (first["scan backend"], second["scan backend"]) == ("torch", "reference")
    assert first["time ratio"] == first["memory ratio"] == 1
    assert second["time ratio"] > 0 and second["mebibytes"] > 1
    table = (tmp_path / "step.md").read_text()
    assert table == capsys.readouterr().out and "| reference |" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "vmamba_picko"], "no model is called 'vmamba_picko' (did you mean 'vmamba_pico'"),
        (["--backends", "fast"], "there is no backend 'fast' on cpu"),
    ],
)
def test_refusals(words, message, capsys):
    assert run(training_step.main, words) == 2
    assert message in capsys.readouterr().err
