"""The command for a GPU: in small from end to end, what it makes of parts that break, and its targets."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from vssm._cli import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu  # noqa: E402
import gpu_report  # noqa: E402


def read(folder):
    return json.loads((folder / "gpu.json").read_text())["parts"]


@pytest.mark.slow
def test_in_small_from_end_to_end(tmp_path, capfd):
    pytest.importorskip("triton")
    pytest.importorskip("fvcore")
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--tiny"]) == 0
    parts = read(tmp_path)
    assert list(parts) == list(gpu.SHARES)
    assert {name: part["state"] for name, part in parts.items()} == {
        name: "skipped" if name == "graphs" else "done" for name in gpu.SHARES
    }
    assert parts["tests"]["rows"] == [
        {"file": "tests/kernels/test_triton_2d.py", "passed": 1, "skipped": 0, "failing": 0}
    ]
    fused = next(row for row in parts["ops"]["rows"] if row.get("form") == "fused fwd")
    assert fused["share"] == pytest.approx(fused["limits"][fused["bound"]] / fused["milliseconds"])
    assert sum(row["chosen"] for row in parts["forms"]["rows"]) == 2, "one form of the forward, one of the backward"
    assert [row["model"] for row in parts["models"]["rows"]] == ["vmamba_pico", "test_convnext"]
    page = (tmp_path / "gpu.md").read_text()
    assert page in capfd.readouterr().out and "in Triton's interpreter on a CPU" in page
    assert ("gpu.png" in page) == (tmp_path / "gpu.png").exists()


# Stands for the child: the first part breaks the process, the second hangs, the third ends.
CHILD = """
import json, os, sys, time
words = sys.argv
file = os.path.join(words[words.index("--out") + 1], "gpu.json")
for part in words[words.index("--left") + 1 : words.index("--begun")]:
    results = json.load(open(file))
    results["parts"][part] = {"state": "running", "rows": [{"check": "kept"}]}
    json.dump(results, open(file + ".part", "w"))
    os.replace(file + ".part", file)
    if part == "tests":
        os._exit(3)
    if part == "opcheck":
        time.sleep(60)
    results["parts"][part]["state"] = "done"
    json.dump(results, open(file + ".part", "w"))
    os.replace(file + ".part", file)
