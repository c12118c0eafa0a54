"""Importing the package is cheap and silent, and needs none of the extras."""

import subprocess
import sys

import pytest

# timm itself imports torchvision and safetensors.
EXTRAS = (
    "mmengine",
    "mmcv",
    "mmdet",
    "mmseg",
    "matplotlib",
    "sklearn",
    "fvcore",
    "monai",
    "nibabel",
    "h5py",
    "nilearn",
    "onnx",
)

SCRIPT = f"""
import sys, time
import timm
before = time.process_time()
import vssm
cost = time.process_time() - before
print(cost, *[m for m in {EXTRAS} if m in sys.modules], sep="\\n", file=sys.stderr)
"""


def run(script: str) -> subprocess.CompletedProcess:
    # PyTorch 2.6 leaves a temporary folder to be cleaned up at the end.
    warnings = ("-W", "error", "-W", "ignore::ResourceWarning")
    return subprocess.run([sys.executable, *warnings, "-c", script], capture_output=True, text=True, check=False)


def test_import_is_cheap_silent_and_without_extras():
    costs = []
    for _ in range(3):
        done = run(SCRIPT)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        cost, *extras = done.stderr.split()
        assert extras == []
        costs.append(float(cost))
        if costs[-1] < 0.3:
            break
    assert costs[-1] < 0.3  # seconds of processor time, at the third try at last: other tests run at the same time


def test_models_are_registered_and_listed():
    import timm

    import vssm

    assert "vmamba_tiny_s1l8" in vssm.list_models("vmamba_tiny_*")
    assert set(vssm.list_models()) <= set(timm.list_models())
    assert vssm.list_models("resnet*") == []


@pytest.mark.parametrize("first", ["timm", "vssm.checkpoint"])
def test_models_are_registered_whatever_is_imported_next(first):
    """`import vssm` alone does without PyTorch, for the commands' help."""
    script = f"""
import sys
import vssm
assert "torch" not in sys.modules
import {first}
import timm
assert timm.is_model("vmamba_pico") and vssm.models is sys.modules["vssm.models"]
"""
    done = run(script)
    assert done.returncode == 0, done.stderr
