"""The weekly check of published weights, on files of our own behind file:// addresses."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from vssm._cli import run
from vssm.published import PUBLISHED, RUNS, read_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import check_weights  # noqa: E402
from check_weights import FAILED, FITS, HAND, Weight  # noqa: E402


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of weights, and its hash."""
    path = tmp_path_factory.mktemp("published") / "vmamba_pico.pth"
    torch.save({"model": timm.create_model("vmamba_pico").state_dict()}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def weight(published, **changes):
    path, sha256 = published
    return replace(Weight("vmamba_pico", path.as_uri(), sha256=sha256), **changes)


def test_a_weight_that_fits(published, tmp_path):
    path, sha256 = published
    row = check_weights.check(weight(published), tmp_path)
    assert (row.result, row.sha256, row.size, row.recorded) == (FITS, sha256, path.stat().st_size, True)
    assert not check_weights.check(weight(published, sha256=""), tmp_path).recorded
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "result", "why"),
    [
        (dict(sha256="0" * 64), FAILED, "another file: its SHA256 is not 000"),
        (dict(name="vmamba_tiny_s1l8"), FAILED, "does not fit"),
        (dict(address="file:///nowhere/weights.pth"), FAILED, "weights.pth"),
        (dict(address="", note="on a page"), HAND, "on a page"),
    ],
    ids=["other file", "other model", "gone", "by hand"],
)
def test_a_weight_that_does_not(published, tmp_path, changes, result, why):
    row = check_weights.check(weight(published, **changes), tmp_path)
    assert row.result == result and why in row.why and "\n" not in row.why
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_a_row(published, tmp_path):
    short = tmp_path / "short.pth"
    short.write_bytes(published[0].read_bytes()[:1000])
    (tmp_path / "work").mkdir()
    row = check_weights.check(weight(published, address=short.as_uri(), sha256=""), tmp_path / "work")
    assert row.result == FAILED and row.size == 1000


def test_table_and_exit_code(published, tmp_path, monkeypatch, capsys):
    found = [weight(published), weight(published, name="a|b", address="", note="x | y")]
    monkeypatch.setattr(check_weights, "weights", lambda: found)
    arguments = ["--out", str(tmp_path / "weights.md"), "--json", str(tmp_path / "weights.json")]
    assert run(check_weights.main, arguments) == 0
    lines = (tmp_path / "weights.md").read_text().splitlines()
    assert len(lines) == 4 and published[1] in lines[2] and "x \\| y" in lines[3]
    assert [row["result"] for row in json.loads((tmp_path / "weights.json").read_text())] == [FITS, HAND]

    found.append(weight(published, name="vmamba_tiny_s1l8"))
    assert run(check_weights.main, arguments) == 1
    assert "vmamba_tiny_s1l8" in (tmp_path / "weights.md").read_text().splitlines()[2]
    assert run(check_weights.main, [*arguments, "no_such*"]) == 2
    assert "no_such*" in capsys.readouterr().err


def test_all_published_weights_are_checked():
    names = [weight.name for weight in check_weights.weights()]
    assert len(names) == len(set(names)) and set(names) <= {*PUBLISHED, *RUNS}
    assert {*PUBLISHED, *(name for name, entry in RUNS.items() if entry.weights)} <= set(names)
    for one in check_weights.weights():
        assert one.address.startswith("https://") or (not one.address and one.note), one


def test_the_hash_in_a_data_file_counts(tmp_path):
    text = (ROOT / "vssm" / "published" / "vmamba.yml").read_text()
    name = "- Name: vmamba_tiny_v0.in1k\n"
    (tmp_path / "vmamba.yml").write_text(text.replace(name, f"{name}  SHA256: {'a1' * 32}\n"))
    assert read_file(tmp_path / "vmamba.yml").trainings["vmamba_tiny_v0.in1k"].sha256 == "a1" * 32
