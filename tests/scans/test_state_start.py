"""How A starts, for every mixer and family that has one."""

import inspect
import math

import pytest
import timm
import torch

import vssm.scans
from vssm.models import families
from vssm.scans import SS2D, SSD2D, SpatialFusionSS2D, init_state_matrix

# Families whose mixers have a diagonal A, and the default of their option: what they started with before it was there.
DEFAULTS = {
    "vmamba": "real",
    "vim": "real",
    "plainmamba": "real",
    "groupmamba": "real",
    "msvmamba": "real",
    "efficientvmamba": "real",
    "spatialmamba": "real",
    "segman": -1.0,
    "a2mamba": -1.0,
    "mambayolo": -1.0,
    "vssd": "uniform",
}
# A cancels in the softmax of EfficientViM's mixer: no start of it can matter.
WITHOUT = {"efficientvim"}


def families_with_a():
    return [family for family in families() if family.name not in WITHOUT]


def logs_of(model):
    return {n: p for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] in ("A_log", "A_logs")}


@pytest.mark.parametrize("family", families_with_a(), ids=lambda family: family.name)
def test_a_family_starts_as_before_unless_told_otherwise(family):
    """The default is the old start, and the option changes nothing but A."""
    name = f"{family.name}_pico"
    default = inspect.signature(family.models[0]).parameters["A_init"].default
    default = "real" if default is None else default
    assert default == DEFAULTS.get(family.name, "real")
    torch.manual_seed(0)
    model = timm.create_model(name)
    torch.manual_seed(0)
    other = timm.create_model(name, A_init=-0.25)
    logs = logs_of(model)
    assert logs
    for log in logs.values():
        if default == "real":
            torch.testing.assert_close(log.exp(), torch.arange(1.0, log.shape[-1] + 1).expand_as(log))
        elif default == "uniform":
            assert log.exp().min() >= 1 and log.exp().max() <= 16
        else:
            assert not log.any()
    weights, others = model.state_dict(), other.state_dict()
    for key, value in weights.items():
        if key in logs:
            assert (others[key] == math.log(0.25)).all()
        elif default != "uniform":  # which draws numbers
            assert torch.equal(value, others[key]), key


@pytest.mark.parametrize(
    ("A_init", "expected"), [("real", [1, 2, 3]), ("constant", [0.5] * 3), (-2.0, [2] * 3), (-1, [1] * 3)]
)
def test_starts(A_init, expected):
    logs = torch.empty(4, 3)
    init_state_matrix(logs, A_init)
    torch.testing.assert_close(logs.exp(), torch.tensor(expected, dtype=torch.float32).expand(4, 3))


def test_random_starts():
    torch.manual_seed(0)
    logs = torch.empty(1000, 4)
    init_state_matrix(logs, "random")
    assert abs(logs.mean()) < 0.1 and 0.9 < logs.std() < 1.1
    init_state_matrix(logs, "uniform")
    assert 1 <= logs.exp().min() < 2 and 15 < logs.exp().max() <= 16


def test_a_mixer_hands_it_on():
    assert (SS2D(4, d_state=2, A_init="constant").A_logs.exp() == 0.5).all()
    assert not SpatialFusionSS2D(4, A_init="real").A_logs.any()  # one state
    assert not SSD2D(16, d_state=2).A_logs.any()  # one A a head
    mixers = [getattr(vssm.scans, n) for n in vssm.scans.__all__]
    scans = [m for m in mixers if isinstance(m, type) and issubclass(m, vssm.scans.CrossScan | SS2D)]
    for scan in scans:
        assert "A_init" in {n for base in scan.__mro__ for n in inspect.signature(base.__init__).parameters}


@pytest.mark.parametrize("A_init", ["lin", "inv", "legs"])
def test_complex_starts_are_refused(A_init):
    with pytest.raises(ValueError, match=f"'{A_init}' is complex.*S4D"):
        SS2D(4, A_init=A_init)


@pytest.mark.parametrize("A_init", ["s4d", 0.0, 1.0, -math.inf, math.nan])
def test_what_does_not_decay_is_refused(A_init):
    with pytest.raises(ValueError, match="A_init must be real, constant, random, uniform or a negative number, got"):
        SS2D(4, A_init=A_init)
