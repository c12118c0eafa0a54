"""The source archive and the wheels: what is in them, what they are called, and that an installed one works."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"benchmarks", "configs", "docs", "kernels", "tests", "tools", "vssm"}
pytest.importorskip("setuptools.command.bdist_wheel", reason="setuptools is older than what builds the package")

# A model, a training step, and what there is to run it.
SCRIPT = """
import timm, torch, vssm, vssm_kernels
print(vssm.__file__)
torch.manual_seed(0)
model = timm.create_model("vmamba_pico", num_classes=4).train()
images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
losses = []
for _ in range(2):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[1] < losses[0], losses
print(*vssm_kernels.available_backends("cpu"))
"""


def run(*command, cwd, **variables):
    """Run a command where no compiler and no package of this checkout is found; returns what it prints."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=kept | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def unpacked(folder):
    """The source archive, built from a copy of the checkout and unpacked."""
    copy = folder / "copy"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
        elif path.name in FOLDERS:
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder, cwd=copy)
    (archive,) = folder.glob("vssm-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "sources", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (sources,) = (folder / "sources").iterdir()
    return sources


@pytest.fixture(scope="module")
def wheel(folder, unpacked):
    """The wheel, built from the archive on a machine without a compiler."""
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", folder)
    empty = folder / "nothing to run"
    empty.mkdir()
    run(sys.executable, "-m", "pip", "wheel", *options, unpacked, cwd=folder, PATH=str(empty))
    (built,) = folder.glob("*.whl")
    return built


def test_the_archive_builds_tests_and_documents(unpacked):
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in name.parts and path.suffix not in (".so", ".dylib", ".pyc"):
                assert str(name) in there
    assert {"Makefile", "README.md", "constraints.txt", "mkdocs.yml", "pyproject.toml", "setup.py"} <= there
    assert not [name for name in there if name.endswith((".so", ".dylib", ".pyc"))]


def test_a_wheel_without_the_library_serves_every_platform(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert not [name for name in names if "_cpu_scan" in name]
    assert {"vssm/__init__.py", "vssm_kernels/cpu.py", "vssm/published/vmamba.yml"} <= set(names)
    assert {"vssm/py.typed", "vssm_kernels/py.typed"} <= set(names)
    assert {f"vssm/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.py")} <= set(names)


def test_the_wheel_works(wheel, folder):
    """In a new environment, which takes the dependencies from the running one."""
    home = folder / "environment"
    venv.create(home)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    (site,) = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).splitlines()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--quiet", "--no-index", "--no-deps", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)

    place, backends = run(python, "-c", SCRIPT, cwd=folder).splitlines()
    assert Path(place) == Path(site, "vssm", "__init__.py")
    assert "cpp" not in backends.split() and "reference" in backends.split()

    about = json.loads(run(python.with_name("vssm"), "env", "--json", cwd=folder))
    assert about["vssm"]["installed"] == "from a wheel for py3-none-any"
    assert "install a C++ compiler" in about["compiled scan"]
    # It finds its own configs by name, with what they inherit.
    pytest.importorskip("mmengine")
    copied = run(python.with_name("vssm"), "config", "vmamba-pico_digits", cwd=folder)
    assert "vmamba_pico" in copied and "_base_" not in copied


def test_the_name_of_a_wheel_follows_the_library(unpacked, folder):
    """A library that is newer than its sources is taken as built; an older one is not left where none can be built."""
    build, out = folder / "build", folder / "wheels"
    library = build / "vssm_kernels" / "_cpu_scan.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"stands for the library")
    (library.parent / "_cpu_scan.cpython-311-x86_64-linux-gnu.so").touch()  # of an earlier version of setup.py
    command = (sys.executable, "setup.py", "-q", "build", "--build-lib", build, "bdist_wheel", "--dist-dir", out)

    run(*command, cwd=unpacked)
    (with_library,) = out.iterdir()
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    assert with_library.name.endswith(f"-py3-none-{platform}.whl")
    with zipfile.ZipFile(with_library) as file:
        assert [name for name in file.namelist() if "_cpu_scan" in name] == ["vssm_kernels/_cpu_scan.so"]
    with_library.unlink()

    os.utime(library, (0, 0))
    run(*command, cwd=unpacked, PATH=str(folder / "nothing to run"))
    (without,) = out.iterdir()
    assert without.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(without) as file:
        assert not [name for name in file.namelist() if "_cpu_scan" in name]
