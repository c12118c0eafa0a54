import os
import subprocess
import sys

import pytest

import vssm
from vssm import _cli
from vssm.commands import main
from vssm.commands._names import model_names


def test_models_are_offered_without_timm():
    """All but those that nothing was published for."""
    rest = set(vssm.list_models()) - set(model_names())
    assert set(model_names()) <= set(vssm.list_models()) and "vmamba_tiny_s1l8" in model_names()
    assert all(name.endswith(("_pico", "_m2")) for name in rest), rest


LINES = {
    "vssm be": ["benchmark "],
    "vssm train mask-rcnn_vssd-t": ["mask-rcnn_vssd-tiny_fpn_1x_coco", "mask-rcnn_vssd-tiny_fpn_ms-3x_coco"],
    "vssm export vssd_t": ["vssd_tiny "],
    "vssm flops vssd_tiny mask-rcnn_vssd-tiny_fpn_ms": ["mask-rcnn_vssd-tiny_fpn_ms-3x_coco "],
    "vssm prepare mni": ["mni152 "],
    "vssm test x --la": ["--launcher "],
}


@pytest.mark.parametrize("line", LINES)
def test_completions(line, tmp_path):
    """In a process, because argcomplete takes over what is printed and ends it."""
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "offered")}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    subprocess.run([sys.executable, "-m", "vssm"], env=os.environ | asked, check=True)
    assert (tmp_path / "offered").read_text().split("\n") == LINES[line]


def test_shell_code(capsys):
    pytest.importorskip("argcomplete")
    assert _cli.run(main, ["completion", "bash"]) == 0
    assert "complete" in capsys.readouterr().out


def test_without_the_library_its_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert _cli.run(main, ["completion", "zsh"]) == 2
    assert "[completion]" in capsys.readouterr().err
