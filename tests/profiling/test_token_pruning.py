"""The benchmarks of token pruning, in small."""

import json
import sys
from pathlib import Path

import torch

from vssm._cli import run
from vssm.engine import TimmClassifier

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import pruning_accuracy  # noqa: E402
import token_pruning  # noqa: E402


def test_time_against_share(tmp_path, capsys):
    assert token_pruning.default_sites(24) == [4, 9, 14] and token_pruning.default_sites(36) == [7, 14, 21]
    words = ["--models", "vim_pico", "--keeps", "0.5", "--rounds", "1", "--batch-size", "1", "--img-size", "96"]
    assert run(token_pruning.main, [*words, "--output", str(tmp_path / "t")]) == 0
    table, results = capsys.readouterr().out, json.loads((tmp_path / "t.json").read_text())
    assert (tmp_path / "t.md").read_text() == table and "| 0.5 | 18, 8 |" in table
    dense, pruned = results["rows"]
    assert dense["keep"] == 1 and dense["patches"] == [] and pruned["sites"] == [0, 1]
    assert pruned["macs"] < 0.8 * dense["macs"] and pruned["paper"] < 0.8 * dense["paper"]
    assert pruned["milliseconds"]["median"] > 0


def test_accuracy_against_share(tmp_path, capsys):
    """Of an untrained net; the weights are those of a run's checkpoint."""
    torch.manual_seed(0)
    model = TimmClassifier(dict(name="vim_pico", num_classes=10, img_size=32, patch_size=4))
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "run.pth")
    words = ["vim-pico_digits", str(tmp_path / "run.pth"), "--sites", "0", "--keeps", "1", "0.5", "--seeds", "1"]
    assert run(pruning_accuracy.main, [*words, "--output", str(tmp_path / "a.md")]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "a.md").read_text() == table
    assert "360 held-out images" in table and "| 1 | all | 100% |" in table and "| 0.5 | 32 | 6" in table
    assert run(pruning_accuracy.main, ["vmamba-pico_digits", *words[1:]]) == 2
