"""Derivatives of the ops beyond one backward pass: forward mode, second order, and the transforms of `torch.func`.

An op called in the usual way runs its compiled kernels and is one node in autograd. Where a tensor carries a tangent or
belongs to a derivative of `torch.func`, the op runs in its plain form instead: PyTorch's own operators, which have
every derivative. So does a backward pass that is itself differentiated. Under `torch.vmap` alone the compiled kernels
run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import chunked, functional, reference
from . import routes as tables
from .backends import choose_attention_backend, choose_backend, choose_dual_backend
from .mamba import mamba_inner_fwd
from .neighborhood.tiles import attention_in_one_graph
from .neighborhood.weights import sum_in_one_graph, weights_in_one_graph
from .ops import arguments, gated_scan
from .ops.neighborhood_weights import are_kept
from .ops.registration import absent, library, registered, replace_autograd
from .scan_2d import scan_2d_fwd
from .watch import is_transformed

_level = torch._C._functorch.maybe_current_level
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _wants_plain_form(args: Sequence[Any]) -> bool:
    """Whether a transform that is under way concerns one of these arguments."""
    transforms, tangents = _level() is not None, forward_ad._current_level >= 0
    tensors = [x for x in args if isinstance(x, Tensor)]
    if transforms and any(x.requires_grad or _is_wrapped(x) for x in tensors):
        return True
    return tangents and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


# --------------------------------------------------------------------------------------------------------------------
# the plain forms: by keyword, all arguments of the schema


def _scan_of(backend: str, u: Tensor) -> Callable:
    """The differentiable scan that stands for a backend, which must be available."""
    module = choose_backend(backend, u.device, u.dtype, 0)
    return reference.selective_scan_fwd if module is reference else functional.selective_scan_fwd


def _scan(*, u, backend, **inputs):
    return gated_scan(_scan_of(backend, u), u, **inputs)


def _scan_2d(*, u, routes, out_dtype, backend, **inputs):
    scan = tables.on_flat_maps(partial(scan_2d_fwd, _scan_of(backend, u)), ("u", "dt", "B", "C"))
    return scan(u=u, code=routes, out_dtype=out_dtype or u.dtype, **inputs)


def _mamba(*, backend, **inputs):
    return mamba_inner_fwd(partial(_scan_2d, backend=backend), **inputs)


def _ssd(*, chunk_size, backend, **inputs):
    x = inputs["x"]
    if choose_dual_backend(backend, x.device, x.dtype) is reference:
        return reference.ssd_fwd(**inputs)
    return chunked.ssd_fwd(**inputs, chunk_size=chunk_size)


def _read_map(*, x, routes, per_sequence):
    return tables.read_map(x, routes, per_sequence)


def _write_map(*, y, routes, height, width, merge, outer):
    return tables.write_map(y, routes, *outer, height, width, merge=merge)


def _attention(*, q, v, scale, backend, **inputs):
    choose_attention_backend(backend, q, v)  # its checks
    return attention_in_one_graph(q, v=v, scale=q.shape[-1] ** -0.5 if scale is None else scale, **inputs)


def _weights(*, q, scale, keep, backend, **inputs):
    if not are_kept(keep, q, backend):
        return q.new_empty(q.shape[0], 0, dtype=torch.promote_types(q.dtype, torch.float32))
    return weights_in_one_graph(q, scale=q.shape[-1] ** -0.5 if scale is None else scale, **inputs)


def _sum(*, weights, q, k, v, **inputs):
    if weights.shape[1] > 0:
        return sum_in_one_graph(weights, v, inputs["kernel_size"], inputs["dilation"])
    dtype = torch.promote_types(q.dtype, v.dtype)
    return _attention(q=q.to(dtype), k=k.to(dtype), v=v.to(dtype), **inputs).to(v.dtype)


def _gradients(form: Callable, cotangents: Sequence[str], inputs: Sequence[str], given: dict[str, Any]) -> list[Tensor]:
    """The result of a backward op, by differentiating the plain form of its forward.

    Args:
        form: The plain form.
        cotangents: Names of the gradients of the forward's results.
        inputs: Names of the inputs, in the order of the gradients.
        given: The arguments of the backward op, and what the forward has besides.

    Returns:
        The gradients, in the dtypes of the inputs.
    """
    given = dict(given)
    grads = [given.pop(name) for name in cotangents]
    tensors = {name: given[name] for name in inputs if given[name] is not None}

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        results = form(**given | dict(zip(tensors, values, strict=True)))
        results = results if isinstance(results, tuple) else (results,)
        return tuple(x for x, grad in zip(results, grads, strict=True) if grad is not None)

    _, pull = torch.func.vjp(forward, *tensors.values())
    found = dict(zip(tensors, pull(tuple(g for g in grads if g is not None)), strict=True))
    return [found[name] if name in found else absent(given[inputs[0]]) for name in inputs]


def _scan_backward(**given):
    inputs = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
    return _gradients(_scan, ("grad_y", "grad_state"), inputs, given | {"out_dtype": given["grad_y"].dtype})


def _scan_2d_backward(**given):
    inputs = ("u", "dt", "A", "B", "C", "D", "delta_bias", "dt_weight")
    return _gradients(_scan_2d, ("grad",), inputs, given | {"out_dtype": given["grad"].dtype})


def _ssd_backward(**given):
    return _gradients(_ssd, ("grad",), ("x", "dt", "A", "B", "C", "D", "dt_bias"), given)


def _attention_backward(**given):
    return _gradients(_attention, ("grad",), ("q", "k", "v", "bias"), given | {"backend": "auto"})


def _weights_backward(*, kept, **given):
    return _gradients(_weights, ("grad",), ("q", "k", "bias"), given | {"keep": True, "backend": "torch"})


def _sum_backward(*, weights, q, k, v, **given):
    # As the op: weights that were kept have the gradient, else queries, keys and bias.
    if weights.shape[1] > 0:
        others = dict(q=q, k=k, **given)
        dweights, dv = _gradients(_sum, ("grad",), ("weights", "v"), dict(weights=weights, v=v, **others))
        return [dweights, absent(q), absent(q), dv, absent(q)]
    given |= dict(weights=weights, q=q, k=k, v=v)
    return [absent(weights), *_gradients(_sum, ("grad",), ("q", "k", "v", "bias"), given)]


# --------------------------------------------------------------------------------------------------------------------
# registration


def _register_transforms(name: str, form: Callable) -> None:
    """Run an op in its plain form where a derivative other than the usual one asks for it."""
    op, definition, fake = registered(name)

    def plain(args: Sequence[Any]) -> Any:
        fake(*args)  # holds the checks
        return form(**arguments(op, args))

    def choose(usual: Callable) -> Callable:
        def autograd(keyset, *args):
            if is_transformed() and _wants_plain_form(args):
                return plain(args)
            return usual(keyset, *args)

        return autograd

    replace_autograd(name, choose)


def _register_second_order(name: str, form: Callable) -> None:
    """Differentiate a backward op, which one differentiates by `create_graph=True`."""
    op, definition, _ = registered(name)

    def setup(ctx, inputs, output):
        ctx.is_tensor = [isinstance(x, Tensor) for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]

    def backward(ctx, grads):
        tensors = ctx.saved_tensors

        def gradients(*tensors: Tensor) -> list[Tensor]:
            values = iter(tensors)
            args = [next(values) if is_tensor else x for is_tensor, x in zip(ctx.is_tensor, ctx.others, strict=True)]
            return form(**arguments(op, args))

        results, pull = torch.func.vjp(gradients, *tensors)
        found = iter(pull([g.to(x.dtype) for g, x in zip(grads, results, strict=True)]))
        return tuple(next(found) if is_tensor else None for is_tensor in ctx.is_tensor)

    definition.register_autograd(backward, setup_context=setup)


def _register_vmap(name: str, streaming: Sequence[str]) -> None:
    """Let `torch.vmap` run the op's kernels: once where only batched inputs are mapped, else once for each.

    Args:
        name: The op.
        streaming: Names of the inputs whose first dimension is that of the batch, as is that of all results.
    """
    op, definition, _ = registered(name)
    positions = [i for i, argument in enumerate(op._schema.arguments) if argument.name in streaming]

    def rule(info, in_dims, *args):
        in_dims = [dim if isinstance(x, Tensor) else None for x, dim in zip(args, in_dims, strict=True)]

        def item(i: int) -> list[Any]:
            return [x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)]

        if any(dim is not None and i not in positions for i, dim in enumerate(in_dims)):
            if info.batch_size == 0:
                raise ValueError(f"{op._opname}: torch.vmap over a dimension of size 0 is not supported")
            results = [op(*item(i)) for i in range(info.batch_size)]
            if isinstance(results[0], Tensor):
                return torch.stack(results), 0
            stacked = type(results[0])(torch.stack(parts) for parts in zip(*results, strict=True))
            return stacked, type(stacked)([0] * len(stacked))
        joined = list(args)
        for i in positions:
            if i < len(args) and args[i] is not None:
                x = args[i]
                x = x.expand(info.batch_size, *x.shape) if in_dims[i] is None else x.movedim(in_dims[i], 0)
                joined[i] = x.flatten(0, 1)
        results = op(*joined)
        if isinstance(results, Tensor):
            return results.unflatten(0, (info.batch_size, -1)), 0
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in results), (0,) * len(results)

    definition.register_vmap(rule)


def _refuse_old_vmap(name: str) -> None:
    """Say what to call in the place of the vmap of `torch.autograd`, which knows no rules of operators."""

    def refuse(*args):
        raise NotImplementedError(
            f"vssm::{name} cannot run under is_grads_batched=True or vectorize=True of torch.autograd; "
            "use torch.func.jacrev, torch.func.hessian or torch.vmap, which it supports"
        )

    library.impl(name, refuse, "Batched")


for _name, _form, _streaming in (
    ("selective_scan", _scan, ("u", "delta", "B", "C", "z")),
    ("selective_scan_2d", _scan_2d, ("u", "dt", "B", "C")),
    ("mamba_inner", _mamba, ("xz",)),
    ("ssd", _ssd, ("x", "dt", "B", "C")),
    ("neighborhood_attention", _attention, ("q", "k", "v")),
    ("neighborhood_weights", _weights, ("q", "k")),
    ("neighborhood_sum", _sum, ("weights", "q", "k", "v")),
    ("read_map", _read_map, ("x",)),
    ("write_map", _write_map, ("y",)),
):
    _register_transforms(_name, _form)
    _register_vmap(_name, _streaming)

for _name, _form in (
    ("selective_scan_backward", _scan_backward),
    ("selective_scan_2d_backward", _scan_2d_backward),
    ("ssd_backward", _ssd_backward),
    ("neighborhood_attention_backward", _attention_backward),
    ("neighborhood_weights_backward", _weights_backward),
    ("neighborhood_sum_backward", _sum_backward),
):
    _register_second_order(_name, _form)
    _register_transforms(_name, _form)
    _register_vmap(_name, ())
    _refuse_old_vmap(_name)
