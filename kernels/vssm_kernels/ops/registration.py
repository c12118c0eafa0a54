"""Shared by all ops: registration by schema, checks of inputs, gradients of absent inputs, autocast, FLOP formulas."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.autograd import make_autograd_impl
from torch.utils.flop_counter import register_flop_formula

from ..reference import compute_dtype

__all__ = [
    "FLOATS",
    "absent",
    "arguments",
    "cast_gradients",
    "check_devices",
    "check_gradient",
    "check_nonempty",
    "check_out_dtype",
    "check_tensor",
    "fake_gradients",
    "library",
    "present",
    "register",
    "register_autocast",
    "register_flops",
    "registered",
    "replace_autograd",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Kept for the life of the process: what it registers goes with it.
library = torch.library.Library("vssm", "FRAGMENT")


class Registered(NamedTuple):
    """An op of the namespace.

    Attributes:
        op: The operator.
        definition: What it is defined by.
        fake: Gives empty results, after all checks; positional arguments, last ones that equal their default left out.
    """

    op: torch._ops.OpOverload
    definition: torch.library.CustomOpDef
    fake: Callable


_registered: dict[str, Registered] = {}


def registered(name: str) -> Registered:
    """Find an op by its name."""
    return _registered[name]


@cache
def _defaults(op: torch._ops.OpOverload) -> dict[str, Any]:
    """The names of an op's arguments in order, with the schema's defaults; without one None, which is replaced."""
    return {argument.name: argument.default_value for argument in op._schema.arguments}


def arguments(op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict:
    """Name the arguments of a call and fill in the defaults, which stand only in the schema.

    PyTorch hands kernels, formulas and modes positional arguments, and leaves out last ones that equal their default.

    Args:
        op: The operator, such as `torch.ops.vssm.ssd.default`.
        args: Positional arguments of the call.
        kwargs: Its keyword arguments.

    Returns:
        All arguments by name, in the order of the schema.
    """
    defaults = _defaults(op)
    return {**defaults, **dict(zip(defaults, args, strict=False)), **(kwargs or {})}


def register(schema: str, kernel: Callable, fake: Callable) -> torch.library.CustomOpDef:
    """Register an op of the namespace `vssm`.

    Args:
        schema: Name, arguments with defaults, and results, as in "ssd(Tensor x, int chunk_size=64) -> Tensor".
        kernel: Computes the results; called with all arguments in the order of the schema.
        fake: Gives empty results; called in the same way.

    Returns:
        The op's definition, to register a gradient with.
    """
    name, _, signature = schema.partition("(")

    def completed(function: Callable) -> Callable:
        # Not by `arguments`: a small scan takes 10 microseconds.
        return lambda *args: function(*args, *defaults[len(args) :])

    op = torch.library.custom_op(f"vssm::{name}", completed(kernel), mutates_args=(), schema=f"({signature}")
    overload = getattr(torch.ops.vssm, name).default
    defaults = tuple(_defaults(overload).values())
    op.register_fake(completed(fake))
    _registered[name] = Registered(overload, op, completed(fake))
    return op


def replace_autograd(name: str, choose: Callable[[Callable], Callable]) -> None:
    """Put a kernel before the one that records an op in autograd.

    Args:
        name: The op.
        choose: Makes the new kernel out of the usual one. Both take the keys of dispatch, then the op's arguments by
            position.
    """
    op, definition, _ = _registered[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid", category=UserWarning)
        # `library.impl` of PyTorch 2.6 refuses a second kernel for the same key; what it calls does not.
        inner: Any = library.m
        inner.impl(name, "Autograd", choose(make_autograd_impl(op, definition)), True)


def register_autocast(name: str, streaming: Sequence[str]) -> None:
    """Raise the streaming inputs of an op to their widest dtype under autocast, and run the op as it is.

    Autocast lowers linear layers and convolutions, so the inputs usually arrive in one half dtype; where one was kept
    in float32 on purpose, the others follow it.

    Args:
        name: The op.
        streaming: Names of the inputs that must be of one dtype.
    """
    op = getattr(torch.ops.vssm, name).default

    def rule_for(device_type: str) -> Callable:
        def rule(*args, **kwargs):
            given = arguments(op, args, kwargs)
            present = [key for key in streaming if given[key] is not None]
            widest = given[present[0]].dtype
            for key in present[1:]:
                widest = torch.promote_types(widest, given[key].dtype)
            given |= {key: given[key].to(widest) for key in present}
            with torch.autocast(device_type, enabled=False):
                return op(**given)

        return rule

    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"), ("xpu", "AutocastXPU")):
        library.impl(name, rule_for(device_type), key)


def register_flops(name: str, formula: Callable[..., int], gradients: int) -> None:
    """Tell `torch.utils.flop_counter` what an op and its backward cost.

    Args:
        name: The op. Its backward is `name`_backward, and counts twice the forward, as torch does for matrix products.
        formula: The operations of the forward; called by keyword with the op's arguments, shapes for tensors.
        gradients: How many arguments of the backward stand before those of the forward.
    """
    forward = getattr(torch.ops.vssm, name)
    backward = getattr(torch.ops.vssm, f"{name}_backward")

    @register_flop_formula(forward)
    def _(*args, out_shape=None, **kwargs) -> int:
        return formula(**arguments(forward.default, args, kwargs))

    @register_flop_formula(backward)
    def _(*args, out_shape=None, **kwargs) -> int:
        given = list(arguments(backward.default, args, kwargs).items())[gradients:]
        return 2 * formula(**arguments(forward.default, (), dict(given)))


# --------------------------------------------------------------------------------------------------------------------
# checks


def check_tensor(op: str, name: str, x: Tensor | None, *shapes: tuple, dtype: torch.dtype | None = None) -> None:
    """Refuse what is not a real floating tensor of one of the shapes; an absent one passes.

    Args:
        op: The op's name, for the message.
        name: The argument's name, for the message.
        x: The argument.
        shapes: The shapes allowed; None in a shape stands for any size.
        dtype: The dtype of the other inputs, if x must share it.

    Raises:
        TypeError: The dtype is not allowed.
        ValueError: The shape is not allowed.
    """
    if x is None:
        return
    if x.is_complex():
        raise TypeError(f"{op}: {name} must be real, got {x.dtype}; complex state matrices are not supported")
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{op}: {name} must have the dtype of the other inputs, {dtype}, got {x.dtype}")
    for shape in shapes:
        if len(shape) == x.dim() and all(want is None or want == got for want, got in zip(shape, x.shape, strict=True)):
            return
    allowed = " or ".join("(" + ", ".join("any" if s is None else str(s) for s in shape) + ")" for shape in shapes)
    raise ValueError(f"{op}: {name} must have shape {allowed}, got {tuple(x.shape)}")


def check_nonempty(op: str, u: Tensor) -> None:
    """Refuse an input without elements."""
    if u.numel() == 0:
        raise ValueError(f"{op}: the input is empty, got shape {tuple(u.shape)}")


def check_devices(op: str, **tensors: Tensor | None) -> None:
    """Refuse inputs on different devices."""
    given = {name: x.device for name, x in tensors.items() if x is not None}
    if len(set(given.values())) > 1:
        places = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise ValueError(f"{op}: all inputs must be on one device, got {places}")


def check_gradient(op: str, grad: Tensor | None, shape: Sequence[int], like: Tensor) -> None:
    """Refuse a gradient that is not one of a result of this shape: kernels read as much of it as the result has."""
    check_tensor(f"{op}_backward", "the gradient", grad, tuple(shape))
    check_devices(f"{op}_backward", gradient=grad, input=like)


def check_out_dtype(op: str, out_dtype: torch.dtype | None) -> None:
    """Refuse a dtype of the result that is not a float."""
    if out_dtype is not None and out_dtype not in FLOATS:
        raise TypeError(f"{op}: out_dtype must be float32, bfloat16, float16 or float64, got {out_dtype}")


# --------------------------------------------------------------------------------------------------------------------
# gradients


def absent(like: Tensor) -> Tensor:
    """Stand for the gradient of an absent input: an operator returns tensors, not None."""
    return like.new_empty(0)


def present(x: Tensor | None, like: Tensor) -> Tensor:
    """Put `absent` in the place of None."""
    return absent(like) if x is None else x


def fake_gradients(inputs: Sequence[Tensor | None], parameters: Sequence[int]) -> list[Tensor]:
    """Make empty gradients of inputs: those at `parameters` in the dtype of the state, others in their own."""
    first = inputs[0]
    assert first is not None  # every op has a first input
    state = compute_dtype(first)
    return [
        absent(first)
        if x is None
        else torch.empty(x.shape, dtype=state if i in parameters else x.dtype, device=x.device)
        for i, x in enumerate(inputs)
    ]


def cast_gradients(gradients: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Cast gradients to their inputs' dtypes, and put None for the inputs that were not given."""
    return [None if x is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)]
