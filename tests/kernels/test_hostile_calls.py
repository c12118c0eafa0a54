"""Calls that do not fit are refused in one sentence, before a kernel reads or writes what is not there."""

import pytest
import torch

import vssm_kernels as vk
from tests.kernels.test_cpu import needs_library
from vssm_kernels import Route, encode_routes
from vssm_kernels.cpu_maps import depthwise_grad, neighborhood_attention_grad
from vssm_kernels.ops import neighborhood_sum, neighborhood_weights

r = torch.randn
ROUTES = encode_routes([Route()])
WINDOW = ([3, 3], [1, 1], None, None)
# Of each op: the arguments behind the gradient.
BACKWARD = {
    "selective_scan": lambda: (None, r(1, 4, 9), r(1, 4, 9), r(4, 1), *(r(1, 1, 1, 9),) * 2, *(None,) * 3, False),
    "selective_scan_2d": lambda: (
        *(r(1, 3, 4, 6), r(1, 3, 4, 1, 6), r(1, 6, 2), *(r(1, 3, 4, 1, 2),) * 2),
        *(None, None, None, ROUTES, True, True),
    ),
    "ssd": lambda: (r(1, 9, 2, 4), r(1, 9, 2), r(2), *(r(1, 9, 1, 3),) * 2, None, None, False, 64),
    "neighborhood_attention": lambda: (*(r(1, 5, 6, 2, 4),) * 3, *WINDOW),
    "neighborhood_sum": lambda: (r(1, 0), *(r(1, 5, 6, 2, 4),) * 3, *WINDOW),
}


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("name", BACKWARD)
def test_gradients_of_another_shape(name, backend):
    op, args = getattr(torch.ops.vssm, f"{name}_backward"), BACKWARD[name]()
    for grad in (r(1), r(1, 2, 3)):
        with pytest.raises(ValueError, match=f"{name}_backward: the gradient must have shape"):
            op(grad, *args, backend)


def test_other_arguments_of_backward_ops():
    q = r(1, 5, 6, 2, 4)
    with pytest.raises(ValueError, match="dilation must be two numbers of at least 1"):
        torch.ops.vssm.neighborhood_attention_backward(q, q, q, q, [3, 3], [0, 0], None, None, "cpp")
    u = r(1, 4, 9)
    with pytest.raises(ValueError, match="delta must have shape"):
        torch.ops.vssm.selective_scan_backward(u, None, u, r(1), *BACKWARD["selective_scan"]()[3:], "cpp")
    with pytest.raises(ValueError, match="neighborhood_weights_backward: the gradient must have shape"):
        torch.ops.vssm.neighborhood_weights_backward(r(1, 3), r(1, 5), q, q, [3, 3], [1, 1], None, None)


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
def test_nothing_to_scan(backend):
    with pytest.raises(ValueError, match="A must hold at least one state"):
        vk.selective_scan_2d(
            r(1, 5, 6, 8), r(1, 5, 6, 1, 8), r(1, 8, 0), r(1, 5, 6, 1, 0), routes=[Route()], backend=backend
        )
    for taps, rank, states, message in (
        (3, 1, 0, "A must hold at least one state"),
        (3, 0, 1, "dt_weight must have a rank of at least 1"),
        (0, 1, 1, "conv_weight must have at least one tap"),
    ):
        weights = r(16, 1, taps), None, r(2, rank + 2 * states, 8), r(2, 8, rank), r(2, 8), r(2, 8, states), r(2, 8)
        with pytest.raises(ValueError, match=message):
            vk.mamba_inner(r(1, 5, 16), *weights, backend=backend)


@needs_library
@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
def test_values_without_channels(backend):
    q, k = (r(1, 5, 6, 2, 4, requires_grad=True) for _ in "qk")
    y = vk.neighborhood_attention(q, k, r(1, 5, 6, 2, 0), (3, 3), backend=backend)
    assert y.shape == (1, 5, 6, 2, 0)
    for grad in torch.autograd.grad(y.sum(), [q, k]):
        assert torch.equal(grad, torch.zeros_like(grad))


@needs_library
@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
def test_windows_beyond_the_map(backend):
    q, k, v = (r(1, 5, 6, 2, 4, requires_grad=True) for _ in "qkv")
    scores = torch.einsum("bhwne,bijne->bnhwij", q, k).mul(0.5).flatten(-2).softmax(-1).unflatten(-1, (5, 6))
    want = torch.einsum("bnhwij,bijne->bhwne", scores, v)
    wanted = torch.autograd.grad(want.square().sum(), [q, k, v])
    for size in ((2**63 - 1, 2**63 - 1), (2**60 + 1, 7), (2**31 + 1, 2**31 + 1), (5, 7)):
        y = vk.neighborhood_attention(q, k, v, size, backend=backend)
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), [q, k, v]), wanted)
    alone = vk.neighborhood_attention(q, k, v, (3, 3), (2**63 - 1, 2**40), backend=backend)
    torch.testing.assert_close(alone, v)


def test_weights_of_another_map():
    q = r(1, 5, 6, 2, 4)
    weights = neighborhood_weights(q, q, (3, 3), keep=True, backend="torch")
    for count in (-1, 1):
        other = r(1, weights.shape[1] + count)
        with pytest.raises(ValueError, match="weights must have shape"):
            neighborhood_sum(other, q, q, q, (3, 3))


def test_results_of_compiled_ops():
    h = r(1, 3, 4, 2)
    taps = r(1, 2), [0, 0], r(1, 3, 4), r(2), h
    assert torch.ops.vssm.state_fusion(h, *taps, torch.float64).dtype == torch.float64
    with pytest.raises(TypeError, match="out_dtype must be"):
        torch.ops.vssm.state_fusion(h, *taps, torch.int32)
    wide = torch.ops.vssm.mlp(r(4), r(2**21, 4), None, r(4, 2**21), None)
    assert wide.shape == (4,)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype(dtype):
    x, bias = r(2, 5, 6, 8), r(2, 5, 5)
    q = x.unflatten(-1, (2, 4))

    def gradients():
        found = neighborhood_attention_grad(q, q, q, q, bias, [3, 3], [1, 1], 1.0)
        return [depthwise_grad(x, x, [(0, 0), (0, 1)], 1), *found]

    want = gradients()
    torch.set_default_dtype(dtype)
    try:
        got = gradients()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))
