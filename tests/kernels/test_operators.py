"""The ops as PyTorch operators: schemas, fake kernels, autocast, FLOP formulas, choice of backend, and bad input."""

import inspect
from typing import List  # noqa: UP035

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.test_ops import CROSS, JOINED, NAMES, leaves, scan_2d_inputs, scan_inputs, ssd_inputs
from vssm_kernels import (
    Route,
    available_backends,
    decompositions,
    encode_routes,
    selective_scan,
    selective_scan_2d,
    selective_scan_flops,
    ssd,
)
from vssm_kernels.ops import arguments

OPS = torch.ops.vssm


def test_defaults_stand_in_the_schemas():
    """And are those of the Python faces, where a face has the argument."""
    defaults = {
        "selective_scan": dict(D=None, z=None, delta_bias=None, delta_softplus=False, out_dtype=None, backend="auto"),
        "selective_scan_2d": dict(
            C=None,
            D=None,
            delta_bias=None,
            dt_weight=None,
            routes=[],
            delta_softplus=True,
            merge=True,
            out_dtype=None,
            backend="auto",
        ),
        "ssd": dict(D=None, dt_bias=None, dt_softplus=False, chunk_size=64, backend="auto"),
    }
    for name, face in (("selective_scan", selective_scan), ("selective_scan_2d", selective_scan_2d), ("ssd", ssd)):
        schema = getattr(OPS, name).default._schema
        assert {a.name: a.default_value for a in schema.arguments if a.has_default_value()} == defaults[name]
        in_python = {p.name: p.default for p in inspect.signature(face).parameters.values()}
        assert all(in_python[key] == value for key, value in defaults[name].items() if key != "routes")


@pytest.mark.parametrize("name", ["selective_scan", "selective_scan_2d", "ssd"])
def test_by_keyword_and_by_position(name):
    op = getattr(OPS, name)
    inputs = {
        "selective_scan": lambda: scan_inputs(20, 2, 2),
        "selective_scan_2d": lambda: scan_2d_inputs(CROSS) | {"routes": encode_routes(CROSS)},
        "ssd": lambda: ssd_inputs(20),
    }[name]()
    given = arguments(op.default, (), inputs)
    assert list(given) == [argument.name for argument in op.default._schema.arguments]
    want = op(*given.values())
    two, others = list(inputs.values())[:2], dict(list(inputs.items())[2:])
    for got in (op(**inputs), op(**dict(reversed(inputs.items()))), op(*two, **others)):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


class ByKeyword(nn.Module):
    """All three ops as a mixer calls them."""

    def __init__(self):
        super().__init__()
        self.code: List[int] = encode_routes(CROSS)  # noqa: UP006 - TorchScript's
        self.A = nn.Parameter(-torch.rand(4, 3, 1))
        self.D = nn.Parameter(torch.rand(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        dt = torch.stack([x, x, x, x], dim=3)
        B = dt[..., :1]
        y = torch.ops.vssm.selective_scan_2d(x, dt, self.A, B, C=B, D=self.D, routes=self.code, backend="torch")
        u = y.flatten(1, 2)
        B = u[..., :1].unsqueeze(2)
        z = torch.ops.vssm.ssd(u[..., None], u, self.A[0, :, 0], B, B, dt_softplus=True, chunk_size=8)
        u = z.squeeze(-1).transpose(1, 2)
        B = u[:, None, :1]
        return torch.ops.vssm.selective_scan(u, u, self.A[0], B, B, delta_softplus=True, z=u)[0]


def test_keywords_in_torchscript_fx_export_and_traces():
    torch.manual_seed(0)
    model, x = ByKeyword().eval(), 0.3 * torch.randn(2, 5, 4, 3)  # steps of either sign: large ones end in infinities
    want = model(x)
    assert want.isfinite().all()
    assert torch.equal(torch.jit.script(model)(x), want)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), want)
    assert torch.equal(torch.jit.trace(model, x)(x), want)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), want)
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), want)
    program = program.run_decompositions(decompositions())
    assert not any("vssm" in str(node.target) for node in program.graph.nodes)
    assert torch.allclose(program.module()(x), want, rtol=1e-4, atol=1e-5)


