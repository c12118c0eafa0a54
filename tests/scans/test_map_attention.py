"""The parts of SegMAN's and A2Mamba's mixers that their vectors do not reach, beside the formula."""

import cmath

import pytest
import torch

from vssm.scans import AttentionFusionSS2D, LocalAttentionSS2D
from vssm.scans.attention_fusion import largest_dilation
from vssm.scans.map_attention import resize_pairs, rotary_angles, rotate

MIXERS = {
    "windows and scan": lambda: LocalAttentionSS2D(16, 2, 5),
    "windows and all pixels": lambda: LocalAttentionSS2D(16, 2, 3, pixels=4),
    "fused states": lambda: AttentionFusionSS2D(16, 4, 5),
    "halves and all pixels": lambda: AttentionFusionSS2D(16, 4, 3, pixels=4),
}


def test_a_pair_turns_like_a_complex_number():
    angles = rotary_angles(8).double()
    assert angles.tolist() == pytest.approx([1.0, 1.0, 1e-4, 1e-4])
    x = torch.randn(1, 3, 5, 2, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs, turned = (torch.view_as_complex(t.unflatten(-1, (4, 2)).contiguous()) for t in (x, rotate(x, angles)))
    for row, column in ((0, 0), (2, 1), (1, 4)):
        steps = (row, row, column, column)
        turn = torch.tensor([cmath.exp(1j * n * a) for n, a in zip(steps, (1.0, 1e-4, 1.0, 1e-4), strict=True)])
        assert torch.allclose(turned[:, row, column], pairs[:, row, column] * turn)


def test_the_dilation_follows_from_the_size():
    assert [largest_dilation(n, n, k) for n, k in ((56, 11), (28, 9), (14, 7), (7, 7))] == [
        [5, 5],
        [3, 3],
        [2, 2],
        [1, 1],
    ]
    assert largest_dilation(300, 30, 5) == [5, 5] and largest_dilation(10, 4, 5) == [2, 1]


def test_a_table_of_its_own_size_stays():
    table = torch.randn(2, 9, 9)
    assert resize_pairs(table, 9) is table and resize_pairs(table, 12).shape == (2, 12, 12)


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("keep", [True, False])
def test_any_size_and_no_maps(kind, keep, monkeypatch):
    """Smaller than the window, and empty batches; with the weights kept or computed anew the result is the same."""
    monkeypatch.setattr("vssm.scans.attention_fusion.worth_keeping", lambda *_: keep)
    torch.manual_seed(0)
    mixer = MIXERS[kind]().double().eval()
    for size in ((1, 1), (1, 7), (4, 3), (11, 6)):
        x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
        y = mixer(x)
        assert y.shape == x.shape and y.isfinite().all()
        alone = mixer(x[1:])
        assert torch.allclose(alone, y[1:], rtol=1e-10, atol=1e-12)
        y.square().sum().backward()
        assert x.grad.isfinite().all()
        assert mixer(x[:0]).shape == (0, *size, 16)


def test_kept_weights_change_nothing(monkeypatch):
    torch.manual_seed(0)
    mixer, x = AttentionFusionSS2D(16, 4, 5).double(), torch.randn(2, 11, 13, 16, dtype=torch.float64)
    results = []
    for keep in (True, False):
        monkeypatch.setattr("vssm.scans.attention_fusion.worth_keeping", lambda *_, keep=keep: keep)
        y = mixer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))])
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(*results, strict=True))


def test_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="the width 20 must be a multiple of 4 for each of the 2 heads"):
        LocalAttentionSS2D(20, 2, 3)
    with pytest.raises(ValueError, match="must be even, got 3"):
        AttentionFusionSS2D(24, 3, 3)


@pytest.mark.parametrize("kind", MIXERS)
def test_several_sets_of_weights(kind):
    """An ensemble by `torch.vmap`, as single mixers give it."""
    torch.manual_seed(0)
    mixers, x = [MIXERS[kind]().eval() for _ in range(2)], torch.randn(1, 4, 4, 16)
    weights, buffers = torch.func.stack_module_state(mixers)

    def run(weights, buffers):
        return torch.func.functional_call(mixers[0], (weights, buffers), (x,))

    y = torch.func.vmap(run)(weights, buffers)
    torch.testing.assert_close(y, torch.stack([mixer(x) for mixer in mixers]), rtol=1e-4, atol=1e-5)
