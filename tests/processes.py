"""Scripts in processes of their own, without the seconds that each would spend on importing the same packages."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import quick

REPO = Path(__file__).parents[1]
IMPORTED = ("torch.distributed.run", "vssm.engine.run", "vssm.mm")
_server: list[subprocess.Popen] = []


def start(
    *words,
    processes: int = 1,
    options: Sequence[str] = (),
    path: Sequence = (),
    env: Mapping[str, str] | None = None,
    limit: float = 300.0,
) -> subprocess.CompletedProcess:
    """Run a script in a fork of a process that has imported the packages above and has done nothing else.

    Args:
        words: The script and its arguments.
        processes: If more than one, torchrun starts so many of the script, as forks of its own process.
        options: Further options of torchrun.
        path: Folders that are searched for modules before this repository's.
        env: Environment variables besides those of this process.
        limit: Seconds after which all is killed.

    Returns:
        The finished process, with what it wrote.
    """
    command = [str(word) for word in words]
    if processes > 1:
        how = ("--standalone", f"--nproc-per-node={processes}", "--start-method=fork", "--run-path")
        command = ["-m", "torch.distributed.run", *how, *options, *command]
    search = [str(folder) for folder in (*path, REPO, REPO / "kernels")]
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        request = dict(command=command, search=search, variables={**os.environ, **(env or {})}, files=files)
        code = _ask(json.dumps(request), limit)
        out, err = (Path(file).read_text() for file in files)
    return subprocess.CompletedProcess(command, code, out, err)


def _ask(request: str, limit: float) -> int:
    if not _server:
        # What `is_available` of PyTorch does by default, no fork of a process can do again.
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        variables["PYTHONPATH"] = os.pathsep.join([str(REPO), str(REPO / "kernels")])
        command = [sys.executable, "-m", __name__]
        _server.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=True
            )
        )
        atexit.register(_stop)
    server = _server[0]
    server.stdin.write(request + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], limit)[0]:
        os.killpg(server.pid, 9)
        _stop()
        raise TimeoutError(f"not finished after {limit} s: {request}")
    return int(server.stdout.readline())


def _stop() -> None:
    for server in _server:
        server.communicate()
    _server.clear()


def _serve() -> None:
    """For each line of the input, fork, and answer with the exit status; returns in no fork but at the end of it."""
    for module in IMPORTED:
        with contextlib.suppress(ImportError):  # of a package that is not installed
            importlib.import_module(module)
    quick.patch_mmengine(pytest.MonkeyPatch())
    gc.freeze()  # so that no fork writes to what it shares with the others
    for line in sys.stdin:
        process = os.fork()
        if not process:
            return _become(**json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n")
        sys.stdout.flush()


def _become(command: list[str], search: list[str], variables: dict[str, str], files: list[str]) -> None:
    """Go on as a new process would: with these variables, writing to these files."""
    for number, file in enumerate((os.devnull, *files)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables, PYTHONPATH=os.pathsep.join(search))
    sys.path[:0] = search
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
