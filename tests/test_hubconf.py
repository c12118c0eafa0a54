"""The repository as torch.hub sees it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import vssm

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _path():
    """What torch.hub and hubconf.py put on the path goes again."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("hubconf", None)


def test_entry_points_are_the_models():
    """By the rule of torch.hub.list, which takes no folder: what can be called and has no underscore in front."""
    found = runpy.run_path(str(ROOT / "hubconf.py"))
    names = [name for name, value in found.items() if callable(value) and not name.startswith("_")]
    assert sorted(names) == vssm.list_models()
    assert "VMamba-T" in found["vmamba_tiny_s1l8"].__doc__


def test_load():
    model = torch.hub.load(str(ROOT), "vmamba_tiny_s1l8", source="local", depths=(1, 1, 1, 1), num_classes=3)
    same = timm.create_model("vmamba_tiny_s1l8", depths=(1, 1, 1, 1), num_classes=3)
    same.load_state_dict(model.state_dict())
    assert model.head.fc.out_features == 3


def test_load_where_the_package_is_not_installed(tmp_path):
    """From a copy, with a path on which only what the package needs can be found."""
    for name in ("hubconf.py", "vssm", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = [
        "import sys, torch",
        f"taken = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]",
        "sys.path = [p for p in sys.path if p not in taken]",
        # That of an editable installation.
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]",
        f"model = torch.hub.load({str(tmp_path)!r}, 'vmamba_pico', source='local', num_classes=3)",
        "print(tuple(model(torch.randn(1, 3, 64, 64)).shape), sys.modules['vssm'].__file__)",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split(")")[0] == "(1, 3", done.stderr
    assert str(tmp_path) in done.stdout
