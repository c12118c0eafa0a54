"""Small files that would take much memory, much time or the process: each is refused in one sentence, and soon."""

import time

import pytest

from tests.processes import start
from tests.test_checkpoint import archive, number, text
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


# ---- large numbers


LARGE = b"\x8a\xff" + b"\x7f" * 255
SHAPES = {
    "many large": (LARGE, 20_000),
    "one large": (LARGE, 1),
    "65 sizes": (b"K\x01", 65),
    "negative": (b"J\xff\xff\xff\xff", 1),
    "a float": (b"G" + b"\0" * 8, 1),
}


def tensor(size, stride, kind="FloatStorage", values=4):
    """What makes a tensor of the first storage; size and stride make tuples."""
    storage = b"(" + text("storage") + named("torch", kind) + text("0") + text("cpu") + number(values) + b"tQ"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\0" + size + stride + TAIL


TAIL = b"\x89" + named("collections", "OrderedDict") + b")RtR"


@pytest.mark.parametrize("maker", ["of a storage", "of none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_looked_at_before_they_are_multiplied(shape, maker, tmp_path):
    value, count = SHAPES[shape]
    size = b"(" + value + b"q\x01" + b"h\x01" * (count - 1) + b"t"
    stride = b"(" + b"K\0" * count + b"t"
    none = named("torch._utils", "_rebuild_meta_tensor_no_storage") + b"(" + named("torch", "float32")
    data = tensor(size, stride) if maker == "of a storage" else none + size + stride + b"\x89tR"
    begun = time.perf_counter()
    refused(tmp_path, b"}" + text("w") + data + b"s", r"at most 64 sizes .* from 0 to 2\*\*63 - 1")
    assert time.perf_counter() - begun < 5


# ---- shared


def module(parameters=b"", modules=b""):
    """A pickled module of the YOLO line; what it has are names and values in turn."""
    parts = {"_parameters": parameters, "_buffers": b"", "_modules": modules}
    fields = b"".join(text(name) + b"}(" + items + b"u" for name, items in parts.items())
    return named("ultralytics.nn.tasks", "DetectionModel") + b")\x81}(" + fields + b"ub"


def shared_modules(depth, inner):
    """Modules that hold the next one twice."""
    for i in range(depth):
        at = i.to_bytes(4, "little")
        inner = module(modules=text("a") + inner + b"r" + at + text("b") + b"j" + at)
    return inner


def test_modules_that_unfold_are_refused(tmp_path):
    begun = time.perf_counter()
    data = shared_modules(60, module())
    refused(tmp_path, b"}" + text("model") + data + b"s", "DetectionModel whose names have more than 8388608 letters")
    assert time.perf_counter() - begun < 20


def test_shared_modules_have_all_their_names(tmp_path):
    inner = module(text("w") + tensor(b"K\x04\x85", b"K\x01\x85"))
    archive(tmp_path / "x.pt", b"\x80\x02}" + text("model") + shared_modules(2, inner) + b"s.")
    weights = read_checkpoint(tmp_path / "x.pt")["state_dict"]
    assert sorted(weights) == ["a.a.w", "a.b.w", "b.a.w", "b.b.w"]
    assert all(value is weights["a.a.w"] for value in weights.values())


def test_names_of_modules_are_texts(tmp_path):
    data = module(twice(b")", 10) + b"N")
    refused(tmp_path, b"}" + text("model") + data + b"s", "DetectionModel with a name that is not text")
