"""Files of every family for other runtimes: what they compute, and that a wrong one is not kept."""

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import vssm
from tests.small import few_stages
from vssm import export
from vssm._cli import run
from vssm.export import ExportError, export_model
from vssm_kernels.install import install_command
from vssm_kernels.ops import arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import export as export_tool  # noqa: E402

PICOS = vssm.list_models("*_pico")
SHAPE = (1, 3, 32, 32)


def create(name, **options):
    """Each kind of block once; parameters that start at zero or one, or tiny (layer scale), made to matter."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**few_stages(name), **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.rand_like(parameter))
    return model


@pytest.fixture
def loaded(monkeypatch):
    """The programs that are read from files from now on; to read one takes as long as to export it."""
    load, programs = torch.export.load, []
    monkeypatch.setattr(torch.export, "load", lambda path: programs.append(load(path)) or programs[-1])
    return programs


def operators(program):
    return {str(node.target) for node in program.graph.nodes}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICOS)
def test_torch_export(name, tmp_path, loaded):
    done = export_model(create(name, num_classes=5), tmp_path / "a.pt2", SHAPE)
    assert done.relative < 1e-5 and done.shapes == (SHAPE,)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert not any("vssm" in name for name in operators(loaded[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "dynamic"),
    [("vmamba_pico", {}, ["batch"]), ("vssd_pico", {}, []), ("vim_pico", {"img_size": 32}, [])],
)
def test_onnx(name, options, dynamic, tmp_path):
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = create(name, num_classes=5, **options)
    done = export_model(model, tmp_path / "a.onnx", SHAPE, dynamic)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"], "one file, its weights inside"
    graph = onnx.load(done.path).graph
    assert {node.domain for node in graph.node} == {""}
    assert [x.name for x in (*graph.input, *graph.output)] == ["images", "logits"]
    assert not [node for node in graph.node if node.op_type in ("Loop", "Scan", "Constant")]
    tables = [(*x.dims, x.raw_data) for x in graph.initializer if x.data_type == onnx.TensorProto.INT64]
    assert len(tables) == len(set(tables)), "no table twice"
    # Not the module's own comparison.
    x = torch.randn(3 if dynamic else 1, *SHAPE[1:])
    (y,) = onnxruntime.InferenceSession(done.path).run(None, {"images": x.numpy()})
    assert torch.allclose(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(done.path, full_check=True)
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.shape_inference.quant_pre_process(done.path, tmp_path / "prepared.onnx")
    for source in (done.path, tmp_path / "prepared.onnx"):
        # Vim's convolution takes weights that the graph joins, which the quantiser of convolutions refuses.
        kinds = ["MatMul", "Gemm"] if name == "vim_pico" else None
        quantization.quantize_dynamic(source, tmp_path / "quantised.onnx", op_types_to_quantize=kinds)
        (rounded,) = onnxruntime.InferenceSession(tmp_path / "quantised.onnx").run(None, {"images": x.numpy()})
        assert np.linalg.norm(rounded - y) < 0.1 * np.linalg.norm(y)


@pytest.mark.slow
def test_onnx_by_torch_alone(tmp_path):
    """`torch.onnx.export` finds the decompositions without being handed them."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = create("vmamba_pico", num_classes=5, dims=16), torch.randn(1, 3, 32, 32)
    torch.onnx.export(model, (x,), tmp_path / "a.onnx", dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_any_batch(tmp_path):
    done = export_model(create("vmamba_pico"), tmp_path / "a.pt2", (2, *SHAPE[1:]), dynamic=["batch"])
    assert [shape[0] for shape in done.shapes] == [2, 1, 4]
    program = torch.export.load(done.path).module()
    assert program(torch.randn(7, *SHAPE[1:])).shape == (7, 1000)


@pytest.mark.slow
def test_any_size_with_the_operators_kept(tmp_path):
    model = create("vmamba_pico", num_classes=5)
    done = export_model(model, tmp_path / "a.pt2", (1, 3, 96, 64), dynamic=["size"], keep_ops=True)
    assert done.shapes == ((1, 3, 96, 64), (1, 3, 64, 96), (1, 3, 128, 128))
    x = torch.randn(1, 3, 160, 224)
    assert torch.allclose(torch.export.load(done.path).module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_torchscript_runs_without_this_package(tmp_path):
    model = create("vmamba_pico", num_classes=5)
    done = export_model(model, tmp_path / "a.torchscript", SHAPE)
    x = torch.randn(SHAPE)
    script = torch.jit.load(done.path)
    assert torch.allclose(script(x), model(x), rtol=1e-4, atol=1e-5)
    assert "vssm::" not in str(script.inlined_graph)


def test_feature_maps_and_operators_kept(tmp_path, loaded):
    model = create("vmamba_pico", depths=(1, 1, 1, 1), features_only=True)
    export_model(model, tmp_path / "a.pt2", SHAPE, keep_ops=True)
    maps = loaded[0].module()(torch.randn(SHAPE))
    assert [m.shape[-1] for m in maps] == [8, 4, 2, 1]
    assert "vssm.selective_scan_2d.default" in operators(loaded[0])


@pytest.mark.parametrize("wrong", ["value", "nan"])
def test_a_file_that_deviates_is_not_kept(wrong, tmp_path, monkeypatch):
    """A scan that is exported without its skip, and one that gives no numbers."""
    table = export.decompositions()
    op = torch.ops.vssm.selective_scan_2d.default
    right = table[op]

    def wrong_scan(*args, **kwargs):
        given = arguments(op, args, kwargs)
        return right(**given | {"D": None}) if wrong == "value" else right(**given) * float("nan")

    monkeypatch.setattr(export, "decompositions", lambda: {op: wrong_scan})
    path = tmp_path / "a.torchscript"
    path.write_bytes(b"an older file")
    with pytest.raises(ExportError, match="deviates from the model by"):
        export_model(create("vmamba_pico"), path, SHAPE)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"an older file"


def call(capsys, *words):
    code = run(export_tool.main, [str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_tool_takes_a_training_runs_checkpoint(tmp_path, capsys):
    """Its classes come with it; a random classifier in their place would deviate from the run's model."""
    model = timm.create_model("vmamba_pico", num_classes=5).eval()
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "run.pth")
    file = tmp_path / "a.torchscript"
    code, out, err = call(capsys, "vmamba_pico", file, "--checkpoint", tmp_path / "run.pth", "--img-size", 64, 96)
    assert code == 0 and err == "" and "largest deviation" in out and "1x3x64x96" in out
    x = torch.randn(1, 3, 64, 96)
    assert torch.allclose(torch.jit.load(file)(x), model(x), rtol=1e-4, atol=1e-5)


def test_mistakes_are_one_sentence(tmp_path, capsys):
    (tmp_path / "cut.pth").write_bytes(b"PK")
    file = tmp_path / "a.pt2"
    for words, part in (
        (["vmamba_pica", file], "did you mean 'vmamba_pico'"),
        (["vmamba_pico", tmp_path / "a.tflite"], "must end in .onnx, .pt2, .torchscript, not 'a.tflite'"),
        (["vmamba_pico", tmp_path / "a.torchscript", "--dynamic", "batch"], "fixed sizes"),
        (["vmamba_pico", file, "--dynamic", "size"], "needs this package's operators kept"),
        (["vmamba_pico", file, "--keep-ops", "--dynamic", "size", "--img-size", "75"], "multiples of 32"),
        (["vmamba_pico", tmp_path / "a.onnx", "--keep-ops"], "write .pt2"),
        (["vmamba_pico", file, "--checkpoint", tmp_path / "no.pth"], "does not exist"),
        (["vmamba_pico", file, "--checkpoint", tmp_path / "cut.pth"], "truncated"),
        (["vmamba_pico", file, "--img-size", "0"], "four positive numbers"),
    ):
        code, out, err = call(capsys, *words)
        lines = [line for line in err.splitlines() if not line.startswith("Warning:")]
        assert code == 2 and len(lines) == 1 and part in lines[0], err
    assert {path.name for path in tmp_path.iterdir()} == {"cut.pth"}


def test_a_missing_package_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = call(capsys, "vmamba_pico", tmp_path / "a.onnx")
    assert code == 2 and install_command("export") in err
