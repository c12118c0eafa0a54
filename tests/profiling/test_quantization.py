"""The benchmark of quantisation, in small."""

import sys
from pathlib import Path

import torch

from vssm._cli import run
from vssm.engine import TimmClassifier

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import quantization  # noqa: E402


def test_accuracy_size_and_time(tmp_path, capsys, monkeypatch):
    kept = ("int8-dynamic", "w8a8 with 4 bits, Hadamard")
    monkeypatch.setattr(quantization, "RECIPES", {name: quantization.RECIPES[name] for name in kept})
    score = quantization.top1  # of few images here
    monkeypatch.setattr(quantization, "top1", lambda model, all: score(model, [tuple(x[:16] for x in all[0])]))
    torch.manual_seed(0)
    model = TimmClassifier(dict(name="vmamba_pico", num_classes=10))
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "run.pth")
    words = ["--classifier", "vmamba-pico_digits", str(tmp_path / "run.pth"), "--images", "8", "--rounds", "1"]
    assert run(quantization.main, [*words, "--output", str(tmp_path / "q.md")]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "q.md").read_text() == table.rstrip("\n") + "\n"
    rows = {
        cells[1].strip(): cells[2:-1] for cells in (line.split("|") for line in table.splitlines()) if len(cells) > 5
    }
    assert float(rows["float32"][1].strip(" %")) == 0 < float(rows["w8a8 with 4 bits, Hadamard"][1].strip(" %"))
    assert float(rows["w8a8 with 4 bits, Hadamard"][2]) < 0.5 * float(rows["float32"][2])
    assert float(rows["int8-dynamic"][3]) > 0 and rows["w8a8 with 4 bits, Hadamard"][3].strip() == "simulated"
