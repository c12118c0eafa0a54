"""PlainMamba against the numbers of the official model."""

from vssm.models.plainmamba import FAMILY

from .parity_tester import ParityTester


class TestPlainMamba(ParityTester):
    family = FAMILY
    files = ("plainmamba",)
    models = {
        "_unit": ("plainmamba_pico", dict(dim=32, depth=4, d_state=4, num_classes=10, img_size=64, stem_convs=2)),
    }
    elsewhere = ("_unit_direction", "_unit_adapter")
    output, unit, gradient = 1e-4, 2e-5, 1e-3
    normed_last = True
