"""What is kept between calls: how much, on whose thread it is made, and what becomes of it where graphs are recorded.

No GPU is needed. What PyTorch's graphs ask of an op is tested by what they rest on: the memory of a graph belongs to a
thread, and nothing may be copied from the host while one is captured.
"""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.scan_2d import CROSS, NAMES_2D, ROUTES, make_2d
from vssm_kernels import Route, chunked, decompositions, encode_routes, selective_scan_2d, tables
from vssm_kernels.routes import route_table
from vssm_kernels.scan_2d import scan_2d_bwd, scan_2d_fwd
from vssm_kernels.tables import forget_tables, is_capturing, keep_tables

CODE = encode_routes(CROSS)


@pytest.fixture(autouse=True)
def nothing_kept():
    forget_tables()
    yield
    forget_tables()


def test_tables_are_bounded_by_bytes(monkeypatch):
    first = route_table(CODE, 10, 10)
    assert route_table(CODE, 10, 10) is first
    monkeypatch.setattr(tables, "_MOST_BYTES", 5 * first.positions.nbytes)
    before = tables.drops()
    for width in range(1, 100):
        route_table(CODE, 10, width)
        assert tables._kept_bytes == sum(entry.bytes for entry in tables._kept.values())
        assert tables._kept_bytes <= tables._MOST_BYTES or len(tables._kept) == 1
    assert tables.drops() == before + 100 - len(tables._kept)
    assert route_table(CODE, 10, 99) is route_table(CODE, 10, 99), "too large for the store, but the one in use"
    assert route_table(CODE, 10, 10) is not first
    forget_tables()
    assert tables._kept_bytes == 0


class Made(TorchDispatchMode):
    """The tensors that operators of this thread made, as far as they are alive."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = [x.untyped_storage() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.made += [weakref.ref(storage) for storage in made if storage.data_ptr() not in given]  # no views
        return out

    def alive(self):
        gc.collect()
        return [made() for made in self.made if made() is not None]


def scans(name):
    """The forward and the backward of the fused or of the composed 2-D scan."""
    if name == "composed":
        both = (scan_2d_fwd, chunked.selective_scan_fwd), (scan_2d_bwd, chunked.selective_scan_bwd)
        return [lambda *args, f=f, scan=scan: f(scan, *args) for f, scan in both]
    triton_scan = pytest.importorskip("vssm_kernels.triton.selective_scan_2d")
    return triton_scan.selective_scan_2d_fwd, triton_scan.selective_scan_2d_bwd


@pytest.mark.parametrize("name", ["fused", "composed"])
@pytest.mark.parametrize("apart", [True, False])
def test_nothing_made_in_an_op_outlives_its_result(name, apart, monkeypatch, request):
    """Else the warm-up of `torch.compile(mode="reduce-overhead")` fails, which owns what its thread makes."""
    device = request.getfixturevalue("triton_device") if name == "fused" else torch.device("cpu")
    if device.type == "cpu" and apart:
        monkeypatch.setattr(tables, "_PLAIN", ())
        monkeypatch.setattr(tables, "synchronize", lambda device: None)
    elif device.type != "cpu" and not apart:
        pytest.skip("tables on a GPU are made apart always")
    routes = (Route(path="diagonal"),)
    inputs = [x.to(device) for x in make_2d(routes, batch=1, height=2, width=3, channels=2, states=1).values()]
    grad = torch.ones_like(inputs[0])
    forward, backward = scans(name)
    made = Made()
    with made:
        y = forward(*inputs, encode_routes(routes), True, True, torch.float32)
        grads = backward(grad, *inputs, encode_routes(routes), True, True)
    assert made.alive()
    del y, grads
    assert bool(made.alive()) != apart, "on the caller's thread, tables are what stays"


class OnOneDevice(TorchDispatchMode):
    """Refuses operators that see tensors of the host beside others, or bring numbers of the host to a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        places = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        assert len(places) <= 1, f"{func} copies between {places}"
        assert places != {"meta"} or "lift_fresh" not in str(func), "a tensor made of a list is copied from the host"
        return out


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("capturing", [True, False])
def test_tables_made_while_a_graph_is_captured_copy_nothing(name, capturing, monkeypatch):
    """With tensors that have no values in the place of a GPU's."""
    map_tables = pytest.importorskip("vssm_kernels.triton.map_tables")
    monkeypatch.setattr(tables, "is_capturing", lambda device: capturing and device.type == "meta")
    monkeypatch.setattr(map_tables, "is_capturing", tables.is_capturing)
    monkeypatch.setattr(tables, "_PLAIN", ("cpu", "meta"))
    arguments = tuple(encode_routes(ROUTES[name])), 5, 6, 16, True
    on_host = map_tables.walk_tables(*arguments, torch.device("cpu"))
    refused = contextlib.nullcontext() if capturing else pytest.raises(AssertionError, match="copies between")
    with refused, OnOneDevice():
        walk = map_tables.walk_tables(*arguments, torch.device("meta"))
    if capturing:
        for made, expected in zip(walk, on_host, strict=True):
            if isinstance(expected, torch.Tensor):
                assert (made.shape, made.dtype, made.device.type) == (expected.shape, expected.dtype, "meta")
            else:
                assert made == expected
        assert not any(key[-1].type == "meta" for key in tables._kept), "it belongs to the graph"


