"""Spatial-Mamba against the numbers of the official model (tests/data/parity/spatialmamba.json)."""

import pytest
import timm
import torch

import vssm  # noqa: F401
from tests import parity
from vssm.models.spatialmamba import checkpoint_filter_fn

RECORDS = parity.load("spatialmamba")["variants"]
OUTPUT, GRADIENT, FLOAT64 = 1e-4, 1e-3, 1e-6


def load(record: dict, damped: dict | None = None, dtype: torch.dtype = torch.float32):
    model = timm.create_model(record["name"], device="meta").eval()
    weights = parity.state_dict(record, dtype=dtype, damped=damped)
    model.load_state_dict(checkpoint_filter_fn(weights, model), assign=True)
    return model


@pytest.mark.parametrize("key", RECORDS)
def test_parameters(key):
    model = timm.create_model(RECORDS[key]["name"], device="meta")
    assert sum(p.numel() for p in model.parameters()) == RECORDS[key]["params"]


@pytest.mark.parametrize("damped", [False, True], ids=["plain", "damped"])
@pytest.mark.parametrize("key", RECORDS)
def test_numbers(key, damped):
    """Outputs, features and gradients in float64, then in float32.

    One or two of 400 000 inputs of a ReLU are so near to zero that their sign, in float32, depends on the processor's
    order of summation, and each changes all gradients before it by 1e-3. So float32 takes float64's side there.
    """
    record, exact = (r["damped"] if damped else r for r in (RECORDS[key], RECORDS[key]["fp64"]))
    model = load(RECORDS[key], record.get("rule"), torch.float64)
    names = parity.gradient_names(RECORDS[key], checkpoint_filter_fn, model)
    for case in exact["cases"]:
        assert {names[key] for key in case["grad_l2"]} == dict(model.named_parameters()).keys()
        parity.check_forward(model, case, FLOAT64)
        parity.check_gradients(model, names, case, FLOAT64, FLOAT64)
    single = load(RECORDS[key], record.get("rule"))
    for case in record["cases"]:
        parity.check_forward(single, case, OUTPUT)
    (case,) = (case for case in record["cases"] if "grad_l2" in case)
    parity.keep_branches(single, parity.relu_branches(model, parity.image(case).double()))
    parity.check_gradients(single, names, case, OUTPUT, GRADIENT)


@pytest.mark.parametrize("key", RECORDS)
def test_merged_kernels(key):
    """Fused for deployment, the model gives the official numbers too."""
    model = timm.utils.reparameterize_model(load(RECORDS[key], RECORDS[key]["damped"]["rule"]))
    for case in RECORDS[key]["damped"]["cases"]:
        parity.check_forward(model, case, OUTPUT)
