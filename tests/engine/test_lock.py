"""Two runs in one work dir."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from vssm._files import FileError
from vssm.engine import ConfigError
from vssm.engine.lock import work_dir_of_one_run

from .test_tools import sentence, train_tool


@pytest.fixture
def other(tmp_path):
    """A process that holds ``tmp_path`` and has a data worker."""
    code = f"""
        import os, time
        from vssm.engine.lock import work_dir_of_one_run
        with work_dir_of_one_run({str(tmp_path)!r}):
            worker = os.fork()
            if worker:
                print(worker, flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)


def test_a_second_run_is_refused_until_the_first_is_gone(other, make_config, tmp_path, capsys):
    said = sentence(capsys, train_tool, make_config(), "--work-dir", tmp_path)
    assert f"Another run is going on in '{tmp_path}': process {other.pid} on " in said and "--work-dir" in said
    # The other processes of a distributed run share the folder.
    with work_dir_of_one_run(tmp_path, main=False):
        pass
    other.kill()
    other.wait()
    # Its worker is still there.
    with work_dir_of_one_run(tmp_path):
        assert (tmp_path / ".running").read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / ".running").exists()


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), work_dir_of_one_run(tmp_path / "new"):
        raise ZeroDivisionError
    with work_dir_of_one_run(tmp_path / "new"), pytest.raises(ConfigError), work_dir_of_one_run(tmp_path / "new"):
        pass


def test_what_is_no_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileError, match="The folder '.*file/x' cannot be written to: "),
        work_dir_of_one_run(tmp_path / "file" / "x"),
    ):
        pass
