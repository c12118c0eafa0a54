"""Tools say before they work that what they are to write cannot be written."""

import errno
import importlib
import sys

import pytest

from vssm import _cli

from .engine.conftest import REPO

CONFIG = str(REPO / "configs/classification/vmamba-pico_digits.py")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a tool; returns what it says when it refuses."""
    monkeypatch.syspath_prepend(REPO / "tools")

    def run(tool, *words):
        assert _cli.run(importlib.import_module(tool).main, [str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err

    yield run
    for tool in ("predict", "test", "train", "export", "visualize", "benchmark", "convert_checkpoint"):
        sys.modules.pop(tool, None)


@pytest.mark.parametrize(
    "words",
    [
        ["train", CONFIG, "--work-dir", "{folder}"],
        ["test", CONFIG, "{checkpoint}", "--work-dir", "{folder}"],
        ["test", CONFIG, "{checkpoint}", "--work-dir", "{free}", "--out", "{file}"],
        ["predict", CONFIG, "{checkpoint}", "{image}", "--json", "{file}"],
        ["predict", CONFIG, "{checkpoint}", "{image}", "--csv", "{file}"],
        ["predict", CONFIG, "{checkpoint}", "{image}", "--out", "{folder}"],
        ["export", "vmamba_pico", "{file}.onnx"],
        ["convert_checkpoint", "{checkpoint}", "{file}.pth", "--model", "vmamba_pico"],
        ["benchmark", "vmamba_pico", "--json", "{file}"],
        ["visualize", "routes", "--out", "{file}.png"],
        ["visualize", "activations", "{image}", "--model", "vmamba_pico", "--out", "{folder}"],
    ],
    ids=lambda words: "-".join(word.strip("-") for word in words if word.isalpha() or word.startswith("--")),
)
def test_places_that_cannot_be_written(call, tmp_path, words):
    (tmp_path / "taken").touch()
    (tmp_path / "here").touch()
    places = {
        "folder": tmp_path / "taken" / "x",
        "file": tmp_path / "taken" / "x",
        "free": tmp_path / "free",
        "checkpoint": tmp_path / "here",
        "image": tmp_path / "here",
    }
    said = call(*(word.format(**places) for word in words))
    assert f"{tmp_path}/taken/x" in said and "cannot be written" in said
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "here"}


def test_a_full_disk_is_one_sentence(capsys):
    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "log.txt")

    assert _cli.run(main) == 2
    assert capsys.readouterr().err.endswith(": error: 'log.txt' cannot be written: No space left on device.\n")

    def other(argv):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        _cli.run(other)
