"""Operations of a model: as the papers print them, or as multiply-adds or floating-point operations.

fvcore counts a multiply-add of a convolution or matrix product as one and a layer norm as five per element; the papers
add 9 N + 1 per (position, channel) of a selective scan (see `vssm_kernels.flops`). The two units are mixed in the
published figures, so they are mixed in the kind "paper". The others are PyTorch's count, in one unit each.
"""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import enable_reentrant_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .._errors import did_you_mean
from .._fvcore import HANDLES, traced_shape
from .._optional import require
from ..models import family_of
from .cost import UNITS, Cost, ModuleCost
from .repeats import NotRepeated, Repeats

__all__ = ["count", "paper_flops"]

aten = torch.ops.aten
Forward = Callable[[nn.Module, Tensor], Tensor | Sequence[Tensor]]


def _attention(inputs, outputs) -> int:
    q, k, v = map(traced_shape, inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # its two matrix products; fvcore skips the fused op


def _attention_outputs(inputs, outputs) -> int:
    q, k, v = map(traced_shape, inputs[:3])
    return math.prod(q[:-1]) * (k[-2] + v[-1])


# Multiply-adds of a value that is sampled at nine points, each from its four neighbours.
_SAMPLED = 9 * 4


# fvcore's handles, by operator: functions of the traced inputs and outputs. These are added to its own.
_PAPER = {
    **HANDLES,
    "aten::scaled_dot_product_attention": _attention,
    # fvcore counts a pooling layer one per input element; over a channels-last map the pool is a mean.
    "aten::mean": lambda inputs, outputs: math.prod(traced_shape(inputs[0])),
    "torchvision::deform_conv2d": lambda inputs, outputs: _SAMPLED * math.prod(traced_shape(inputs[0])),
}
_OUTPUTS = {"aten::scaled_dot_product_attention": _attention_outputs}


def _convolution_backward(grad, x, weight, bias, stride, padding, dilation, transposed, *rest, out_shape=None) -> int:
    """Counts the forward once for each gradient wanted; torch's own formula forgets the groups of a weight's gradient.

    rest: output padding, groups, and which of the gradients of (x, weight, bias) are wanted.
    """
    positions = math.prod((x if transposed else grad)[2:])
    return 2 * x[0] * positions * math.prod(weight) * sum(rest[2][:2])


def _deformable(x, *rest, out_shape=None, **kwargs) -> int:
    return 2 * _SAMPLED * math.prod(x)


def _deformable_backward(grad, *rest, out_shape=None, **kwargs) -> int:
    """Counts the forward once for the gradient of the values, and once for those of the steps and weights."""
    return 2 * _deformable(grad)


def _copy(model: nn.Module, meta: bool) -> nn.Module:
    """A model of the same structure in eval mode, to hang hooks on; it shares the tensors or has none that hold values.

    On the device "meta" operators work out shapes and nothing else, so that counting a large model costs no compute.
    """
    tensors: dict[int, Tensor] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if not meta:
            tensors[id(tensor)] = tensor
        elif isinstance(tensor, nn.Parameter):
            tensors[id(tensor)] = nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
        else:
            tensors[id(tensor)] = torch.empty_like(tensor, device="meta")
    return copy.deepcopy(model, tensors).eval()


def _offsets(model: nn.Module, totals: Counter) -> None:
    """Make every module add to `totals`, under its name, operations that its paper counts but that do not run here."""
    trained = {
        norm
        for module in model.modules()
        if (family := family_of(module)) and family.counted_in_training
        for norm in module.modules()
        if isinstance(norm, nn.BatchNorm2d)
    }

    def add(name: str, module: nn.Module, inputs: tuple, output) -> None:
        totals[name] += 3 * math.prod(map(int, output.shape)) if module in trained else 0
        if hasattr(module, "paper_flops_offset"):
            totals[name] += int(module.paper_flops_offset(inputs[0]))

    for name, module in model.named_modules():
        if module in trained or hasattr(module, "paper_flops_offset"):
            module.register_forward_hook(partial(add, name))


class _ShapesAlone(TorchDispatchMode):
    """Lets a trace on the device "meta" see what one on a CPU sees.

    Operators of that device are written in Python, and where a trace is recorded sizes are no plain numbers to them: so
    they run in a thread of their own.

    Attributes:
        convolved: Elements of the outputs of all convolutions.
    """

    def __init__(self, thread: ThreadPoolExecutor):
        super().__init__()
        self.thread = thread
        self.convolved = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is aten.convolution.default:
            # A trace records the operator that this one calls on other devices.
            with enable_reentrant_dispatch(), self:
                output = aten._convolution.default(*args, False, False, True, True)
            self.convolved += output.numel()
            return output
        if operator is aten._convolution.default:
            operator, args = aten.convolution.default, args[:9]
        call = partial(operator, *args, **(kwargs or {}))
        # A view is made here, where autograd is told of it.
        return call() if operator.is_view else self.thread.submit(torch.no_grad()(call)).result()


def _traced(model: nn.Module, image: Tensor, operations: Mapping[str, Callable]) -> tuple[Counter, Counter]:
    """Operations of each module by its name, and elements of the outputs of its convolutions and products.

    Args:
        operations: fvcore's handles: by the name of an operator, functions of its traced inputs and outputs.
    """
    fvcore = require("fvcore.nn.jit_analysis", "profile")
    outputs = require("fvcore.nn.activation_count", "profile")._DEFAULT_SUPPORTED_OPS | _OUTPUTS

    def count_both(name: str, inputs: list, results: list) -> Counter:
        counts: Counter = Counter()
        for what, handles in (("operations", operations), ("outputs", outputs)):
            number = handles[name](inputs, results) if name in handles else 0
            counts[what] = sum(number.values()) if isinstance(number, Counter) else number
        counts["convolved"] = counts["outputs"] if name == "aten::_convolution" else 0
        return counts

    handles = {name: partial(count_both, name) for name in {*operations, *outputs}}
    analysis = fvcore.JitModelAnalysis(model, image).set_op_handle(**handles)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with ThreadPoolExecutor(1) as thread, _ShapesAlone(thread) if image.is_meta else nullcontext() as shapes:
        counts = analysis.by_module_and_operator()
    if shapes and shapes.convolved != counts[""]["convolved"]:
        raise RuntimeError("this version of PyTorch does not trace convolutions on the device meta as it did")
    number = {what: Counter({name: int(n[what]) for name, n in counts.items()}) for what in ("operations", "outputs")}
    return number["operations"], number["outputs"]


def _paper(model: nn.Module, image: Tensor, uncounted: Sequence[str] | None) -> tuple[Counter, Counter]:
    """Operations of each module by its name, and activations."""
    handles = require("fvcore.nn.flop_count", "profile")._DEFAULT_SUPPORTED_OPS | _PAPER
    if uncounted is None:
        families = {family.name: family for module in model.modules() if (family := family_of(module))}
        uncounted = {name for family in families.values() for name in family.uncounted_operators}
    offsets: Counter = Counter()
    _offsets(model, offsets)
    counts, activations = _traced(model, image, {name: handles[name] for name in handles if name not in uncounted})
    for name, offset in offsets.items():
        parts = name.split(".")
        for i in range(len(parts) + 1) if name else [0]:
            counts[".".join(parts[:i])] += offset
    return counts, activations


def _torch(model: nn.Module, image: Tensor, backward: bool) -> Counter:
    """Floating-point operations of each module that is called, by name."""
    formulas = {
        torch.ops.aten.convolution_backward: _convolution_backward,
        torch.ops.torchvision.deform_conv2d: _deformable,
        torch.ops.torchvision._deform_conv2d_backward: _deformable_backward,
    }
    # The fused attention of a CPU has no formula, and those of GPUs count a backward that computes scores anew.
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.set_grad_enabled(backward):
            outputs = model(image)
        if backward:
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
            # Not backward(), which would leave gradients in the model's own parameters.
            torch.autograd.grad(sum(y.sum() for y in outputs), wanted, allow_unused=True)
    names = {f".{alias}" if alias else "": alias for alias, _ in model.named_modules(remove_duplicate=False)}
    root = type(model).__name__
    counts: Counter = Counter()
    for path, operators in counter.get_flop_counts().items():
        if path.startswith(root) and path[len(root) :] in names:
            counts[names[path[len(root) :]]] = sum(operators.values())
    counts[""] = counter.get_total_flops()
    return counts


def _modules(model: nn.Module, counts: Mapping[str, int]) -> tuple[ModuleCost, ...]:
    """A module whose own forward is never called, such as a list, has what those in it have."""

    def visit(name: str, module: nn.Module) -> list[ModuleCost]:
        inner: list[ModuleCost] = []
        total = 0
        for child, part in module.named_children():
            found = visit(f"{name}.{child}" if name else child, part)
            total += found[0].flops
            inner += found
        params = sum(parameter.numel() for parameter in module.parameters())
        return [ModuleCost(name, type(module).__name__, params, max(counts.get(name, 0), total)), *inner]

    return tuple(visit("", model))


def _count(
    model: nn.Module,
    input_size: tuple[int, ...],
    kind: str,
    backward: bool,
    forward: Forward | None,
    uncounted: Sequence[str] | None,
    meta: bool,
    once: bool,
) -> Cost:
    modules_of = model
    model = _copy(model, meta)
    repeats = Repeats(model) if once else None
    if forward is not None:
        model.forward = partial(forward, model)
    parameter = next(model.parameters(), torch.empty(0, device="meta" if meta else "cpu"))
    image = torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        counts, activations = _paper(model, image, uncounted) if kind == "paper" else _traced(model, image, {})
    if kind != "paper":
        per_unit = 2 if kind == "macs" else 1
        counts = Counter({name: n // per_unit for name, n in _torch(model, image, backward).items()})
    if repeats:
        repeats.check()
        repeats.add(counts)
        repeats.add(activations)
    modules = _modules(modules_of, counts)
    return Cost(kind, backward, input_size, modules[0].params, counts[""], activations[""], modules)


def count(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    kind: str = "paper",
    backward: bool = False,
    *,
    forward: Forward | None = None,
    uncounted: Sequence[str] | None = None,
    execute: bool = False,
) -> Cost:
    """Count the cost of one image in eval mode: the mathematical operations, whatever backend runs them.

    Kinds:

    - ``"paper"``: as the papers' tables. A multiply-add of a convolution or matrix product is one, an element of a norm
      five (of a BatchNorm, two), of a pooling layer one; a selective scan is 9 per (position, channel, state) and one
      per (position, channel) for the skip. Where an official counter is known to give another number than the
      operations that run here, the module concerned says so: its `paper_flops_offset(x)`, of its first input, is added.
    - ``"flops"``: floating-point operations. A multiply-add of a convolution or matrix product is two; a scan is as
      above, which has multiplications and additions apart. Nothing else counts: no norms, activations, pooling,
      additions of maps.
    - ``"macs"``: half of ``"flops"``.

    Args:
        model: Takes images (1, C, H, W), or volumes (1, C, D, H, W). It is left as it is.
        input_size: (C, H, W), or (C, D, H, W).
        kind: "paper", "macs" or "flops".
        backward: Count the backward pass too, for the gradients of all parameters that want one; not with "paper". A
            product's takes twice its forward, and so does a scan's.
        forward: What to run in place of the model's own forward: a function of (model, image) that gives one tensor or
            several.
        uncounted: Operators that "paper" leaves out. A paper leaves out what its code has in a form that fvcore does
            not know; when None, those that the families of its modules name (`vssm.models.Family`).
        execute: Compute what is counted, on the model's own device, with the backend that would run there. The figures
            are the same. Without it only shapes are worked out, unless the model needs values.

    Returns:
        The cost. Divide `flops` by 1e9 for the GFLOPs of a table.

    Raises:
        ValueError: An unknown kind, an input size of other than three or four positive numbers, or a backward pass that
            was asked of "paper" or of a model without trainable parameters.
        MissingExtraError: fvcore is not installed (the extra [profile]).
    """
    if kind not in UNITS:
        raise ValueError(f"kind must be one of {', '.join(UNITS)}, got {kind!r}{did_you_mean(str(kind), UNITS)}")
    input_size = tuple(input_size)
    if len(input_size) not in (3, 4) or not all(isinstance(n, int) and n > 0 for n in input_size):
        raise ValueError(f"input_size must be (C, H, W) or (C, D, H, W), positive integers, got {input_size}")
    if backward and kind == "paper":
        raise ValueError("the papers count only the forward pass; count a backward pass as 'macs' or 'flops'")
    if backward and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameter that wants a gradient, so it has no backward pass")
    job = partial(_count, model, input_size, kind, backward, forward, uncounted)
    if execute:
        return job(meta=False, once=False)
    try:
        try:
            # Not with a backward pass: the first of a chain may need no gradient of its input, the others do.
            return job(meta=True, once=not backward)
        except (NotRepeated, AttributeError):  # the second: a model that looks into its blocks
            return job(meta=True, once=False)
    except (NotImplementedError, RuntimeError):
        # It reads a value, or has a tensor that is no parameter and no buffer.
        return job(meta=False, once=False)


def paper_flops(
    model: nn.Module, input_size: Sequence[int] = (3, 224, 224), uncounted: Sequence[str] | None = None
) -> int:
    """Operations of one forward pass over one image, counted as in the papers' tables: `count` with the kind "paper".

    Args:
        model: any model that takes images (1, C, H, W); it is left as it is.
        input_size: (C, H, W).
        uncounted: operators to leave out, see `count`.

    Returns:
        The count; divide by 1e9 for the GFLOPs of a table.

    Raises:
        ImportError: fvcore is not installed (the extra [profile]).
    """
    return count(model, input_size, uncounted=uncounted).flops
