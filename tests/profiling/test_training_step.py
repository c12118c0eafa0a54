"""The tool that measures a training step, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch

from vssm._cli import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import training_step  # noqa: E402

SMALL = ["--model", "vmamba_pico", "--img-size", "32", "--batch-size", "2", "--rounds", "1"]


def test_table_and_files(tmp_path, capsys):
    words = [*SMALL, "--scans", "torch", "plain", "--output", str(tmp_path / "step")]
    assert run(training_step.main, words) == 0
    results = json.loads((tmp_path / "step.json").read_text())
    first, second = results["rows"]
    assert (first["scan"], second["scan"]) == ("torch", "plain")
    assert first["time ratio"] == first["memory ratio"] == 1
    assert second["time ratio"] > 0 and second["mebibytes"] > 1
    table = (tmp_path / "step.md").read_text()
    assert table == capsys.readouterr().out and "| plain |" in table


@pytest.mark.parametrize("scan", ["plain", "indexed"])
@pytest.mark.parametrize("name", ["vmamba_pico", "vmamba_tiny_s2l5"])
def test_scans_without_op_compute_the_same(name, scan):
    torch.manual_seed(0)
    model, x = timm.create_model(name, depths=(1, 1, 1, 1)), torch.randn(2, 3, 32, 64)

    def run_with(way):
        model.zero_grad()
        with training_step.way_to_scan(way):
            y = model.eval()(x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad for p in model.parameters())]

    for got, want in zip(run_with(scan), run_with("reference"), strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm() + 1e-7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "vmamba_picko"], "no model is called 'vmamba_picko' (did you mean 'vmamba_pico'"),
        (["--scans", "fast"], "there is no scan 'fast' on cpu"),
    ],
)
def test_refusals(words, message, capsys):
    assert run(training_step.main, words) == 2
    assert message in capsys.readouterr().err
