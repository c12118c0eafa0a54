"""EfficientVMamba against the numbers of the official model (tests/data/parity/efficientvmamba.json)."""

import copy

import pytest
import timm
import torch

import vssm  # noqa: F401
from tests import parity
from vssm.models.efficientvmamba import checkpoint_filter_fn

RECORDS = parity.load("efficientvmamba")["variants"]
# The small net of the vectors, by our arguments.
UNIT = dict(embed_dim=16, depths=(1, 2, 1, 1), num_classes=10)
OUTPUT, GRADIENT = 5e-6, 2e-5


def build(key: str):
    if key == "_unit":
        return timm.create_model("efficientvmamba_pico", **UNIT).eval(), RECORDS[key]
    return timm.create_model(RECORDS[key]["name"]).eval(), RECORDS[key]


@pytest.mark.parametrize("key", RECORDS)
def test_parameters(key):
    model, record = build(key)
    assert sum(p.numel() for p in model.parameters()) == record["params"]


@pytest.mark.parametrize(("key", "index"), parity.cases(RECORDS))
def test_forward(key, index):
    model, record = build(key)
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(record), model))
    parity.check_forward(model, record["cases"][index], OUTPUT)


@pytest.mark.parametrize(("key", "index"), parity.cases(RECORDS, with_grad=True))
def test_gradients(key, index):
    model, record = build(key)
    case = record["cases"][index]
    names = parity.gradient_names(record, checkpoint_filter_fn, model)
    assert set(case["grad_l2"]) <= set(names)
    assert {names[key] for key in case["grad_l2"]} == {name for name, _ in model.named_parameters()}
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(record), model))
    # One input of a ReLU (tiny, 2x3x96x128) is so near to zero that its sign depends on the number of threads.
    exact = copy.deepcopy(model).double()
    exact.load_state_dict(checkpoint_filter_fn(parity.state_dict(record, dtype=torch.float64), exact))
    parity.keep_branches(model, parity.relu_branches(exact, parity.image(case).double()))
    parity.check_gradients(model, names, case, OUTPUT, GRADIENT)