def test_keywords_in_flop_counters_and_autocast():
    pytest.importorskip("fvcore")
    from vssm.profiling import paper_flops

    model, x = ByKeyword().eval(), torch.randn(2, 5, 4, 3)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    scan_2d, dual, scan = 2 * 80 * 3 * (9 + 1), 2 * 20 * 3 * (5 + 1), 2 * 20 * 3 * (9 + 1)
    assert counter.get_total_flops() == 3 * (scan_2d + dual + scan)
    assert paper_flops(model, (5, 4, 3)) == (scan_2d + dual + scan) // 2
    inputs = scan_inputs(20, 2, 2, dtype=torch.float32)
    mixed = {k: v.bfloat16() if k in ("u", "z") else v for k, v in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = OPS.selective_scan(**mixed)
    assert torch.equal(y, selective_scan(**{k: v.float() for k, v in mixed.items()}))


def test_opcheck_scan():
    x = leaves(scan_inputs(10, 2, 2, channels=4))
    args = tuple(x[k] for k in NAMES)
    torch.library.opcheck(torch.ops.vssm.selective_scan, (*args, True, torch.float32, "torch"))
    half = tuple(v.detach().bfloat16() for v in args)
    torch.library.opcheck(torch.ops.vssm.selective_scan, (*half, True, torch.float32, "auto"))


@pytest.mark.parametrize("merge", [True, False])
def test_opcheck_scan_2d(merge):
    for routes in (CROSS, JOINED):
        args = tuple(leaves(scan_2d_inputs(routes)).values())
        torch.library.opcheck(
            torch.ops.vssm.selective_scan_2d, (*args, encode_routes(routes), True, merge, None, "auto")
        )


def test_opcheck_ssd():
    args = tuple(leaves(ssd_inputs(10)).values())
    torch.library.opcheck(torch.ops.vssm.ssd, (*args, True, 4, "auto"))


def test_autocast_keeps_the_widest_dtype():
    inputs = scan_inputs(20, 2, 2, dtype=torch.float32)
    mixed = {k: v.bfloat16() if k in ("u", "z") else v for k, v in inputs.items()}
    with pytest.raises(
        TypeError, match="delta must have the dtype of the other inputs, torch.bfloat16, got torch.float32"
    ):
        selective_scan(**mixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raised = selective_scan(**mixed)
        kept = selective_scan(
            **{k: v.bfloat16() if k not in ("A", "D", "delta_bias") else v for k, v in inputs.items()}
        )
    assert raised.dtype == torch.float32 and kept.dtype == torch.bfloat16
    want = selective_scan(**{k: v.float() for k, v in mixed.items()})
    assert torch.equal(raised, want)


def test_meta_tensors():
    inputs = {k: v.to("meta") for k, v in scan_inputs(20).items()}
    y, last = selective_scan(**inputs, return_last_state=True)
    assert y.device.type == "meta" and y.shape == (2, 8, 20) and last.shape == (2, 8, 2)


def test_flop_formula():
    with FlopCounterMode(display=False) as counter:
        selective_scan(**scan_inputs(20, 3, 2, absent=("z",)))
    assert counter.get_total_flops() == 9 * 2 * 20 * 8 * 3 + 2 * 20 * 8 == selective_scan_flops(2, 20, 8, 3)
    inputs = scan_2d_inputs(CROSS)
    with FlopCounterMode(display=False) as counter:
        selective_scan_2d(**leaves(inputs), routes=CROSS).sum().backward()
    positions, channels, states, rank = 2 * 4 * 20, 3, 2, 2
    forward = positions * channels * (9 * states + 1 + 2 * rank)
    assert counter.get_total_flops() == 3 * forward
    with FlopCounterMode(display=False) as counter:
        ssd(**ssd_inputs(10))
    assert counter.get_total_flops() == 2 * 10 * 4 * 3 * (5 * 5 + 2)


# ---- bad input: one sentence each


def replaced(**changes):
    return {**scan_inputs(10), **changes}


@pytest.mark.parametrize(
    ("inputs", "error", "sentence"),
    [
        (replaced(u=torch.zeros(3, 4)), ValueError, r"u must have shape \(any, any, any\), got \(3, 4\)"),
        (replaced(u=torch.zeros(0, 8, 10)), ValueError, r"the input is empty"),
        (
            replaced(delta=torch.zeros(2, 8, 9).double()),
            ValueError,
            r"delta must have shape \(2, 8, 10\), got \(2, 8, 9\)",
        ),
        (replaced(A=torch.zeros(8, 2, dtype=torch.complex64)), TypeError, r"A must be real, got torch.complex64"),
        (replaced(A=torch.zeros(7, 2)), ValueError, r"A must have shape \(8, any\), got \(7, 2\)"),
        (replaced(A=torch.zeros(8, 0)), ValueError, r"at least one state"),
        (replaced(u=torch.zeros(2, 8, 10, dtype=torch.int32)), TypeError, r"u must be float32.*got torch.int32"),
        (
            replaced(B=torch.zeros(2, 3, 2, 10).double()),
            ValueError,
            r"8 channels cannot be split into the 3 groups of B",
        ),
        (replaced(C=torch.zeros(2, 2, 3, 10).double()), ValueError, r"C must have shape \(2, 2, 2, 10\)"),
        (replaced(D=torch.zeros(3)), ValueError, r"D must have shape \(8\), got \(3,\)"),
        (replaced(z=torch.zeros(2, 8, 10)), TypeError, r"z must have the dtype of the other inputs"),
        (replaced(out_dtype=torch.int64), TypeError, r"out_dtype must be float32"),
        (
            replaced(backend="cuda"),
            ValueError,
            r"backend='cuda' is not a backend; choose one of auto, triton, cpp, torch",
        ),
        (replaced(backend="cpp"), RuntimeError, r"backend='cpp' cannot run: .*float64"),
        (replaced(D=torch.zeros(8, device="meta")), ValueError, r"all inputs must be on one device, got .*D on meta"),
    ],
)
def test_bad_scan_input(inputs, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        selective_scan(**inputs)
    assert "\n" not in str(caught.value)


def test_bad_scan_2d_input():
    inputs = scan_2d_inputs(CROSS)
    with pytest.raises(ValueError, match="non-empty sequence of Route"):
        selective_scan_2d(**inputs, routes=())
    with pytest.raises(TypeError, match="must hold Route or sequences of Route, got int"):
        selective_scan_2d(**inputs, routes=(1, 2))
    with pytest.raises(ValueError, match="strides of at least 1"):
        selective_scan_2d(**inputs, routes=(Route(stride=(0, 1)),))
    with pytest.raises(ValueError, match=r"A must have shape \(1, 3, any\), got \(4, 3, 2\)"):
        selective_scan_2d(**inputs, routes=(Route(),))
    with pytest.raises(ValueError, match="dt must have shape"):
        selective_scan_2d(**dict(inputs, dt_weight=None), routes=CROSS)
    with pytest.raises(ValueError, match=r"rank of at least 1, got shape \(4, 3, 0\)"):
        selective_scan_2d(**dict(inputs, dt_weight=torch.zeros(4, 3, 0)), routes=CROSS)


def test_bad_ssd_input():
    with pytest.raises(ValueError, match="4 heads cannot be split into the 3 groups of B"):
        ssd(**dict(ssd_inputs(10), B=torch.zeros(2, 10, 3, 5).double()))
    with pytest.raises(ValueError, match=r"D must have shape \(4\) or \(4, 3\), got \(3,\)"):
        ssd(**dict(ssd_inputs(10), D=torch.zeros(3)))
    with pytest.raises(ValueError, match="backend must be auto, cpp, torch or reference, got 'C'"):
        ssd(**ssd_inputs(10), backend="C")


def test_environment_variable_overrides_auto(monkeypatch):
    x = scan_inputs(10)
    monkeypatch.setenv("VSSM_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="VSSM_BACKEND=nonsense is not a backend"):
        selective_scan(**x)
    selective_scan(**x, backend="torch")
    monkeypatch.setenv("VSSM_BACKEND", "cpp")
    with pytest.raises(RuntimeError, match="VSSM_BACKEND=cpp cannot run"):
        selective_scan(**x)
    monkeypatch.setenv("VSSM_BACKEND", "reference")
    assert torch.equal(selective_scan(**x), selective_scan(**x, backend="reference"))


def test_environment_variable_and_ssd(monkeypatch):
    """It has no Triton form: where the variable names one, the choice is free; asked for by name, it is an error."""
    x = {name: value.float() for name, value in ssd_inputs(10).items()}
    forms = {name: ssd(**x, backend=name) for name in available_backends() if name != "triton"}
    assert not torch.equal(forms["torch"], forms["reference"])
    free = forms["cpp" if "cpp" in forms else "torch"]
    for name in ("auto", "triton", *forms):
        monkeypatch.setenv("VSSM_BACKEND", name)
        assert torch.equal(ssd(**x), forms.get(name, free))
        assert torch.equal(ssd(**x, backend="torch"), forms["torch"])
    with pytest.raises(ValueError, match="'triton'"):
        ssd(**x, backend="triton")
    monkeypatch.setenv("VSSM_BACKEND", "cpp")
    for ask in ({}, {"backend": "cpp"}):
        with pytest.raises(RuntimeError, match="no float64"):
            ssd(**ssd_inputs(10), **ask)
    monkeypatch.setenv("VSSM_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="VSSM_BACKEND=nonsense"):
        ssd(**x)


def test_slow_backend_warns_once(monkeypatch):
    from vssm_kernels import backends, cpu

    monkeypatch.setattr(cpu, "unavailable_reason", lambda: "the compiled library is not there")
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setattr(backends, "_BIG", 10)
    with pytest.warns(UserWarning, match="plain PyTorch on this cpu.*the compiled library is not there") as caught:
        selective_scan(**scan_inputs(10, dtype=torch.float32))
        selective_scan(**scan_inputs(10, dtype=torch.float32))
    assert len(caught) == 1
