"""A2Mamba beyond its parity vectors."""

import pytest

from vssm.models.a2mamba import FAMILY

from .tester import FamilyTester, Official


@pytest.mark.filterwarnings("ignore:the checkpoint has other values under rpb.0")
class TestA2Mamba(FamilyTester):
    family = FAMILY
    checkpoints = {"nano": Official("a2mamba", "a2mamba_nano")}
    refused = [
        ("a2mamba_pico", dict(windows=(5, 3)), ("windows", "4 stages", "(5, 3)")),
        ("a2mamba_pico", dict(num_heads=(1, 4, 6, 8)), ("even", "got 1")),
    ]
