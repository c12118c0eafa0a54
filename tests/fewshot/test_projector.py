"""The projector against the official neck, and what it promises beside."""

import pytest
import torch

from tests import parity
from tests.fewshot.conftest import official_gate
from vssm._errors import UserError
from vssm.fewshot import DualProjector, convert_projector
from vssm.scans.routes import Route, route_order

RECORDS = parity.load("mamba_fscil")["variants"]
ROUTES = (Route(), Route(reverse=True), Route(transpose=True), Route(transpose=True, reverse=True))


def along_routes(part: torch.Tensor, side: int) -> torch.Tensor:
    """(B, L, K, R) in raster order to (B, K, R, L) in the order of each route, as the official code has it."""
    routes = ROUTES[: part.shape[2]]
    orders = [torch.as_tensor(route_order(route, side, side)).flatten() for route in routes]
    return torch.stack([part[:, order, k].transpose(1, 2) for k, order in enumerate(orders)], dim=1)


@pytest.mark.parametrize("key, i", parity.cases(RECORDS))
def test_projector_gives_what_the_official_neck_gives(official, key, i):
    record, projector = RECORDS[key], official(key)
    case = record["cases"][i]
    x = parity.image(case).requires_grad_()
    got = projector(x)
    parity.check_summary(got.features, case["output"], 1e-5, "output")
    recorded = case["outputs"]
    found = {"main": official_gate(got.gate, record)}
    if projector.new is None:
        found["residual"] = projector.residual_proj(x.mean((2, 3)))
    else:
        found["residual"] = got.residual
    for suffix, selection in (("", got.selection), ("_new", got.new_selection)):
        if selection is not None:
            for name, part in zip(("dts", "Bs", "Cs"), selection, strict=True):
                found[name + suffix] = along_routes(part, projector.size)
    assert set(found) == set(recorded)
    for name, value in found.items():
        parity.check_summary(value, recorded[name], 1e-5, name)
    if "grad_l2" in case:
        parity.loss(got.features).backward()
        if "grad_input" in case and x.grad is not None:
            parity.check_summary(x.grad, case["grad_input"], 1e-4, "input gradient", kind="gradients")
        marks = parity.gradient_names(record, lambda weights, _: convert_projector(weights), projector)
        parameters = dict(projector.named_parameters())
        assert {key for key in marks if parameters[marks[key]].grad is None} == set(record["without_gradient"])
        for name, norm in case["grad_l2"].items():
            grad = parameters[marks[name]].grad
            assert grad is not None and abs(grad.norm().item() - norm) <= 1e-4 * norm + 1e-7, name


@pytest.mark.parametrize("mixer", ["sequence", "map"])
def test_second_branch_starts_as_nothing_and_keeps_the_first_one_from_learning(mixer):
    torch.manual_seed(0)
    projector = DualProjector(6, 8, 2, mixer, d_state=3, dt_rank=2)
    x = torch.randn(2, 6, 2, 2)
    before = projector(x).features
    projector.add_branch(layers=3)
    after = projector(x)
    assert torch.equal(after.features, before) and torch.equal(after.residual, before)
    after.features.sum().backward()
    assert all(p.grad is None for p in projector.base.parameters())
    assert projector.new.mixer.in_proj.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="second branch already"):
        projector.add_branch()


def test_a_map_of_another_size_is_pooled():
    torch.manual_seed(0)
    projector = DualProjector(4, 4, 2, d_state=3, dt_rank=2, residual_proj=False)
    x = torch.randn(2, 4, 6, 4)
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, 2)
    assert torch.equal(projector(x).features, projector(pooled).features)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(mixer="rows"), "sequence, map, not 'rows'"),
        (dict(residual_proj=False), "residual_proj=True"),
        (dict(layers=1), "2 point-wise layers or more, not 1"),
        (dict(size=0), "size is 1 or more, not 0"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(UserError, match=words):
        DualProjector(**{**dict(in_channels=4, out_channels=8, size=2), **options})
