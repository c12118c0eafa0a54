"""VSSD beyond its parity vectors."""

from vssm.models.vssd import FAMILY

from .tester import FamilyTester, Official


class TestVSSD(FamilyTester):
    family = FAMILY
    checkpoints = {"small": Official("vssd", "vssd_small"), "micro": Official("vssd", "vssd_micro")}
    foreign = [("micro", "layers.0.blocks.0.attn.extra_norm.weight", "unexpected", "mixer.extra_norm", "iccv2025")]
    refused = [
        ("vssd_pico", dict(num_heads=(1, 2)), ("4 stages", "(1, 2)")),
        ("vssd_pico", dict(num_heads=(3, 2, 4, 8)), ("32", "3 heads")),
        ("vssd_pico", dict(num_heads=(1, 2, 4, 5)), ("128", "5 heads")),  # of the attention in the last stage
    ]
