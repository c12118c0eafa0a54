"""VMamba against the numbers of the official model (tests/data/parity/vmamba*.json)."""

import pytest
import timm

import vssm  # noqa: F401
from tests import parity
from vssm.models.vmamba import checkpoint_filter_fn

NAMED = parity.load("vmamba")["variants"]
MODES = parity.load("vmamba_modes")["variants"]
# What the official mode strings mean, in our arguments.
MODE_ARGS = {
    "tiny_s1l8_unidi(v051d_noz)": dict(scan="unidirectional"),
    "tiny_s1l8_bidi(v052d_noz)": dict(scan="bidirectional"),
    "tiny_s1l8_withz(v05)": dict(gate=True),
    "tiny_2222_s1_N16_nodw_z(v05)": dict(depths=(2, 2, 2, 2), d_state=16, d_conv=0, gate=True),
}
OUTPUT, GRADIENT = 1e-5, 1e-4


def build(key: str):
    if key in NAMED:
        return timm.create_model(NAMED[key]["name"]).eval(), NAMED[key]
    return timm.create_model("vmamba_tiny_s1l8", **MODE_ARGS[key]).eval(), MODES[key]


def test_every_mode_is_covered():
    assert set(MODES) == set(MODE_ARGS)


@pytest.mark.parametrize("key", [*NAMED, *MODES])
def test_parameters(key):
    model, record = build(key)
    assert sum(p.numel() for p in model.parameters()) == record["params"]


@pytest.mark.parametrize(("key", "index"), parity.cases({**NAMED, **MODES}, with_grad=False))
def test_forward(key, index):
    model, record = build(key)
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(record), model))
    parity.check_forward(model, record["cases"][index], OUTPUT)


@pytest.mark.parametrize(("key", "index"), parity.cases({**NAMED, **MODES}, with_grad=True))
def test_gradients(key, index):
    model, record = build(key)
    case = record["cases"][index]
    names = parity.gradient_names(record, checkpoint_filter_fn, model)
    assert set(case["grad_l2"]) == set(names)
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(record), model))
    parity.check_gradients(model, names, case, OUTPUT, GRADIENT)
