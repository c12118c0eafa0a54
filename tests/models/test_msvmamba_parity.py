"""MSVMamba against the numbers of the official models (tests/data/parity/msvmamba.json)."""

import pytest
import timm

import vssm  # noqa: F401
from tests import parity
from vssm.models.msvmamba import checkpoint_filter_fn

VARIANTS = parity.load("msvmamba")["variants"]
# Small nets of each generation: the model they are of.
UNITS = {"_unit_v1": "msvmamba_nano", "_unit_v3_noz": "msvmambav3_tiny", "_unit_v3_z": "msvmambav3_base"}
OUTPUT, GRADIENT = 1e-5, 1e-4


def build(key: str):
    record = VARIANTS[key]
    if key in UNITS:
        return timm.create_model(UNITS[key], embed_dim=16, depths=(1, 2, 1, 1), num_classes=10).eval(), record
    return timm.create_model(record["name"]).eval(), record


@pytest.mark.parametrize("key", VARIANTS)
def test_parameters(key):
    model, record = build(key)
    assert sum(p.numel() for p in model.parameters()) == record["params"]


@pytest.mark.parametrize(("key", "index"), parity.cases(VARIANTS))
def test_forward(key, index):
    model, record = build(key)
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(record), model))
    parity.check_forward(model, record["cases"][index], OUTPUT)


@pytest.mark.parametrize(("key", "index"), parity.cases(VARIANTS, with_grad=True))
def test_gradients(key, index):
    model, record = build(key)
    case = record["cases"][index]
    names = parity.gradient_names(record, checkpoint_filter_fn, model)
    assert set(case["grad_l2"]) == set(names)
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(record), model))
    parity.check_gradients(model, names, case, OUTPUT, GRADIENT)
