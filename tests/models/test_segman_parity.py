"""SegMAN's encoder and classifier against the numbers of the official ones."""

from vssm.models.segman import FAMILY

from .parity_tester import ParityTester

UNIT = dict(num_classes=10, img_size=96, mlp_ratios=(4, 4, 3, 3.4))


class TestSegMAN(ParityTester):
    family = FAMILY
    files = ("segman",)
    models = {
        "_unit": ("segman_pico", UNIT),
        "_unit_ls": ("segman_pico", dict(UNIT, layer_scale=1e-6)),
        "_unit_gb": ("segman_pico", UNIT),
    }
    output, gradient = 1e-4, 1e-3