@pytest.mark.parametrize("name", ROUTES)
def test_tables_made_while_a_graph_is_captured_are_the_same(name, monkeypatch):
    map_tables = pytest.importorskip("vssm_kernels.triton.map_tables")
    arguments = tuple(encode_routes(ROUTES[name])), 5, 6, 16, False, torch.device("cpu")
    expected = map_tables.walk_tables(*arguments)
    forget_tables()
    for module in (tables, map_tables):
        monkeypatch.setattr(module, "is_capturing", lambda device: True)
    for made, want in zip(map_tables.walk_tables(*arguments), expected, strict=True):
        assert torch.equal(made, want) if isinstance(want, torch.Tensor) else made == want


def test_what_a_graph_reads_is_never_dropped(monkeypatch):
    @keep_tables
    def numbers(count, device):
        return torch.arange(count, device=device)

    cpu = torch.device("cpu")
    monkeypatch.setattr(tables, "_MOST_BYTES", 3000)
    read, unread = (weakref.ref(numbers(count, cpu)) for count in (100, 101))
    with monkeypatch.context() as capture:
        capture.setattr(tables, "is_capturing", lambda device: True)
        assert numbers(100, cpu) is read()
        assert numbers(99, cpu) is not numbers(99, cpu), "what is made in a graph's memory is not kept"
    for count in range(102, 102 + 257):
        numbers(count, cpu)
    gc.collect()
    assert read() is not None and unread() is None
    assert numbers(100, cpu) is read()


@pytest.mark.parametrize("index", [None, 0, 1])
def test_the_stream_asked_is_that_of_the_tensor(monkeypatch, index):
    current = [0]

    @contextlib.contextmanager
    def device(device):
        current.append(device.index)
        yield
        current.pop()

    cuda = SimpleNamespace(
        current_device=lambda: current[-1], device=device, is_current_stream_capturing=lambda: current[-1] == 1
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    assert is_capturing(torch.device("cuda", index)) == (index == 1) and current == [0]
    assert not is_capturing(torch.device("cpu"))


def test_a_tensor_without_values_is_never_kept():
    """Exporting follows the kernels with such tensors, and the tables made then stay behind, where eager calls look."""

    class Net(torch.nn.Module):
        def forward(self, **inputs):
            return selective_scan_2d(**inputs, routes=ROUTES["paths"], backend="torch")

    inputs = make_2d(ROUTES["paths"], batch=1, height=2, width=3, channels=2)
    assert set(inputs) == set(NAMES_2D)
    program = torch.export.export(Net(), (), inputs).run_decompositions(decompositions())
    y = Net()(**inputs)
    assert type(y) is torch.Tensor and y.isfinite().all()
    torch.testing.assert_close(program.module()(**inputs), y)
