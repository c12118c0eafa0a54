"""VSSD against the numbers of the official model (tests/data/parity/vssd.json).

The gradients are compared in float64 alone: a LayerNorm right after the sum over all tokens makes those of A_log and
dt_bias ill-conditioned, and float32 gets some of them wrong by a tenth, the official model's as well as ours.
"""

import pytest
import timm
import torch

import vssm  # noqa: F401
from tests import parity
from vssm.models.vssd import checkpoint_filter_fn

RECORDS = parity.load("vssd")["variants"]
OUTPUT, FLOAT64 = 3e-4, 1e-6


def load(record: dict, damped: dict | None = None, dtype: torch.dtype = torch.float32):
    model = timm.create_model(record["name"], device="meta").eval()
    weights = parity.state_dict(record, dtype=dtype, damped=damped)
    model.load_state_dict(checkpoint_filter_fn(weights, model), assign=True)
    return model


@pytest.mark.parametrize("key", RECORDS)
def test_parameters(key):
    model = timm.create_model(RECORDS[key]["name"], device="meta")
    assert sum(p.numel() for p in model.parameters()) == RECORDS[key]["params"]


@pytest.mark.parametrize("key", RECORDS)
def test_forward(key):
    record = RECORDS[key]
    model = load(record)
    for case in [*record["cases"], *record["backbone_cases"]]:
        parity.check_forward(model, case, OUTPUT)
    damped = load(record, record["damped"]["rule"])
    for case in record["damped"]["cases"]:
        parity.check_forward(damped, case, OUTPUT)


@pytest.mark.parametrize("damped", [False, True], ids=["plain", "damped"])
@pytest.mark.parametrize("key", RECORDS)
def test_float64(key, damped):
    record = RECORDS[key]["fp64"]["damped"] if damped else RECORDS[key]["fp64"]
    model = load(RECORDS[key], record.get("rule"), torch.float64)
    names = parity.gradient_names(RECORDS[key], checkpoint_filter_fn, model)
    for case in record["cases"]:
        assert {names[key] for key in case["grad_l2"]} == dict(model.named_parameters()).keys()
        parity.check_forward(model, case, FLOAT64)
        parity.check_gradients(model, names, case, FLOAT64, FLOAT64)
