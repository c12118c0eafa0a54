"""Spatial-Mamba beyond its parity vectors."""

from vssm.models.spatialmamba import FAMILY

from .tester import FamilyTester, Official


class TestSpatialMamba(FamilyTester):
    family = FAMILY
    checkpoints = {"tiny": Official("spatialmamba", "spatialmamba_tiny")}
