"""Scans over the tokens that pruning has left, against records and against scans of the whole, spelled out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests import parity
from vssm.scans import (
    CONTINUOUS,
    SS1D,
    ContinuousSS2D,
    Route,
    encode_routes,
    route_order,
    scan_over_gaps,
    select_tokens,
    token_importance,
    tokens_of_map,
    tokens_on_map,
)

OPS = parity.load("token_pruning")["ops"]


def test_importance_and_selection():
    y = torch.from_numpy(np.random.RandomState(21).standard_normal((2, 6, 13))).mT
    score = token_importance(y)
    torch.testing.assert_close(score, torch.tensor(OPS["importance"]["score"], dtype=torch.float64), rtol=1e-6, atol=0)
    patches = torch.cat([score[:, :6], score[:, 7:]], 1)
    chosen = select_tokens(patches, 10)
    assert (chosen + (chosen >= 6)).tolist() == OPS["importance"]["keep"]


def test_states_over_gaps():
    """Of the tokens 0, 2, 3, 7 and 8 of nine: carried, and decaying."""
    draw = np.random.RandomState(22).standard_normal
    u, dt, logs, B, C, D = map(torch.from_numpy, map(draw, [(1, 3, 9), (1, 3, 9), (3, 2), (1, 2, 9), (1, 2, 9), (3,)]))
    kept, A = torch.tensor([0, 2, 3, 7, 8]), -logs.exp().unsqueeze(0)
    delta = F.softplus(dt).mT[:, None, :, None]  # (1, 1, 9, 1, 3), as B and C
    B, C = B.mT[:, None, :, None], C.mT[:, None, :, None]
    until = delta.cumsum(2)[:, :, kept]
    waited = until.diff(dim=2, prepend=until[:, :, :1]) - delta[:, :, kept]
    waited[:, :, 0] = 0
    for name, pauses in (("carry", torch.zeros_like(waited)), ("decay", waited)):
        y = scan_over_gaps(
            *(u.mT[:, None, kept], delta[:, :, kept], pauses, A, B[:, :, kept], C[:, :, kept], D[None]),
            encode_routes((Route(),)),
        )
        expected = torch.tensor(OPS["alignment"][name], dtype=torch.float64)
        torch.testing.assert_close(y[0, 0].mT.flatten(), expected, rtol=1e-6, atol=1e-7)


def snakes(mixer, x, places, size, decay):
    """The mixer spelled out: the state of every route goes over the whole map, and stays or decays at pruned pixels."""
    height, width = size
    inner, z = mixer.in_proj(x).chunk(2, -1)
    whole = torch.zeros(1, height * width, inner.shape[-1], dtype=x.dtype)
    whole[0, places] = inner[0]
    u = mixer.convolve(whole.view(1, height, width, -1)).flatten(1, 2)[0]
    dt, B, C = mixer.x_proj(u[places]).split([mixer.dt_rank, mixer.d_state, mixer.d_state], -1)
    A, D, bias, weight = mixer.state_space()
    y = torch.zeros_like(u)
    for k, route in enumerate(CONTINUOUS):
        order, t, h = route_order(route, height, width).tolist(), 0, torch.zeros_like(A[k])
        for i, place in enumerate(order):
            if place not in places:
                h = torch.exp(F.softplus(bias[k])[:, None] * A[k]) * h if decay else h
                continue
            row, column = divmod(place, width)
            before = divmod(order[i - 1], width)
            moves = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}
            moved = moves[row - before[0], column - before[1]] if i else 0
            at = places.index(place) if mixer.align_projections else t
            delta = F.softplus(weight[k] @ dt[at] + bias[k])[:, None]
            h = torch.exp(delta * A[k]) * h + delta * (B[at] + mixer.direction_Bs[moved]) * u[place][:, None]
            y[place] += h @ C[at] + D[k] * u[place]
            t += 1
    return mixer.out_proj(y[None, places] * F.silu(z))


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("decay", [False, True])
@torch.no_grad()
def test_snakes_keep_the_order_of_the_whole_map(align, decay):
    torch.manual_seed(0)
    mixer = ContinuousSS2D(6, d_state=3, align_projections=align).double()
    for parameter in mixer.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    size, kept = (4, 5), [[0, 1, 4, 6, 7, 12, 13, 17], [2, 3, 5, 9, 10, 14, 18, 19]]
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    y = mixer(x, mixer.keep_tokens(torch.tensor(kept), *size, decay))
    for i, places in enumerate(kept):
        torch.testing.assert_close(y[i : i + 1], snakes(mixer, x[i : i + 1], places, size, decay))


@torch.no_grad()
def test_all_tokens_are_the_whole_map():
    torch.manual_seed(0)
    mixer = ContinuousSS2D(6, d_state=3).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for decay in (False, True):
        kept = mixer.keep_tokens(torch.arange(12).expand(2, -1), 3, 4, decay)
        assert torch.equal(tokens_on_map(tokens_of_map(x, kept), kept), x)
        torch.testing.assert_close(mixer(x.flatten(1, 2), kept), mixer(x).flatten(1, 2))


@torch.no_grad()
def test_sequence_decays_as_over_zeros():
    """In both directions; what is left out has an input of zero and a step of softplus(bias) in the whole sequence."""
    torch.manual_seed(0)
    mixer = SS1D(6, d_state=3, bidirectional=True).double()
    places, shape = torch.tensor([[0, 3, 4, 8]]), (1, 1, 9, 2)
    parts = u, dt, B, C = [torch.zeros(*shape, n, dtype=torch.float64) for n in (12, mixer.dt_rank, 3, 3)]
    for part in parts:
        part[:, :, places[0]] = torch.randn_like(part[:, :, places[0]])
    whole = mixer.scan(u, dt, B, C, mixer.route_code)
    gaps = mixer.keep_tokens(places, 1, 9, decay=True).gaps
    short = mixer.scan_kept(*(part[:, :, places[0]] for part in parts), mixer.route_code, gaps)
    torch.testing.assert_close(short, whole[:, :, places[0]])
