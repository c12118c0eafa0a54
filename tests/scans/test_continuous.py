"""The snakes of PlainMamba: orders and moves as the official code has them."""

import torch

from tests import parity
from vssm.scans import CONTINUOUS, ContinuousSS2D, route_order
from vssm.scans.continuous import snake_tables


def test_orders_and_moves():
    for size, wanted in parity.load("plainmamba")["variants"]["_unit_direction"]["maps"].items():
        height, width = map(int, size.split("x"))
        steps, moves = snake_tables(height, width, torch.device("cpu"))
        steps = steps.view(-1, 4)
        for k, (order, direction) in enumerate(zip(wanted["order"], wanted["direction"], strict=True)):
            assert route_order(CONTINUOUS[k], height, width).tolist() == order
            assert steps[order, k].tolist() == list(range(height * width))
            assert moves[order, k].tolist() == direction


def test_what_is_read_where():
    """As released, step sizes, B and C lie where the route is at step t; as in the paper, at their own pixels."""
    torch.manual_seed(0)
    released, paper = (ContinuousSS2D(8, d_state=2, align_projections=align) for align in (False, True))
    paper.load_state_dict(released.state_dict())
    u = torch.randn(1, 3, 4, 16)
    projected = released.x_proj(u).flatten(1, 2)
    for mixer in (released, paper):
        dt, _, C = mixer.project(u)
        for k, route in enumerate(CONTINUOUS):
            order = route_order(route, 3, 4)
            wanted = projected if mixer is released else projected[:, order]
            torch.testing.assert_close(dt.flatten(1, 2)[:, order, k], wanted[..., : mixer.dt_rank])
            torch.testing.assert_close(C.flatten(1, 2)[:, order, k], wanted[..., -2:])
