"""EfficientVMamba beyond its parity vectors."""

from vssm.models.efficientvmamba import FAMILY

from .official_layouts import early_names
from .tester import FamilyTester, Official

UNIT = dict(dims=16, depths=(1, 2, 1, 1), num_classes=10)


class TestEfficientVMamba(FamilyTester):
    family = FAMILY
    checkpoints = {"unit": Official("efficientvmamba", "_unit", "efficientvmamba_pico", UNIT)}
    layouts = [("unit", early_names)]
    refused = [("efficientvmamba_pico", dict(dims=4), ("8", "4"))]
