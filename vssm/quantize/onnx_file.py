"""Quantise an ONNX file by onnxruntime's tools: products of matrices and convolutions, never the scan's recurrence.

A scan is written as many small operators, exponentials and products of decays among them. In eight bits these lose what
the state is made of, so nothing but MatMul, Gemm and Conv is quantised, and of the products only those with weights.
"""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._files import whole_file
from .._optional import require
from .layers import QuantizeError

__all__ = ["QUANTIZED_OPS", "QuantizedFile", "quantize_onnx"]

QUANTIZED_OPS = {"dynamic": ("MatMul", "Gemm"), "static": ("MatMul", "Gemm", "Conv")}


@dataclass(frozen=True)
class QuantizedFile:
    """An int8 file that was written and run.

    Attributes:
        path: The file.
        quantized: How many operators were quantised.
        relative: Distance of the outputs from the model's, |difference| / |model's|.
        agreement: Share of the images for which both name the same class, from 0 to 1; None for feature maps.
    """

    path: Path
    quantized: int
    relative: float
    agreement: float | None


def quantize_onnx(
    model: nn.Module,
    source: str | os.PathLike,
    path: str | os.PathLike,
    mode: str,
    images: Sequence[Tensor],
    tolerance: float = 0.2,
) -> QuantizedFile:
    """Write an int8 form of an exported file, run it and compare it with the model.

    Args:
        model: What was exported, for the comparison.
        source: Its float ONNX file.
        path: The file to be written.
        mode: ``"dynamic"``: int8 weights of MatMul and Gemm, the inputs' steps are found at run time; ``"static"``:
            these and Conv, with steps from the images.
        images: Batches of the shape that the file takes; for ``"static"`` 256 images are usual. The comparison is on
            the first four batches.
        tolerance: Largest relative distance allowed.

    Raises:
        QuantizeError: The mode is unknown, there are no images, nothing could be quantised, or the file is too far from
            the model. No file is left behind.
        MissingExtraError: onnxruntime is not installed.
    """
    if mode not in QUANTIZED_OPS:
        raise QuantizeError(f"The int8 form must be {' or '.join(QUANTIZED_OPS)}, not '{mode}'.")
    if not images:
        raise QuantizeError("The int8 file needs images, to calibrate or to be compared on.")
    onnx = require("onnx", "export")
    runtime = require("onnxruntime", "export")
    tools = require("onnxruntime.quantization", "export")
    proto = onnx.load(str(source))
    nodes = _with_weights(proto, QUANTIZED_OPS[mode])
    if not nodes:
        raise QuantizeError(f"'{source}' has no {', '.join(QUANTIZED_OPS[mode])} with weights to quantise.")
    # A note on the shape of a value that onnxruntime's tools transpose would be wrong behind them.
    del proto.graph.value_info[:]
    name = proto.graph.input[0].name
    kept = {"nodes_to_quantize": nodes, "op_types_to_quantize": list(QUANTIZED_OPS[mode]), "per_channel": True}
    with tempfile.TemporaryDirectory() as folder, whole_file(path) as part:
        plain = Path(folder) / "plain.onnx"
        onnx.save(proto, str(plain))
        with _quiet():
            if mode == "dynamic":
                tools.quantize_dynamic(plain, part, weight_type=tools.QuantType.QInt8, **kept)
            else:
                reader = _reader(tools.CalibrationDataReader, name, images)
                form = {"quant_format": tools.QuantFormat.QDQ, "weight_type": tools.QuantType.QInt8}
                tools.quantize_static(plain, part, reader, activation_type=tools.QuantType.QUInt8, **form, **kept)
        session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        relative, agreement = _compare(model, session, name, images[:4])
        # Not "greater": a NaN is no agreement.
        if not relative <= tolerance:
            raise QuantizeError(
                f"The file '{path}' was not kept: it is {relative:.2g} of the outputs away from the model, and "
                f"{tolerance:.2g} is allowed."
            )
    return QuantizedFile(Path(path), len(nodes), relative, agreement)


def _with_weights(proto: Any, ops: Sequence[str]) -> list[str]:
    """Names of the operators whose second input is a weight; nodes without a name get one."""
    # Of matrices alone: those of the step size, of three dimensions, belong to the scan.
    dims = {tensor.name: len(tensor.dims) for tensor in proto.graph.initializer}
    # The exporter keeps the transposition of a linear layer's weight as a node of its own.
    dims |= {n.output[0]: dims[n.input[0]] for n in proto.graph.node if n.op_type == "Transpose" and n.input[0] in dims}
    found = []
    for i, node in enumerate(proto.graph.node):
        rank = dims.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in ops and rank is not None and (node.op_type == "Conv" or rank == 2):
            node.name = node.name or f"{node.op_type}_{i}"
            found.append(node.name)
    return found


def _reader(base: type, name: str, images: Sequence[Tensor]) -> Any:
    class Reader(base):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch.numpy()}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Take away what the tools advise: preparing the file, which ours needs not."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _compare(model: nn.Module, session: Any, name: str, images: Sequence[Tensor]) -> tuple[float, float | None]:
    energy = noise = 0.0
    same = total = 0
    logits = True
    model.eval()
    for batch in images:
        wanted = model(batch)
        logits = logits and isinstance(wanted, Tensor) and wanted.dim() == 2
        wanted = [wanted] if isinstance(wanted, Tensor) else list(wanted)
        outputs = [torch.from_numpy(y) for y in session.run(None, {name: batch.numpy()})]
        for want, output in zip(wanted, outputs, strict=True):
            energy += float(want.double().square().sum())
            noise += float((output - want).double().square().sum())
        if logits:
            same += int((outputs[0].argmax(1) == wanted[0].argmax(1)).sum())
            total += len(batch)
    return (noise / energy) ** 0.5, same / total if logits else None
