"""The benchmark of runtimes, in small."""

import json
import sys
from pathlib import Path

import pytest

from vssm._cli import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import runtimes  # noqa: E402


def test_runtimes_side_by_side(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    words = ["--models", "test_vit3", "--rounds", "2", "--img-size", "160", "--files", str(tmp_path / "files")]
    for written in (True, False):
        assert run(runtimes.main, [*words, "--output", str(tmp_path / "t")]) == 0
        out, err = capsys.readouterr()
        assert ("writing" in err) == written, "a file that is there is taken"
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert (tmp_path / "t.md").read_text() == out and "| test_vit3 | onnxruntime |" in out
    assert {"eager", "onnxruntime"} <= set(row["runtimes"]) and row["nodes"] > 10 and row["megabytes"] > 0.1
    assert all(found["median"] > 0 and found["deviation"] < 1e-4 for found in row["runtimes"].values())
