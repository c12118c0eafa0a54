"""SegMAN beyond its parity vectors."""

from vssm.models.segman import FAMILY

from .tester import FamilyTester, Official


class TestSegMAN(FamilyTester):
    family = FAMILY
    checkpoints = {"tiny": Official("segman", "segman_tiny")}
    refused = [
        ("segman_pico", dict(windows=(5, 3)), ("windows", "4 stages", "(5, 3)")),
        ("segman_pico", dict(num_heads=(3, 2, 3, 4)), ("16", "multiple of 4", "3 heads")),
    ]
