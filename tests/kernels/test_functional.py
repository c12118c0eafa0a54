"""The form of every op that exporters get, against the readable one in float64; then as part of a program."""

import pytest
import torch
from torch import nn

from tests.kernels.test_ops import LENGTHS, scan_inputs
from tests.scan_2d import CROSS, ROUTES, make_2d
from vssm_kernels import Route, decompositions, encode_routes, one_graph, selective_scan_2d

OPS = torch.ops.vssm


def both_forms(op, *args):
    """The results of the reference and of the decomposition for the same arguments."""
    return op(*args, "reference"), decompositions()[op.default](*args, "auto")


def assert_close(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("length", (*LENGTHS, 8, 9, 64, 65, 513))
@pytest.mark.parametrize("states", [1, 2])
def test_strong_decay(length, states):
    """From a state that is forgotten at once to one that is kept whole."""
    inputs = scan_inputs(length, states, groups=2, channels=6)
    inputs["A"] = -(100 ** (4 * torch.rand(6, states).double() - 3))  # 1e-6 to 100
    inputs["delta"], inputs["delta_bias"] = 10 * inputs["delta"].abs(), None
    for want, got in zip(*both_forms(OPS.selective_scan, *inputs.values(), False, None), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("length", (1, 7, 49, 500))
@pytest.mark.parametrize("absent", [(), ("z", "D", "delta_bias")], ids=["all", "few"])
def test_selective_scan(length, absent):
    inputs = scan_inputs(length, states=3, groups=2, channels=6, absent=absent)
    for want, got in zip(*both_forms(OPS.selective_scan, *inputs.values(), not absent, None), strict=True):
        assert_close(got, want)


def test_many_states_in_parts(monkeypatch):
    inputs = scan_inputs(20, states=5, groups=2, channels=6)
    monkeypatch.setattr(one_graph, "MOST_NUMBERS", 2 * inputs["u"][0].numel())
    for want, got in zip(*both_forms(OPS.selective_scan, *inputs.values(), True, None), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "apart"])
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
def test_selective_scan_2d(routes, merge):
    inputs = {name: x.double() for name, x in make_2d(routes, own_input=merge).items()}
    code = encode_routes(routes)
    want, got = both_forms(OPS.selective_scan_2d, *inputs.values(), code, True, merge, torch.float64)
    assert_close(got, want)


def test_ssd():
    g = torch.Generator().manual_seed(0)
    x, dt, B, C = (torch.randn(2, 70, *s, generator=g).double() for s in ((4, 3), (4,), (2, 5), (2, 5)))
    A, D, bias = -torch.rand(4).double(), torch.randn(4).double(), torch.randn(4).double()
    want, got = both_forms(OPS.ssd, x, dt, A, B, C, D, bias, True, 16)
    assert_close(got, want)


class Scan(nn.Module):
    """The op on a map of any size; all its other inputs are made of the map."""

    def forward(self, u):
        dt = u[..., None, :].expand(*u.shape[:3], len(CROSS), u.shape[-1])
        A = -torch.arange(1.0, u.shape[-1] + 1).expand(len(CROSS), -1)[..., None]
        return selective_scan_2d(u, dt, A, dt[..., :1], dt[..., 1:2], routes=CROSS)


def test_program_without_our_operators():
    """Of dynamic height and width, on maps from less than a chunk to many."""
    sizes = {dim: torch.export.Dim(f"d{dim}", min=2, max=512) for dim in (1, 2)}
    program = torch.export.export(Scan(), (torch.randn(2, 6, 5, 3),), dynamic_shapes={"u": sizes})
    assert any("vssm" in str(node.target) for node in program.graph.nodes)
    program = program.run_decompositions(decompositions())
    assert not any("vssm" in str(node.target) for node in program.graph.nodes)
    run = program.module()
    for height, width in ((6, 5), (2, 2), (2, 4), (3, 3), (9, 8), (40, 31)):
        u = torch.randn(2, height, width, 3)
        assert torch.allclose(run(u), Scan()(u), rtol=1e-4, atol=1e-5)


class AlongASpiral(nn.Module):
    def forward(self, x):
        return selective_scan_2d(x, x[..., None, :], -torch.ones(1, 2, 1), x[..., None, :1], routes=SPIRAL)


SPIRAL = (Route(path="spiral"),)


def test_pytorchs_own_table_has_no_decomposition():
    """Shapes of symbolic sizes, a program's default form and `torch.compile` take the ops; only ONNX has the forms."""
    assert not any(op in torch._decomp.decomposition_table for op in decompositions())
    x, other = torch.randn(1, 4, 6, 2), torch.randn(1, 7, 5, 2)
    sizes = {1: torch.export.Dim("h", min=2, max=64), 2: torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(AlongASpiral(), (x,), dynamic_shapes=(sizes,)).run_decompositions()
    assert OPS.selective_scan_2d.default in {node.target for node in program.graph.nodes}
    assert torch.equal(program.module()(other), AlongASpiral()(other))
