"""Small files that would take much memory, much time or the process: each is refused in one sentence, and soon."""

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

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
    refused(tmp_path, b"}" + twice(b")", 60) + b"K\x01s", r"unfold to more than the \d+ that")


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


# ---- copied


NUMPY = {
    "dtype": named("numpy", "dtype"),
    "scalar": named("numpy.core.multiarray", "scalar"),
    "encode": named("_codecs", "encode"),
}
LONG = text("a" * 100_000)
WIDE = tensor(b"J\0\0\x10\0\x85", b"K\0\x85", values=1)
COPY = named("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")


def again(first, later, times):
    """A list of one thing, which the pickle remembers, and of what is made of it."""
    return b"](" + first + b"q\x09" + later * times + b"e"


def int64(value):
    kind = (
        NUMPY["dtype"] + text("i8") + b"\x89\x88\x87R(K\x03" + text("<") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\0tb"
    )
    raw = NUMPY["encode"] + text(value.to_bytes(8, "little").decode("latin1")) + text("latin1") + b"\x86R"
    return NUMPY["scalar"] + kind + raw + b"\x86R"


UNFOLDED = {
    "bytes of a length": (named("__builtin__", "bytearray") + int64(0x3B << 24) + b"\x85R", "bytearray"),
    "a type without a value": (NUMPY["scalar"] + NUMPY["dtype"] + text("U9999") + b"\x85R\x85R", "without a value"),
    "copies of a tensor": (
        again(WIDE, COPY + b"(h\x09" + named("torch", "float64") + text("cpu") + b"\x89tR", 200),
        "together claim more than the 33554432 bytes",
    ),
    "many wide tensors": (again(WIDE, WIDE, 200), "together claim more than the 33554432 bytes"),
    "one text in many bytes": (
        again(LONG, NUMPY["encode"] + b"h\x09" + text("latin1") + b"\x86R", 500),
        r"unfold to more than the \d+ that",
    ),
    "one text in many arrays of bytes": (
        again(LONG, named("__builtin__", "bytearray") + b"h\x09" + text("latin1") + b"\x86R", 500),
        r"unfold to more than the \d+ that",
    ),
    "one list in many sets": (
        again(
            b"](" + b"".join(number(i) for i in range(9000)) + b"e", named("__builtin__", "set") + b"h\x09\x85R", 500
        ),
        r"unfold to more than the \d+ that",
    ),
    "a set of a tensor": (named("__builtin__", "set") + WIDE + b"\x85R", r"holds code \(builtins\.set\)"),
}


@pytest.mark.parametrize("what", UNFOLDED)
def test_values_that_unfold_are_refused(what, tmp_path):
    data, says = UNFOLDED[what]
    tracemalloc.start()
    refused(tmp_path, b"}" + text("w") + data + b"s", says)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def test_one_tensor_under_many_names_of_a_module_is_copied_once(tmp_path):
    half = tensor(b"J\0\0\x10\0\x85", b"K\0\x85", kind="HalfStorage", values=1)
    names = b"".join(text(f"k{i}") + b"h\x09" for i in range(300))
    data = module(text("w") + half + b"q\x09" + names)
    archive(tmp_path / "x.pt", b"\x80\x02}" + text("model") + data + b"s.", storage=b"\0\0")
    weights = read_checkpoint(tmp_path / "x.pt")["state_dict"]
    assert len(weights) == 301 and len({value.data_ptr() for value in weights.values()}) == 1


def test_what_shares_or_copies_a_little_is_read(tmp_path):
    """Layers of shared weights, and all that a file may make of other values."""
    shared = torch.rand(300_000)
    content = {
        "layers": [shared.detach() for _ in range(24)],
        "wide": torch.ones(1).expand(1 << 20),
        "small": torch.ones(5).to(torch.float8_e4m3fn),
        "plain": [bytearray(b"abc"), bytearray(), b"\xff\0", {1, (2, 3)}, Counter("aab"), torch.Size((2, 3)), 1 + 2j],
        "numpy": [np.float32(0.5)] * 3 + [np.arange(5), np.str_("abc"), np.bool_(True)],
        "many": [np.int64(i) for i in range(20_000)],
    }
    torch.save(content, tmp_path / "x.pth")
    back = read_checkpoint(tmp_path / "x.pth")
    assert all(torch.equal(value, shared) for value in back["layers"])
    assert back["wide"].shape == (1 << 20,) and back["small"].float().tolist() == [1] * 5
    assert back["plain"] == content["plain"] and back["many"] == content["many"]
    assert [str(x) for x in back["numpy"]] == [str(x) for x in content["numpy"]]
    copied = tensor(b"K\x04\x85", b"K\x01\x85")
    copied = COPY + b"(" + copied + named("torch", "float64") + text("cpu") + b"\x89tR"
    archive(tmp_path / "y.pth", b"\x80\x02}" + text("w") + copied + b"s.")
    assert read_checkpoint(tmp_path / "y.pth")["w"].tolist() == [0] * 4


def test_a_tensor_that_names_its_type_lies_in_its_storage(tmp_path):
    data = tensor(b"K\x10\x85", b"K\x01\x85", kind="UntypedStorage", values=16)
    data = data.replace(b"_v2", b"_v3").replace(TAIL, TAIL[:-2] + named("torch", "float64") + b"tR")
    data = data.replace(named("torch", "UntypedStorage"), named("torch.storage", "UntypedStorage"))
    refused(tmp_path, b"}" + text("w") + data + b"s", "16 values, and holds fewer")
