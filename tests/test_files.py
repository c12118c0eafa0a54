"""Files and folders that appear whole or not at all."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys

import pytest
import timm
import torch

from vssm._errors import UserError
from vssm._files import FileError, FreeNames, require_writable, whole_folder, write_atomically, write_beside
from vssm.models.convert import convert_checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["file"]


def test_an_error_leaves_nothing(tmp_path):
    def fail(part):
        part.write_text("half")
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_beside(tmp_path / "x.json", fail)
    assert names(tmp_path) == []


def test_the_leftovers_of_dead_writers_are_cleared_and_those_of_living_ones_kept(tmp_path):
    code = "import os, sys; from vssm._files import whole_file\nwith whole_file(sys.argv[1]) as p:\n"
    code += "    p.write_text('x'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.pth")]).returncode == 9
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].endswith(".part.pth")
    taken = []

    def write(part):
        taken.append(part)
        write_atomically(tmp_path / "x.pth", b"by another writer meanwhile")
        part.write_bytes(b"whole")

    write_beside(tmp_path / "x.pth", write)
    assert names(tmp_path) == ["x.pth"] and (tmp_path / "x.pth").read_bytes() == b"whole"
    assert taken[0].suffix == ".pth" and taken[0].parent == tmp_path


def _write_often(path, value):
    for _ in range(20):
        write_atomically(path, bytes([value]) * (1 << 20))


def test_two_writers_never_tear_a_file(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path / "x", value)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "x").exists():
            data = (tmp_path / "x").read_bytes()
            assert len(data) == 1 << 20 and len(set(data[::1024])) == 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0] and names(tmp_path) == ["x"]


def test_a_target_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path / ("n" * 300), tmp_path):
        with pytest.raises(FileError, match="cannot be written"):
            write_atomically(path, b"1")
    with pytest.raises(UserError, match="cannot be made"), whole_folder(tmp_path / "file" / "out", {}):
        pass
    assert names(tmp_path) == ["file"]


@pytest.fixture
def full_disk():
    """A limit on the size of files stands in for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, full_disk):
    torch.save(timm.create_model("vmamba_pico").state_dict(), tmp_path / "in.pth")
    full_disk()
    writers = {
        "a.pth": lambda path: write_atomically(path, bytes(1 << 20)),
        "b.txt": lambda path: write_beside(path, lambda part: part.write_bytes(bytes(1 << 20))),
        "c.pth": lambda path: convert_checkpoint(tmp_path / "in.pth", path, "vmamba_pico"),
        "d.safetensors": lambda path: convert_checkpoint(tmp_path / "in.pth", path, "vmamba_pico"),
    }
    for name, write in writers.items():
        with pytest.raises(UserError, match=f"{name}' cannot be written"):
            write(tmp_path / name)
    with pytest.raises(UserError, match="out' cannot be made"), whole_folder(tmp_path / "out", {}) as folder:
        (folder / "x").write_bytes(bytes(1 << 20))
    assert names(tmp_path) == ["in.pth"]


def test_places_are_tried_before_work_is_done(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, folder in ((tmp_path, False), (tmp_path / "file" / "a", False), (tmp_path / "file", True)):
        with pytest.raises(FileError, match="cannot be written: (it is a folder|Not a directory|File exists)"):
            require_writable(path, folder)
    require_writable(tmp_path / "a" / "b" / "c.json")
    require_writable(tmp_path / "a" / "b", folder=True)
    require_writable(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_free_names_are_found_in_linear_time():
    free = FreeNames()
    assert [free(name) for name in ("a", "b", "a", "a", "a_2", "a")] == ["a", "b", "a_2", "a_3", "a_2_2", "a_4"]
    found = {free("case") for _ in range(50_000)}
    assert len(found) == 50_000 and "case_50000" in found


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.txt")
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content" and len(names(tmp_path)) == 1
