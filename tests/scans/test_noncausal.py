"""The non-causal SSD against its definition, written out token by token and head by head."""

import pytest
import torch
import torch.nn.functional as F

from vssm.scans import NonCausalSSD2D
from vssm.scans.noncausal import noncausal_ssd

SIZES = [(5, 4), (3, 7), (1, 6), (1, 1)]


def randomised(**options) -> NonCausalSSD2D:
    """Every parameter random, in float64: the usual start (D = 1) would hide a mix-up."""
    g = torch.Generator().manual_seed(0)
    mixer = NonCausalSSD2D(12, **{"num_heads": 3, "d_state": 5, **options}).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return mixer


def image(height: int, width: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, height, width, 12, generator=g, dtype=torch.float64, requires_grad=True)


def definition(mixer: NonCausalSSD2D, image: torch.Tensor) -> torch.Tensor:
    """One image (H, W, C): a state for each head, a loop over the tokens to fill it and one to read it."""
    inner, states, heads = mixer.d_inner, mixer.d_state, mixer.num_heads
    per_head = inner // heads
    height, width, _ = image.shape
    projected = image @ mixer.in_proj.weight.T
    z, x, b, c, dt = projected.split([inner, inner, states, states, heads], dim=-1)
    joined = torch.cat([x, b, c], dim=-1).permute(2, 0, 1)[None]
    joined = F.silu(F.conv2d(joined, mixer.conv.weight, mixer.conv.bias, padding="same", groups=joined.shape[1]))[0]
    tokens = joined.flatten(1).T
    steps = (1 + (dt + mixer.dt_bias).exp()).log().reshape(-1, heads)
    outputs = []
    for m in range(heads):
        own = slice(m * per_head, (m + 1) * per_head)
        state = torch.zeros(states, per_head, dtype=image.dtype)
        for t, token in enumerate(tokens):
            weight = steps[t, m] * mixer.A_log[m].exp()
            state = state + torch.outer(token[inner : inner + states], weight * token[own])
        outputs.append(torch.stack([token[inner + states :] @ state + mixer.D[m] * token[own] for token in tokens]))
    y = torch.cat(outputs, dim=-1).reshape(height, width, inner)
    y = F.layer_norm(y, (inner,), mixer.out_norm.weight, mixer.out_norm.bias, 1e-5)
    return (y * z) @ mixer.out_proj.weight.T


@pytest.mark.parametrize("options", [{}, dict(num_heads=1, ssm_ratio=1.0), dict(num_heads=4, d_state=1, d_conv=5)])
@pytest.mark.parametrize("size", SIZES)
def test_output_and_gradients(size, options):
    mixer, x = randomised(**options), image(*size)
    y = mixer(x)
    want = torch.stack([definition(mixer, one) for one in x])
    assert torch.allclose(y, want, rtol=1e-9, atol=1e-10)
    inputs = [x, *mixer.parameters()]
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for got, expected in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(want, inputs, g), strict=True):
        assert torch.allclose(got, expected, rtol=1e-7, atol=1e-9)


def test_the_map_has_no_order():
    """Apart from the convolution, every token sees all tokens: permuting them permutes the result."""
    g = torch.Generator().manual_seed(0)
    v, weight, k, q = (torch.randn(1, 6, n, generator=g, dtype=torch.float64) for n in (8, 2, 3, 3))
    skip = torch.randn(2, generator=g, dtype=torch.float64)
    order = torch.randperm(6, generator=g)
    y = noncausal_ssd(v, weight, k, q, skip)
    shuffled = noncausal_ssd(v[:, order], weight[:, order], k[:, order], q[:, order], skip)
    assert torch.allclose(shuffled, y[:, order], rtol=1e-12)


def products(run) -> list[torch.dtype]:
    """The dtypes in which the matrix products of `run` are made, of those that no weight takes part in."""
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bmm.default:
                seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Spy():
        assert run().isfinite().all()
    return seen


@pytest.mark.parametrize(
    ("dtype", "computed"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)], ids=["fp16", "bf16"]
)
def test_products_stay_out_of_float16(dtype, computed):
    """The sum over 2500 tokens leaves the range of float16, under autocast and in a model that was cast whole."""
    torch.manual_seed(0)
    mixer = NonCausalSSD2D(8, num_heads=2, d_state=4)
    with torch.no_grad():
        mixer.conv.bias.fill_(8)
        mixer.A_log.fill_(2)
    x = torch.randn(1, 50, 50, 8)
    with torch.no_grad():
        v = torch.full((1, 2500, 16), 8.0)
        k = v[..., :4]
        assert noncausal_ssd(v, torch.ones(1, 2500, 2), k, k, mixer.D).amax() > torch.finfo(torch.float16).max
        exact = mixer.double()(x.double()).float()
        mixer.float()

    def under_autocast():
        with torch.autocast("cpu", dtype=dtype):
            y = mixer(x)
        assert y.dtype == dtype
        return y

    def cast_whole():
        return mixer.to(dtype)(x.to(dtype))

    assert products(under_autocast) == [computed] * 2
    assert products(cast_whole) == [computed] * 2
    y = mixer(x.to(dtype)).float()
    assert (y - exact).norm() / exact.norm() < (0.02 if dtype == torch.float16 else 0.2)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="inner width 24 is not divisible by 5 heads"):
        NonCausalSSD2D(12, num_heads=5)


def test_initial_parameters():
    torch.manual_seed(0)
    mixer = NonCausalSSD2D(64, num_heads=16)
    step, scale = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert step.min() > 0.9e-3 and step.max() < 0.11 and (mixer.D == 1).all()
    assert scale.min() >= 1 and scale.max() <= 16 and scale.std() > 1
    assert 0.015 < mixer.in_proj.weight.std() < 0.025
