"""The gradients of depth-wise convolutions by the compiled library, with every instruction set, against float64."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.kernels.test_cpu import by_threads, every_variant, needs_library
from vssm_kernels import cpu_maps
from vssm_kernels.depthwise import DepthwiseConv2d, depthwise_conv2d

FORMS = [
    dict(kernel=(7, 7), padding=(3, 3)),
    dict(kernel=(7, 7), padding=(3, 3), stride=2),
    dict(kernel=(5, 3), padding=(0, 2), stride=3),
    dict(kernel=(3, 3), padding=(5, 5), dilation=(5, 5)),
    dict(kernel=(3, 3), dilation=(1, 2)),
    dict(kernel=(2, 9), padding=(1, 8)),
]
QUICK = dict(kernel=(3, 3), padding=(1, 1), stride=2)  # PyTorch's gradients in float32


def make(form, channels=5, dtype=torch.float32, size=(9, 11), last=True):
    generator = torch.Generator().manual_seed(0)
    shape = (2, *size, channels) if last else (2, channels, *size)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(channels, 1, *form["kernel"], generator=generator).to(dtype)
    bias = torch.randn(channels, generator=generator).to(dtype)
    return (x.permute(0, 3, 1, 2) if last else x), weight, bias


def gradients(convolve, inputs, form, seed=1):
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    how = (form.get("stride", 1), form.get("padding", (0, 0)), form.get("dilation", (1, 1)))
    y = convolve(*inputs, *how)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    return y, *torch.autograd.grad(y, inputs, grad)


def plain(x, weight, bias, stride, padding, dilation):
    return F.conv2d(x, weight, bias, stride, padding, dilation, len(weight))


@pytest.fixture
def counted(monkeypatch):
    calls, compute = [], cpu_maps.depthwise_grad
    monkeypatch.setattr(cpu_maps, "depthwise_grad", lambda *args: calls.append(1) or compute(*args))
    return calls


@needs_library
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("channels", [1, 17, 40])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_gradients(form, channels, last, counted):
    inputs = make(form, channels, last=last)
    want = gradients(plain, [x.double() for x in inputs], form)
    for count, _ in enumerate(every_variant(), 1):
        for got, exact in zip(gradients(depthwise_conv2d, inputs, form), want, strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)
        assert len(counted) == count


def test_zeros_that_whole_kernels_fall_into(counted):
    form = dict(kernel=(2, 2), padding=(2, 0), stride=2)
    for got, want in zip(
        gradients(depthwise_conv2d, make(form), form), gradients(plain, make(form), form), strict=True
    ):
        torch.testing.assert_close(got, want)
    assert not counted


@needs_library
@pytest.mark.parametrize("form", [*FORMS[:2], QUICK], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, form, counted):
    inputs = make(form, 40, dtype, (30, 41))
    want = gradients(plain, [x.double() for x in inputs], form)
    for _ in every_variant():
        got = gradients(depthwise_conv2d, inputs, form)
        for mine, exact in zip(got, want, strict=True):
            assert mine.dtype == dtype
            # Rounded once, beside what the gradient of the result was rounded by.
            torch.testing.assert_close(mine.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0.5)
    assert counted


@needs_library
def test_the_sum_does_not_depend_on_threads():
    inputs, form = make(FORMS[0], 17), FORMS[0]
    assert torch.equal(*by_threads(lambda: gradients(depthwise_conv2d, inputs, form)[2]))


def test_what_else_looks_at_it(counted):
    """Second derivatives, transforms, tracers and compilers take PyTorch's convolution; so do kernels of 3 x 3."""
    x, weight, bias = make(FORMS[0])
    how = (1, [3, 3], [1, 1])
    leaf = weight.clone().requires_grad_()

    def twice(convolve):
        first = torch.autograd.grad(convolve(x, leaf, bias, *how).square().sum(), leaf, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    torch.testing.assert_close(twice(depthwise_conv2d), twice(plain), rtol=1e-4, atol=1e-2)
    counted.clear()  # the last of the gradients is not differentiated again
    by_transform = torch.func.grad(lambda w: depthwise_conv2d(x, w, bias, *how).square().sum())(weight)
    torch.testing.assert_close(by_transform, torch.func.grad(lambda w: plain(x, w, bias, *how).square().sum())(weight))
    compiled = torch.compile(lambda w: depthwise_conv2d(x, w, bias, *how).sum(), fullgraph=True, backend="eager")
    compiled(leaf).backward()
    for form in (dict(kernel=(3, 3)), QUICK):
        gradients(depthwise_conv2d, make(form), form)
    with torch.no_grad():
        depthwise_conv2d(x, leaf, bias, *how)
    assert not counted


@needs_library
def test_autocast_lowers_it(counted):
    conv, x = DepthwiseConv2d(16, 5, padding=2), torch.randn(1, 16, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert counted and conv.weight.grad.dtype == conv.bias.grad.dtype == torch.float32
    conv.weight.requires_grad_(False)
    conv(x).sum().backward()  # with nothing to learn
    assert len(counted) == 1


def test_the_layer_is_a_convolution():
    torch.manual_seed(0)
    conv = DepthwiseConv2d(6, 7, stride=2, padding=3)
    torch.manual_seed(0)
    usual = nn.Conv2d(6, 6, 7, stride=2, padding=3, groups=6)
    assert all(torch.equal(a, b) for a, b in zip(conv.parameters(), usual.parameters(), strict=True))
    x = torch.randn(2, 6, 9, 10)
    for form in (conv, torch.jit.script(conv), torch.fx.symbolic_trace(conv)):
        torch.testing.assert_close(form(x), usual(x))


@needs_library
def test_without_a_bias(counted):
    conv = DepthwiseConv2d(17, 5, stride=2, padding=2, bias=False)
    exact = torch.nn.Conv2d(17, 17, 5, 2, 2, groups=17, bias=False, dtype=torch.float64)
    exact.load_state_dict(conv.state_dict())
    x = torch.randn(2, 17, 9, 8, requires_grad=True)
    double = x.detach().double().requires_grad_()
    conv(x).square().sum().backward()
    exact(double).square().sum().backward()
    assert counted and conv.bias is None
    torch.testing.assert_close(conv.weight.grad.double(), exact.weight.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), double.grad, rtol=1e-5, atol=1e-4)
