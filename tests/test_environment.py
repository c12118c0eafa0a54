"""What `vssm env` says."""

import json
import sys

import pytest
import torch

from vssm import environment
from vssm_kernels import cpu_library


def test_it_is_json_and_text():
    about = environment.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["packages"]["torch"] == torch.__version__.split("+")[0]
    assert about["backends"]["cpu"]["reference"] == "available"
    if cpu_library.unavailable_reason() is None:
        assert about["compiled scan"] == {
            "file": str(cpu_library.library_file()),
            "instruction set": cpu_library.variant(),
        }
    lines = environment.as_text(about).splitlines()
    assert "  version: " + about["vssm"]["version"] in lines and "    reference: available" in lines


def test_it_says_why_there_is_no_library(monkeypatch):
    monkeypatch.setattr(cpu_library, "_library", None)
    monkeypatch.setattr(cpu_library, "_reason", "nothing was compiled")
    about = environment.describe()
    assert about["compiled scan"] == about["backends"]["cpu"]["cpp"] == "nothing was compiled"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "no: libGL.so.1: cannot open"),
        ("raise ModuleNotFoundError(\"No module named 'cv2'\")", "no: No module named 'cv2'"),
        ("__version__ = '4.0'\ndef getBuildInformation(): return '  GUI:   NONE\\n'", "4.0, headless"),
        ("__version__ = '4.0'\ndef getBuildInformation(): return '  GUI:   QT5\\n'", "4.0, with windows (QT5)"),
    ],
)
def test_it_says_which_opencv_is_imported(monkeypatch, tmp_path, module, said):
    (tmp_path / "cv2.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    about = environment.describe()["OpenCV"]
    sys.modules.pop("cv2", None)
    assert about["imported"].startswith(said)
    assert ("opencv-python-headless" in about.get("help", "")) == ("libGL" in said)
