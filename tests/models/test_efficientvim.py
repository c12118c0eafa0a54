"""EfficientViM beyond its parity vectors; timm's own port of it is in `test_timm_port.py`."""

from vssm.models.efficientvim import FAMILY

from .tester import AVERAGE_ONLY, FamilyTester, Official


class TestEfficientViM(FamilyTester):
    family = FAMILY
    checkpoints = {"m1": Official("efficientvim", "efficientvim_m1", rules="v2")}
    refused = [
        *[("vssm_efficientvim_m1", *refused) for refused in AVERAGE_ONLY],
        ("vssm_efficientvim_m1", dict(d_state=(1, 1)), ("(1, 1)", "(2, 2, 2)")),
    ]
