"""Small files that would take much memory, much time or the process: each is refused in one sentence, and soon."""

import pytest

from tests.processes import start
from tests.test_checkpoint import archive, text
from vssm.checkpoint import CheckpointError, read_checkpoint

DEEP = b")" + b"\x85" * 300_000


def refused(path, data, says, **options):
    """The file is refused in a sentence that names it."""
    archive(path / "x.pth", b"\x80\x02" + data + b".", **options)
    with pytest.raises(CheckpointError, match=rf"^Checkpoint '.*x\.pth' [^\n]*({says})[^\n]*\.$") as caught:
        read_checkpoint(path / "x.pth")
    assert len(str(caught.value)) < 500


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def twice(value, times):
    """A tuple of a value twice, in a tuple twice, and so on."""
    for i in range(times):
        value = value + b"r" + i.to_bytes(4, "little") + b"j" + i.to_bytes(4, "little") + b"\x86"
    return value


# ---- nested


@pytest.mark.parametrize("place", ["key", "storage", "set"])
def test_deep_tuples_do_not_end_the_process(place, tmp_path):
    pytest.importorskip("mmengine")
    storage = b"(" + text("storage") + named("torch", "FloatStorage") + DEEP + text("cpu") + b"K\x01tQ"
    data = {
        "key": DEEP + b"K\x01",
        "storage": text("w") + storage,
        "set": text("w") + named("__builtin__", "set") + b"]" + DEEP + b"a\x85R",
    }[place]
    archive(tmp_path / "epoch_3.pth", b"\x80\x02}" + data + b"s.")
    (tmp_path / "find.py").write_text(
        "import sys\nfrom vssm.engine import find_resumable\nprint(find_resumable(sys.argv[1]))"
    )
    done = start(tmp_path / "find.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(None, [") and "epoch_3.pth' is nested deeper than 64 containers." in done.stdout


def test_tuples_that_unfold_are_refused(tmp_path):
    refused(tmp_path, b"}" + twice(b")", 60) + b"K\x01s", "unfold to many times the file")


def test_tuples_that_do_not_unfold_far_are_read(tmp_path):
    archive(tmp_path / "x.pth", b"\x80\x02}" + twice(b")", 10) + b"K\x01s.")
    assert list(read_checkpoint(tmp_path / "x.pth").values()) == [1]
