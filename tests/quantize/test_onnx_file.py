"""Int8 ONNX files: what is quantised in them, what is not, and that a bad one is not kept."""

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from vssm.commands import main
from vssm.export import export_model
from vssm.quantize import QuantizeError, quantize_onnx


class Small(nn.Module):
    """A convolution, linear layers, and what a scan is written as: matrices of sequences, and products of inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 5)
        self.weight = nn.Parameter(torch.randn(2, 16, 16) / 4)

    def forward(self, x):
        x = self.first(self.conv(x).flatten(2).mT)
        x = torch.matmul(x.unsqueeze(1), self.weight).sum(1)
        return self.last(torch.matmul(x.mT, x).exp().log() / 8).mean(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = Small().eval()
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_model(model, path, (2, 3, 16, 16))
    images = list(torch.randn(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    return model, path, images


@pytest.mark.parametrize(("mode", "count", "left"), [("dynamic", 2, 2), ("static", 3, 2)])
def test_matrices_are_quantised_and_products_of_a_scan_are_not(exported, mode, count, left, tmp_path):
    model, path, images = exported
    done = quantize_onnx(model, path, tmp_path / "int8.onnx", mode, images)
    assert done.quantized == count and 0 < done.relative < 0.1 and done.agreement > 0.6
    graph = onnx.load(done.path).graph
    kinds = [node.op_type for node in graph.node]
    integers = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    floats = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and not integers & set(n.input)]
    assert len(floats) == left and "Exp" in kinds
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in graph.initializer)


def test_a_bad_file_is_not_kept(exported, tmp_path):
    model, path, images = exported
    with pytest.raises(QuantizeError, match="was not kept"):
        quantize_onnx(model, path, tmp_path / "int8.onnx", "dynamic", images, tolerance=1e-9)
    with pytest.raises(QuantizeError, match="must be dynamic or static"):
        quantize_onnx(model, path, tmp_path / "int8.onnx", "int4", images)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, capsys):
    for i in range(3):
        pixels = np.random.RandomState(i).randint(0, 255, (160, 160, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    words = ["export", "test_vit", str(tmp_path / "int8.onnx"), "--int8", "static"]
    torch.manual_seed(0)
    assert not main([*words, "--calibration", str(tmp_path)])
    out = capsys.readouterr().out
    assert "ONNX, int8" in out and "3 images" in out and "away from the model, the same class for" in out
    for more, sentence in (([], "needs --calibration"), (["--calibration", "x"], "writes an .onnx file")):
        wrong = words if not more else [*words[:2], "a.pt2", *words[3:], *more]
        with pytest.raises(SystemExit):
            main(wrong)
        assert sentence in capsys.readouterr().err
