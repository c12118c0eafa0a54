"""The declarations of families, and how they are found."""

import pytest
import timm
import torch

import vssm
from vssm.models import DenseMaps, Family, families, family_of, register_family
from vssm_kernels import encode_routes


@pytest.fixture(scope="module", params=families(), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def models(family):
    """All of a family, without values."""
    return {name: timm.create_model(name, device="meta") for name in family.variants}


def test_every_model_is_of_one_family():
    assert sorted(name for family in families() for name in family.variants) == vssm.list_models()
    assert len({family.name for family in families()}) == len(families())


def test_a_family_is_found(family, models):
    assert family.variants and family_of(family.name) is family
    for name, model in models.items():
        assert isinstance(model, family.models)
        assert family_of(name) is family_of(f"{name}.tag") is family_of(model) is family_of(type(model)) is family


def test_declarations(family, models):
    for pattern in family.scan_patterns.values():
        assert encode_routes(pattern)
    assert isinstance(family.dense_maps, DenseMaps)
    # As they are called in a detector.
    names = [f"backbone.model.model.{name}" for model in models.values() for name, _ in model.named_parameters()]
    for part in family.dense_decay:
        assert any(part in name for name in names)


def test_others():
    assert family_of("resnet18") is family_of("no_such_model") is family_of(torch.nn.Linear(1, 1)) is None
    with pytest.raises(ValueError, match="'vmamba'"):
        register_family(Family("vmamba", "VMamba", (torch.nn.Linear,)))
