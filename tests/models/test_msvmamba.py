"""MSVMamba beyond its parity vectors."""

from vssm.models.msvmamba import FAMILY

from .official_layouts import early_names, linear_layers_as_convolutions
from .tester import FamilyTester, Official, assert_refused

UNIT = dict(dims=16, depths=(1, 2, 1, 1), num_classes=10)
FIRST = Official("msvmamba", "_unit_v1", "msvmamba_nano", UNIT)
SECOND = Official("msvmamba", "_unit_v3_noz", "msvmambav3_tiny", UNIT)


class TestMSVMamba(FamilyTester):
    family = FAMILY
    checkpoints = {"first": FIRST, "second": SECOND}
    layouts = [(label, linear_layers_as_convolutions) for label in checkpoints] + [("first", early_names)]
    refused = [("msvmamba_pico", dict(upsample_mode="area"), ("bilinear", "nearest", "'area'"))]

    def test_the_other_generation_is_refused(self):
        for written, wanted in ((FIRST, SECOND), (SECOND, FIRST)):
            assert_refused(ValueError, ["MSVMamba", "missing st"], wanted.convert, written.weights())
