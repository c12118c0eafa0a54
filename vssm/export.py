"""Write a model to an ONNX, torch.export or TorchScript file, and run that file to compare it with the model."""

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vssm_kernels import decompositions

from ._errors import UserError
from ._files import whole_file
from ._optional import require

__all__ = ["FORMATS", "ExportError", "Exported", "export_model"]

FORMATS = {".onnx": "ONNX", ".pt2": "torch.export", ".torchscript": "TorchScript"}
# Sizes of a file for any size. Every stage halves such a map without a remainder, so odd maps need no second graph.
STRIDE, LARGEST = 32, 2048


class ExportError(UserError):
    """A model cannot be exported, or the file does not compute what the model does."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and run.

    Attributes:
        path: The file.
        shapes: Shapes (B, C, H, W) of the images that the file and the model were compared on.
        deviation: Largest absolute difference of any output on any of them.
        relative: The same, over the largest absolute value of that output.
    """

    path: Path
    shapes: tuple[tuple[int, ...], ...]
    deviation: float
    relative: float


class _Images(nn.Module):
    """A model with an input of a name of its own, and a tuple for a list of outputs, which tracing asks for."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.model(images)
        return outputs if isinstance(outputs, Tensor) else tuple(outputs)


class _Decomposed(TorchFunctionMode):
    """While it is active, this package's operators are the functions of PyTorch's that they decompose into.

    `run_decompositions` does the same to a program afterwards, but takes apart every other operator of it again too.
    """

    def __init__(self, keep_ops: bool):
        super().__init__()
        table = {} if keep_ops else decompositions()
        self.table = table | {op.overloadpacket: function for op, function in table.items()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.table.get(func, func)(*args, **(kwargs or {}))


@torch.no_grad()
def export_model(
    model: nn.Module,
    path: str | os.PathLike,
    shape: Sequence[int],
    dynamic: Collection[str] = (),
    keep_ops: bool = False,
    tolerance: float = 1e-4,
    progress: Callable[[str, int, int], None] | None = None,
) -> Exported:
    """Write a model to a file for another runtime, and compare what the two compute.

    The file stands for the model in eval mode and holds its weights. The scans are in it as operators of PyTorch or of
    ONNX alone (`vssm_kernels.decompositions`), so whatever runs the file needs nothing of this package. It is written
    under a temporary name, read back, run on random images, and gets its own name only if it agrees with the model.

    Args:
        model: Images (B, C, H, W) in float32 to logits or to a list of feature maps.
        path: The file; its suffix, one of `FORMATS`, says what is written.
        shape: Shape (B, C, H, W) of the images.
        dynamic: What the file shall take in any number: ``"batch"``; with `keep_ops` also ``"size"``, which is H and W
            in multiples of 32 from 64 to 2048. Anything else is fixed. A TorchScript file has fixed sizes.
        keep_ops: Keep this package's operators, which choose the fastest backend where the file runs; Python has to
            ``import vssm_kernels`` there before it reads the file. Not for ONNX.
        tolerance: Largest deviation allowed, as a share of an output's largest absolute value.
        progress: Called with (what is done next, steps done, steps in all).

    Returns:
        The file's path, and how far it is from the model on images of `shape` and, where sizes are dynamic, of two
        others.

    Raises:
        ExportError: The suffix or the shape cannot be used, the model cannot be followed, or the file deviates. No file
            is left behind.
        MissingExtraError: ONNX's packages are not installed.
    """
    path = Path(path)
    shape = tuple(shape)
    _check_request(path, shape, dynamic, keep_ops)
    report = progress or (lambda *_: None)
    model = _Images(model).eval()
    shapes = _shapes_to_try(shape, dynamic)
    # A batch of one, exported, would be taken for a constant.
    example = torch.randn(max(shape[0], 2) if "batch" in dynamic else shape[0], *shape[1:])
    report("following the model", 0, 3)
    with _explained(f"The model cannot be exported to {FORMATS[path.suffix]}"), _Decomposed(keep_ops):
        program = torch.export.export(model, (example,), dynamic_shapes=_dynamic_shapes(dynamic), strict=False)
    report("writing the file", 1, 3)
    with whole_file(path) as part:
        with _explained(f"The model cannot be written as {FORMATS[path.suffix]}"):
            _WRITERS[path.suffix](program, example, part)
        report("comparing", 2, 3)
        with _explained(f"The {FORMATS[path.suffix]} file that was written cannot be run"):
            run = _READERS[path.suffix](part)
            deviation, relative = _compare(run, model, shapes)
        # Not "greater": a NaN is no agreement.
        if not relative <= tolerance:
            raise ExportError(
                f"The file '{path}' was not kept: it deviates from the model by {deviation:.2g}, {relative:.2g} of the "
                f"largest output, and {tolerance:.2g} is allowed."
            )
    return Exported(path, shapes, deviation, relative)


def _check_request(path: Path, shape: tuple[int, ...], dynamic: Collection[str], keep_ops: bool) -> None:
    if path.suffix not in FORMATS:
        raise ExportError(f"The file must end in {', '.join(FORMATS)}, not '{path.name}'.")
    if len(shape) != 4 or min(shape) < 1:
        raise ExportError(f"The shape of the images must be four positive numbers (B, C, H, W), not {shape}.")
    for name in dynamic:
        if name not in ("batch", "size"):
            raise ExportError(f"What is dynamic must be 'batch' or 'size', not '{name}'.")
    if dynamic and path.suffix == ".torchscript":
        raise ExportError("A TorchScript file has fixed sizes; for dynamic ones write .onnx or .pt2.")
    if "size" in dynamic and not keep_ops:
        # Symbolic shapes of a thousand small operators take the exporter many minutes.
        raise ExportError(
            "A dynamic size needs this package's operators kept (--keep-ops, .pt2); export one size a file."
        )
    if "size" in dynamic and any(side % STRIDE or not 2 * STRIDE <= side <= LARGEST for side in shape[2:]):
        raise ExportError(
            f"With a dynamic size height and width must be multiples of {STRIDE} from {2 * STRIDE} to {LARGEST}, not "
            f"{shape[2]} x {shape[3]}."
        )
    if path.suffix == ".onnx":
        if keep_ops:
            raise ExportError("An ONNX file cannot keep this package's operators; write .pt2 or .torchscript.")
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, "export")


def _dynamic_shapes(dynamic: Collection[str]) -> dict | None:
    if not dynamic:
        return None
    dims: dict = {}
    if "batch" in dynamic:
        dims[0] = torch.export.Dim("batch", min=1)
    if "size" in dynamic:
        for dim, name in ((2, "height"), (3, "width")):
            dims[dim] = STRIDE * torch.export.Dim(f"{name}_{STRIDE}", min=2, max=LARGEST // STRIDE)
    return {"images": dims}


def _shapes_to_try(shape: tuple[int, ...], dynamic: Collection[str]) -> tuple[tuple[int, ...], ...]:
    """The shape itself; and a smaller and a larger one, not square, if the file is to take them."""
    if not dynamic:
        return (shape,)
    batch, chans, height, width = shape
    batches = (1, batch + 2) if "batch" in dynamic else (batch, batch)
    sizes = ((height, width), (height, width))
    if "size" in dynamic:
        sizes = ((2 * STRIDE, 3 * STRIDE), (min(height + STRIDE, LARGEST), min(width + 2 * STRIDE, LARGEST)))
    return (shape, *((b, chans, *size) for b, size in zip(batches, sizes, strict=True)))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Exporters and runtimes raise dozens of types, with pages of text: keep the first line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        raise ExportError(f"{what}: {type(error).__name__}: {reason}.") from error


def _compare(run: Callable, model: nn.Module, shapes: Sequence[tuple[int, ...]]) -> tuple[float, float]:
    """Largest absolute and relative deviation of a file from the model, over random images of these shapes."""
    generator = torch.Generator().manual_seed(0)
    deviation = relative = 0.0
    for shape in shapes:
        images = torch.randn(shape, generator=generator)
        wanted, got = (y if isinstance(y, tuple | list) else (y,) for y in (model(images), run(images)))
        for want, output in zip(wanted, got, strict=True):
            if output.shape != want.shape:
                raise ExportError(f"the file gives {tuple(output.shape)}, the model {tuple(want.shape)}.")
            difference = (output - want).abs().max().item()
            share = difference / max(want.abs().max().item(), torch.finfo(want.dtype).tiny)
            # max() would drop a NaN.
            deviation = difference if not difference <= deviation else deviation
            relative = share if not share <= relative else relative
    return deviation, relative


def _write_onnx(program: torch.export.ExportedProgram, example: Tensor, path: Path) -> None:
    count = len(program.graph_signature.user_outputs)
    outputs = ["logits"] if count == 1 else [f"features_{i}" for i in range(count)]
    # The exporter's own optimiser takes minutes for the many small operators of a scan, most of them in search of
    # attention and the like. Runtimes optimise for themselves; folding constants is what some of them expect.
    exported = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=outputs, optimize=False, verbose=False
    )
    assert exported is not None  # which the older exporter returns
    optimizer = require("onnxscript.optimizer", "export")
    optimizer.fold_constants(exported.model)
    optimizer.remove_unused_nodes(exported.model)
    # Of the short forms of constants, onnxruntime's preparation for quantisation knows none.
    passes = require("onnx_ir.passes.common", "export")
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(exported.model)
    # Every block has its own tables of routes, and constants of one number.
    passes.DeduplicateInitializersPass()(exported.model)
    proto = exported.model_proto
    # What is noted of the shapes describes weights, too, which quantisers transpose, and values that were folded away.
    del proto.graph.value_info[:]
    onnx = require("onnx", "export")
    onnx.save(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True), str(path))


def _write_program(program: torch.export.ExportedProgram, example: Tensor, path: Path) -> None:
    torch.export.save(program, path)


def _write_torchscript(program: torch.export.ExportedProgram, example: Tensor, path: Path) -> None:
    torch.jit.trace(program.module(), example, check_trace=False).save(str(path))


def _read_onnx(path: Path) -> Callable:
    session = require("onnxruntime", "export").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, {"images": images.numpy()})]

    return run


def _read_program(path: Path) -> Callable:
    return torch.export.load(path).module()


def _read_torchscript(path: Path) -> Callable:
    return torch.jit.load(str(path))


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_program, ".torchscript": _write_torchscript}
_READERS = {".onnx": _read_onnx, ".pt2": _read_program, ".torchscript": _read_torchscript}