"""


def test_what_breaks_or_hangs_costs_its_own_part(tmp_path, monkeypatch, capsys):
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": {"models": {"state": "done", "rows": []}}}))
    monkeypatch.setattr(gpu, "__file__", str(child))
    monkeypatch.setattr(gpu, "REPORT", 0)
    monkeypatch.setattr(gpu, "GRACE", 0.1)
    # Seconds; what hangs is ended after five.
    monkeypatch.setattr(gpu, "SHARES", {**gpu.SHARES, "tests": 4, "opcheck": 1, "poison": 60})
    words = ["--out", str(tmp_path), "--device", "cpu", "--tiny", "--minutes", str(65 / 60)]
    assert gpu.main([*words, "--only", "poison", "opcheck", "tests"]) == 1
    parts = read(tmp_path)
    assert {name: part["state"] for name, part in parts.items()} == {
        "models": "done",
        "tests": "failed",
        "opcheck": "failed",
        "poison": "done",
    }
    assert "ended with code 3" in parts["tests"]["why"] and "time was up" in parts["opcheck"]["why"]
    assert parts["opcheck"]["rows"] == [{"check": "kept"}]
    assert "| opcheck | FAILED |" in capsys.readouterr().out


def test_a_file_of_another_kind_is_kept(tmp_path, capsys):
    (tmp_path / "gpu.json").write_text("[1]")
    assert run(gpu.main, ["--out", str(tmp_path), "--device", "cpu", "--tiny"]) == 2
    assert "is not a file of this tool's" in capsys.readouterr().err and (tmp_path / "gpu.json").read_text() == "[1]"


def test_wheels_bring_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "NEEDED", {"no_such_module": "no-such-package", "json": "json"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(SystemExit, match="2"):
        gpu.install(None, tmp_path / "site")
    assert "lacks no-such-package; put" in capsys.readouterr().err
    wheels, info = tmp_path / "wheels", "no_such_package-1.0.dist-info"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "no_such_package-1.0-py3-none-any.whl", "w") as file:
        file.writestr("no_such_module.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: no-such-package\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    (wheels / "torch-0.1-py3-none-any.whl").touch()  # is installed: left alone
    gpu.install(wheels, tmp_path / "site")
    assert (tmp_path / "site" / "no_such_module.py").exists() and str(tmp_path / "site") in sys.path


def test_a_part_may_use_what_was_left_over():
    ends = gpu.deadlines(["tests", "models"], 100.0, 10)
    total = 600 - gpu.REPORT - gpu.GRACE
    assert ends["models"] == 100 + total and ends["tests"] == pytest.approx(100 + total * 120 / 320)
    assert gpu.deadlines(["models"], 0.0, 10) == {"models": total}


def measured(gpu_name, ms, images):
    ops = [{"op": "n1_stage1_b128", "form": "fused fwd", "milliseconds": ms}]
    cell = dict(mode="infer", compiled=False, dtype="bfloat16", batch=128)
    models = [{"model": name, "images_per_s": n, **cell} for name, n in images.items()]
    return {"parts": {"ops": {"ran": {"gpu": gpu_name}, "rows": ops}, "models": {"rows": models}}}


@pytest.mark.parametrize("ms, images, scan, model", [(0.2, 1400, "met", "met"), (0.3, 1300, "MISSED", "MISSED")])
def test_targets(ms, images, scan, model):
    results = measured("NVIDIA H200", ms, {gpu_report.VMAMBA: images, gpu_report.SWIN: 1000})
    verdicts = [verdict for *_, verdict in gpu_report.targets(results)]
    assert verdicts == [scan, model, *["not measured"] * 3]
    other = gpu_report.targets(measured("NVIDIA L4", ms, {}))
    assert other[0][-1] == "not judged: it is for an H200, not NVIDIA L4" and other[1][-1] == "not measured"


@pytest.fixture
def parts(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(gpu.ROOT / "kernels" / "benchmarks"))
    names = (
        "gpu_parts",
        "gpu_checks",
        "gpu_times",
        "gpu_run",
        "registry",
        "peers",
        "selective_scan",
        "selective_scan_2d",
    )
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import gpu_parts

    yield gpu_parts
    for name in names:
        sys.modules.pop(name, None)


def test_poisoned_memory_and_failures_are_seen(parts, monkeypatch):
    import gpu_checks

    with gpu_checks._Poisoned():
        made = [torch.empty(2), torch.empty_like(torch.zeros(2)), torch.zeros(1).new_empty(2)]
        assert torch.empty(2, dtype=torch.int64).dtype == torch.int64
    assert all(x.isnan().all() for x in made)
    given = parts.Run("cpu", True, float("inf"))
    cases = {"unwritten": lambda: [torch.empty(2)], "good": lambda: [torch.zeros(2)], "random": lambda: [torch.rand(2)]}
    monkeypatch.setattr(gpu_checks, "scan_cases", lambda given: cases)
    outcome = parts.run("poison", given)
    assert outcome["state"] == "failed" and outcome["why"].startswith("2 of 3 rows failed, the first: unwritten: ")
    assert [row["check"] for row in given.rows if "failed" in row] == ["unwritten", "random"]
    late = parts.Run("cpu", True, 0.0)
    assert parts.run("poison", late)["state"] == "failed" and len(late.rows) == 1, "a failure outlives a late part"
    cases.pop("unwritten")
    late = parts.Run("cpu", True, 0.0)
    assert parts.run("poison", late)["state"] == "stopped" and len(late.rows) == 1


def test_the_least_work_of_a_scan(parts):
    """By hand: one image of 2 x 2 with 3 channels, rank 1, one state."""
    import gpu_times

    read = 4 * (3 + 4 * 3) * 2
    assert gpu_times.scan_work(1, 2, 3, 1, 1, False) == (read + 4 * 3 * 2, 4 * 4 * 3 * 3)
    assert gpu_times.scan_work(1, 2, 3, 1, 1, True) == ((read + 24) * 2 + read, 2 * 144)
