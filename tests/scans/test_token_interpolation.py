"""TOKI against the numbers of the official code (tests/data/parity/mambamim.json), and by its definition."""

import numpy as np
import pytest
import torch

from tests import parity
from vssm.scans import interpolate_tokens

CASES = parity.load("mambamim")["ops"]["toki"]["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["seed"]))
def test_the_official_numbers(case):
    random, width, grid = np.random.RandomState(case["seed"]), case["C"], case["grid"]
    A = torch.from_numpy(0.5 * random.standard_normal((width, width))).float()
    x = torch.from_numpy(random.standard_normal((width, *grid))).float()
    visible = torch.tensor(case["mask"], dtype=torch.bool)[None]
    z = interpolate_tokens(x.flatten(1).T[None], visible, A)
    close = dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z[0].flatten(), torch.tensor(case["tokens_official_layout"]), **close)
    z = z[0].T.reshape(x.shape)
    torch.testing.assert_close(z.flatten(), torch.tensor(case["tokens"]), **close)
    filled = torch.where(visible.view(grid), x, z)
    torch.testing.assert_close(filled.flatten(), torch.tensor(case["densified"]), **close)


def test_a_batch_and_its_gradients_in_float64():
    """Gap by gap, with powers of A, as the definition has it."""
    torch.manual_seed(0)
    x, A = torch.randn(3, 11, 4, dtype=torch.float64), 0.5 * torch.randn(4, 4, dtype=torch.float64)
    visible = torch.tensor([[0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0], [1, *[0] * 9, 1], [1] * 11], dtype=torch.bool)
    x.requires_grad_(), A.requires_grad_()
    expected = []
    for tokens, seen in zip(x, visible, strict=True):
        anchors = sorted({0, 10, *seen.nonzero()[:, 0].tolist()})
        z = []
        for s, e in zip(anchors, anchors[1:], strict=False):
            a = torch.linspace(0, 1, e - s, dtype=torch.float64)
            v = (1 - a)[:, None] * tokens[s] + a[:, None] * tokens[e]
            powered = [torch.linalg.matrix_power(A, e - s - 1 - k) @ v[k] for k in range(e - s)]
            z += [sum(powered[: j + 1]) for j in range(e - s)]
        expected.append(torch.stack([*z, A @ tokens[10]]))
    weights = torch.randn(3, 11, 4, dtype=torch.float64)
    got = interpolate_tokens(x, visible, A)
    torch.testing.assert_close(got, torch.stack(expected))
    for mine, theirs in zip(
        torch.autograd.grad((got * weights).sum(), (x, A)),
        torch.autograd.grad((torch.stack(expected) * weights).sum(), (x, A)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_as_training_starts():
    """With A = 0 a gap is empty but for its last place, which has the next token."""
    x = torch.arange(1.0, 8).view(1, 7, 1)
    visible = torch.tensor([[1, 0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    assert interpolate_tokens(x, visible, torch.zeros(1, 1)).flatten().tolist() == [0, 0, 4, 0, 0, 7, 0]
